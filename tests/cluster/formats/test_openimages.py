from __future__ import annotations

from pathlib import Path

import pytest

from cluster.errors import DataError
from cluster.formats.annotations import Source
from cluster.formats.openimages import MIDS, read_openimages
from cluster.shards.format import Category

HEADER = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,"
    "IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside\n"
)
CAT, DOG = "/m/01yrx", "/m/0bt9lr"


def row(image: str, label: str, numbers: str, group: int = 0) -> str:
    return f"{image},xclick,{label},1,{numbers},0,0,{group},0,0\n"


def read(
    folder: Path, *rows: str, names: str | None = f"{DOG},Dog\n{CAT},Cat\n", header: str = HEADER
) -> Source:
    (folder / "images/train_0").mkdir(parents=True, exist_ok=True)
    (folder / "images/train_0/aa.png").write_bytes(b"x")
    (folder / "images/bb.jpg").write_bytes(b"x")
    (folder / "boxes.csv").write_text(header + "".join(rows))
    if names is not None:
        (folder / "class-descriptions-boxable.csv").write_text(names)
    return read_openimages(str(folder / "boxes.csv"), str(folder / "images"))


def test_a_good_file(tmp_path: Path) -> None:
    source = read(
        tmp_path,
        row("aa", CAT, "0.1,0.3,0.2,0.8"),
        row("bb", DOG, "0,1,0,1", group=1),
        row("aa", DOG, "0.5,0.75,0.5,1", group=-1),
    )
    assert source.categories == (Category(0, 1, "Dog"), Category(1, 2, "Cat"))
    first, second = source.images
    assert first.file_name == "train_0/aa.png" and first.normalised
    # XMin, XMax, YMin, YMax become x1, y1, x2, y2.
    assert [(one.label, one.box, one.crowd) for one in first.annotations] == [
        (1, (0.1, 0.2, 0.3, 0.8), False),
        (0, (0.5, 0.5, 0.75, 1), False),
    ]
    assert second.file_name == "bb.jpg" and second.annotations[0].crowd
    assert source.repairs == {"boxes around a group of objects (IsGroupOf), stored as crowds": 1}
    assert (source.listed, source.annotated, source.quarantined) == (2, 3, ())


def test_an_image_without_a_file_has_the_name_that_openimages_gives_it(tmp_path: Path) -> None:
    source = read(tmp_path, row("gone", CAT, "0,1,0,1"))
    assert [image.file_name for image in source.images] == ["gone.jpg"]


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (row("aa", CAT, "0,1.02,0,1"), "its numbers are not shares of the picture, from 0 to 1"),
        (row("aa", CAT, "-5,1,0,1"), "its numbers are not shares of the picture, from 0 to 1"),
        (row("aa", CAT, "0,inf,0,1"), "its box is not four finite numbers"),
        (row("aa", "/m/none", "0,1,0,1"), "its class is not in class-descriptions-boxable.csv"),
        (row("", CAT, "0,1,0,1"), "it has no file_name"),
    ],
)
def test_a_bad_line_costs_itself(tmp_path: Path, bad: str, why: str) -> None:
    good = row("aa", CAT, "0,1,0,1")
    source = read(tmp_path, good, bad, good)
    assert [(one.where, one.why) for one in source.quarantined] == [("line 3", why)]
    assert [one.id for one in source.images[0].annotations] == [2, 4] and source.annotated == 3


def test_without_their_names_classes_are_named_by_their_mids(tmp_path: Path) -> None:
    rows = [row("aa", DOG, "0,1,0,1"), row("bb", CAT, "0,1,0,1")]
    source = read(tmp_path, *rows, names=None)
    assert [category.name for category in source.categories] == [CAT, DOG]
    assert source.repairs == {MIDS: 2}


def test_the_newer_file_of_names_has_a_first_line(tmp_path: Path) -> None:
    (tmp_path / "oidv7-class-descriptions-boxable.csv").write_text(
        f'LabelName,DisplayName\n{CAT},"Cat, wild"\n'
    )
    source = read(tmp_path, row("aa", CAT, "0,1,0,1"), names=None)
    assert source.categories == (Category(0, 1, "Cat, wild"),)


@pytest.mark.parametrize("names", ["", f"{CAT}\n", f"{CAT},Cat\n{CAT},Dog\n", f'{CAT},"Cat\n'])
def test_names_that_cannot_be_used(tmp_path: Path, names: str) -> None:
    with pytest.raises(DataError, match="class-descriptions-boxable.csv: "):
        read(tmp_path, row("aa", CAT, "0,1,0,1"), names=names)


def test_the_content_of_the_names_is_part_of_the_digest(tmp_path: Path) -> None:
    rows = row("aa", CAT, "0,1,0,1")
    assert read(tmp_path, rows).digest == read(tmp_path, rows).digest
    assert read(tmp_path, rows).digest != read(tmp_path, rows, names=f"{CAT},Lion\n").digest
