"""A section of annotated images: what identifies it, and the images it stands for."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from cluster.errors import UsageError
from cluster.formats.read import in_val
from cluster.shards.format import Category, Row, shard_name
from cluster.shards.index import Index, ShardSet, write_index
from cluster.shards.write import write_shard
from cluster.storage.files import write_json
from pipelines.data_section import DataSection, identity, pictures
from tests.support.parquet_sets import row, write


def coco_of(split: str, *names: str) -> dict[str, Any]:
    """A COCO file of images without boxes."""
    images = [
        {"id": number, "file_name": name, "height": 8, "width": 8}
        for number, name in enumerate(names)
    ]
    categories = [{"id": 1, "name": "cat"}]
    return {"info": split, "images": images, "annotations": [], "categories": categories}


@pytest.fixture
def coco(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two COCO sources in data/, which is the working directory."""
    (tmp_path / "data/annotations").mkdir(parents=True)
    for split in ("train", "val"):
        (tmp_path / "data/images" / split).mkdir(parents=True)
        (tmp_path / "data/images" / split / "1.jpg").write_bytes(split.encode())
        write_json(str(tmp_path / f"data/annotations/{split}.json"), coco_of(split, "1.jpg"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


SOURCE = {"annotations": "data/annotations/train.json", "images": "data/images/train"}


@pytest.mark.parametrize(
    "options",
    [
        {"split": "train"},
        {"split": "train", "val_share": 0.2},
        {"duplicates": "drop"},
        {"seed": 1},
        {"shard_size_mib": 1},
        {"row_group_rows": 4},
        {"max_pixels": 1000},
    ],
)
def test_an_option_that_changes_the_set_changes_its_identity(
    coco: Path, options: dict[str, Any]
) -> None:
    plain = identity(DataSection.model_validate(SOURCE))
    other = identity(DataSection.model_validate({**SOURCE, **options}))
    assert set(plain) == {"source"} and other == {**plain, **options}


def test_a_limit_on_what_is_left_out_does_not_change_the_identity(coco: Path) -> None:
    limits = {"max_quarantined": 0.5, "max_quarantined_annotations": 0}
    assert identity(DataSection.model_validate({**SOURCE, **limits})) == identity(
        DataSection.model_validate(SOURCE)
    )


def test_the_identity_of_yolo_data_follows_the_content_of_its_labels(coco: Path) -> None:
    (coco / "labels").mkdir()
    (coco / "labels/1.txt").write_text("0 0.5 0.5 0.25 0.25\n")
    (coco / "labels/classes.txt").write_text("cat\ndog\n")
    section = DataSection(annotations="labels", images="data/images/train", format="yolo")
    first = identity(section)
    assert identity(section) == first
    # The same number of bytes, another class.
    (coco / "labels/1.txt").write_text("1 0.5 0.5 0.25 0.25\n")
    assert identity(section) != first


def test_the_identity_of_several_sources_has_their_names_and_the_sets_compared_with(
    coco: Path,
) -> None:
    both = [
        {"name": "day", **SOURCE},
        {"name": "night", "annotations": "data/annotations/val.json", "images": "data/images/val"},
    ]
    write_index("other", Index((Category(0, 1, "cat"),)))
    fields = identity(DataSection.model_validate({"sources": both, "against": ["other"]}))
    assert [name for name, *_ in fields["source"]] == ["day", "night"]
    assert len(fields["against"]) == 1
    swapped = identity(DataSection.model_validate({"sources": both[::-1]}))
    assert swapped["source"] == fields["source"][::-1]


def set_of(folder: Path, images: list[tuple[int, int, str]]) -> ShardSet:
    """A shard set of images without boxes, each (source, id, file name)."""
    none = np.zeros((0, 4), np.float32)
    rows = [
        Row(id_, name, b"x", 8, 8, none, [], [], [], source, bytes(32))
        for source, id_, name in images
    ]
    shard = write_shard(str(folder), shard_name(0, 1), rows, row_group_rows=4)
    return write_index(str(folder), Index((Category(0, 1, "cat"),), (shard,)))


def test_the_images_of_several_sources_have_the_ids_of_the_set(coco: Path) -> None:
    for name in ("2.jpg", "unlisted.jpg"):
        (coco / "data/images/val" / name).touch()
    write_json(f"{coco}/data/annotations/val.json", coco_of("val", "1.jpg", "2.jpg", "gone.jpg"))
    # Both sources have a 1.jpg; prepare moved the second one's ids up, and left 2.jpg out.
    prepared = set_of(coco / "set", [(0, 7, "1.jpg"), (1, 15, "1.jpg")])
    both = [
        {
            "name": name,
            "annotations": f"data/annotations/{name}.json",
            "images": f"data/images/{name}",
        }
        for name in ("train", "val")
    ]
    section = DataSection.model_validate({"sources": both})
    assert pictures(section, prepared) == {
        f"{coco}/data/images/train/1.jpg": 7,
        f"{coco}/data/images/val/1.jpg": 15,
        f"{coco}/data/images/val/2.jpg": None,
    }


def test_the_images_of_a_split_are_those_that_prepare_takes(coco: Path) -> None:
    names = [f"{number}.jpg" for number in range(1, 41)]
    for name in names:
        (coco / "data/images/train" / name).touch()
    write_json(f"{coco}/data/annotations/train.json", coco_of("train", *names))
    prepared = set_of(coco / "set", [(0, 1, "1.jpg")])
    found = {}
    for split in ("train", "val"):
        section = DataSection.model_validate({**SOURCE, "split": split, "val_share": 0.3})
        found[split] = {Path(uri).name for uri in pictures(section, prepared)}
    assert found["val"] == {name for name in names if in_val(name, 0.3)}
    assert found["val"] and found["train"] == set(names) - found["val"]


def export(target: Path) -> str:
    """A zip as Roboflow writes it: two splits of YOLO labels."""
    with zipfile.ZipFile(target, "w") as packed:
        packed.writestr("data.yaml", "names: [cat]")
        for split in ("train", "valid"):
            packed.writestr(f"{split}/labels/1.txt", "0 0.5 0.5 0.5 0.5")
            packed.writestr(f"{split}/images/1.jpg", split)
    return target.name


def test_a_split_of_a_zip_is_a_source(coco: Path) -> None:
    name = export(coco / "pets.zip")
    said: list[str] = []
    (place,) = DataSection(annotations=f"{name}/valid").source_paths(said.append)
    assert place == (
        "valid",
        "yolo",
        f"{coco}/pets.zip/valid/labels",
        f"{coco}/pets.zip/valid/images",
    )
    assert said == ["pets.zip/valid: format yolo, annotations in labels, pictures in images"]
    with pytest.raises(UsageError, match=r"pets.zip: holds 2 sets: train, valid; give one of them"):
        DataSection(annotations=name).source_paths()


def test_a_zip_has_the_identity_of_the_folder_that_was_packed(coco: Path) -> None:
    export(coco / "pets.zip")
    zipfile.ZipFile(coco / "pets.zip").extractall(coco / "pets")
    packed, folder = (DataSection(annotations=f"{name}/train") for name in ("pets.zip", "pets"))
    assert identity(packed) == identity(folder)
    assert list(pictures(packed, set_of(coco / "set", [(0, 7, "1.jpg")]))) == [
        f"{coco}/pets.zip/train/images/1.jpg"
    ]


def test_nothing_is_looked_for_where_all_is_given(coco: Path) -> None:
    said: list[str] = []
    for options in (SOURCE, {**SOURCE, "format": "yolo"}, {**SOURCE, "annotations": "no.zip/a"}):
        section = DataSection.model_validate({"format": "coco", **options})
        (place,) = section.source_paths(said.append)
        assert place[2:] == (options["annotations"], options["images"])
    assert not said


def test_parquet_files_need_no_folder_of_images(coco: Path) -> None:
    write(coco / "hub/a.parquet", [row(number, (1, 2, 3, 4)) for number in range(3)])
    section = DataSection(annotations="hub", format="parquet")
    first = identity(section)
    assert identity(section) == first
    # The val set left the second row out.
    prepared = set_of(coco / "set", [(0, 0, "a.parquet#0"), (0, 2, "a.parquet#2")])
    assert pictures(section, prepared) == {
        f"{coco}/hub/a.parquet#0": 0,
        f"{coco}/hub/a.parquet#1": None,
        f"{coco}/hub/a.parquet#2": 2,
    }
    write(coco / "hub/a.parquet", [row(number, (1, 2, 3, 5)) for number in range(3)])
    assert identity(section) != first
    # Recognised without a format, and with the meaning of bbox given.
    for given, taken in ((None, "parquet"), ("parquet_xyxy", "parquet_xyxy")):
        source = {"name": "a", "annotations": "hub", "format": given}
        (place,) = DataSection.model_validate({"sources": [source]}).source_paths()
        assert place == ("a", taken, f"{coco}/hub", None)


def test_a_source_is_given_in_one_way() -> None:
    with pytest.raises(ValidationError, match="annotations must be given, or sources for several"):
        DataSection(images="images")
    with pytest.raises(ValidationError, match="sources is given together with annotations"):
        DataSection.model_validate({"sources": [{"name": "a", **SOURCE}], "images": "i"})
