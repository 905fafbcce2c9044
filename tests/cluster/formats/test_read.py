from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import DataError, UsageError
from cluster.formats.annotations import Annotation, ImageRecord, images_of_records
from cluster.formats.kinds import Format, kind_of
from cluster.formats.read import (
    READERS,
    SourcePaths,
    check_paths,
    in_val,
    read_source,
    read_sources,
)
from cluster.shards.format import Category
from cluster.shards.index import IndexedSource

names = st.text(min_size=1, max_size=20)


def write(
    folder: Path,
    name: str,
    images: list[tuple[int, str]],
    boxes: list[tuple[int, int]],
    categories: dict[int, str],
) -> SourcePaths:
    """A COCO JSON: images as (id, file name), boxes as (image id, category id)."""
    content: dict[str, Any] = {
        "images": [
            {"id": id_, "file_name": file_name, "height": 9, "width": 9}
            for id_, file_name in images
        ],
        "annotations": [
            {
                "id": n,
                "image_id": i,
                "category_id": c,
                "bbox": [n, 0, 5, 5],
                "iscrowd": 0,
                "area": 25,
            }
            for n, (i, c) in enumerate(boxes)
        ],
        "categories": [{"id": id_, "name": label} for id_, label in categories.items()],
    }
    (folder / f"{name}.json").write_text(json.dumps(content))
    return SourcePaths(name, "coco", str(folder / f"{name}.json"), str(folder))


def test_one_source_stays_as_it_is(tmp_path: Path) -> None:
    place = write(tmp_path, "one", [(7, "a.jpg"), (0, "b.jpg")], [(7, 3)], {3: "cat", 90: "dog"})
    merged = read_sources([place])
    assert [image.image_id for image in merged.source.images] == [0, 7]
    assert merged.source.categories == (Category(0, 3, "cat"), Category(1, 90, "dog"))
    assert merged.entries == (IndexedSource("one", "coco", digest=merged.source.digest),)


def test_several_sources_become_one(tmp_path: Path) -> None:
    first = write(
        tmp_path, "first", [(7, "a.jpg"), (2, "b.jpg")], [(7, 3), (2, 90)], {90: "dog", 3: "cat"}
    )
    second = write(
        tmp_path,
        "second",
        [(7, "a.jpg"), (0, "c.jpg")],
        [(7, 1), (7, 3), (0, 2)],
        {1: "dog", 2: "fox", 3: "owl"},
    )
    merged = read_sources([first, second])
    # The first source's classes by id; then fox, whose id 2 is free, and owl, whose 3 is taken: 90
    # + 1.
    assert merged.source.categories == (
        Category(0, 3, "cat"),
        Category(1, 90, "dog"),
        Category(2, 2, "fox"),
        Category(3, 91, "owl"),
    )
    # 7 is the largest id of the first source: the second's move up by 8.
    found = [
        (image.image_id, image.source, image.file_name, [one.label for one in image.annotations])
        for image in merged.source.images
    ]
    assert found == [
        (2, 0, "b.jpg", [1]),
        (7, 0, "a.jpg", [0]),
        (8, 1, "c.jpg", [2]),
        (15, 1, "a.jpg", [1, 3]),
    ]
    assert merged.source.images[3].annotations[0].box == (0, 0, 5, 5) and merged.source.images[
        3
    ].annotations[1].box == (1, 0, 6, 5)
    assert [entry.image_id_offset for entry in merged.entries] == [0, 8]
    assert [entry.category_ids for entry in merged.entries] == [{}, {"dog": 1, "owl": 3}]
    assert (merged.source.listed, merged.source.annotated) == (4, 5)


def test_sources_of_three_formats(tmp_path: Path) -> None:
    first = write(tmp_path, "first", [(1, "a.jpg")], [(1, 1)], {1: "cat"})
    for folder in ("voc", "labels", "images"):
        (tmp_path / folder).mkdir()
    (tmp_path / "images/c.jpg").write_bytes(b"x")
    (tmp_path / "labels/c.txt").write_text("0 0.5 0.5 1 1")
    (tmp_path / "labels/classes.txt").write_text("dog\n")
    sides = "<xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax>"
    box = f"<object><name>cat</name><bndbox>{sides}</bndbox></object>"
    (tmp_path / "voc/b.xml").write_text(f"<annotation><filename>b.jpg</filename>{box}</annotation>")
    second = SourcePaths("second", "voc", str(tmp_path / "voc"), str(tmp_path / "images"))
    third = SourcePaths("third", "yolo", str(tmp_path / "labels"), str(tmp_path / "images"))
    merged = read_sources([first, second, third])
    found = [
        (image.image_id, image.source, image.normalised, [one.label for one in image.annotations])
        for image in merged.source.images
    ]
    assert found == [(1, 0, False, [0]), (3, 1, False, [0]), (5, 2, True, [1])]


def test_an_image_keeps_its_id_in_every_split(tmp_path: Path) -> None:
    """The offset counts all images of a source, not only those of the split."""
    images = [(number, f"{number}.jpg") for number in range(40)]
    places = [write(tmp_path, name, images, [], {1: "cat"}) for name in ("first", "second")]
    whole = {
        (image.source, image.file_name): image.image_id
        for image in read_sources(places).source.images
    }
    parts = [
        read_sources(places, split=split, val_share=0.3).source.images for split in ("train", "val")
    ]
    assert {
        (image.source, image.file_name): image.image_id for part in parts for image in part
    } == whole
    assert sum(map(len, parts)) == 80 and all(parts)


def test_sources_that_cannot_be_merged(tmp_path: Path) -> None:
    good = write(tmp_path, "good", [(1, "a.jpg")], [], {1: "cat"})
    twice = write(tmp_path, "twice", [(1, "a.jpg")], [], {1: "dog", 2: "dog"})
    # Alone too: AP by class goes by name, and one of the two would be gone.
    for places in ([good, twice], [twice]):
        with pytest.raises(
            DataError,
            match=(
                r"twice.json: 2 categories are named 'dog' \(ids 1, 2\); classes go by name: rename"
                r" or merge them"
            ),
        ):
            read_sources(places)
    huge = write(tmp_path, "huge", [(2**63 - 1, "a.jpg")], [], {1: "cat"})
    with pytest.raises(DataError, match="image ids beyond 2\\^63"):
        read_sources([huge, good])
    with pytest.raises(UsageError, match="--format xml: is not one of coco, voc, yolo, crowdhuman"):
        read_sources([good._replace(format="xml")])
    with pytest.raises(UsageError, match="nowhere.json: there is no such annotation file"):
        read_sources([good._replace(annotations=str(tmp_path / "nowhere.json"))])


def test_a_file_of_another_format_is_named(tmp_path: Path) -> None:
    coco = write(tmp_path, "coco", [(1, "a.jpg")], [(1, 1)], {1: "cat"})
    packed = str(tmp_path / "coco.json.gz")
    Path(packed).write_bytes(gzip.compress(Path(coco.annotations).read_bytes()))
    odgt = tmp_path / "train.odgt"
    odgt.write_text('{"ID": "a", "gtboxes": []}\n' * 2)
    for place in (coco, coco._replace(annotations=packed)):
        assert read_sources([place]).source.listed == 1
    for file, wrong, is_, right in (
        (coco.annotations, "crowdhuman", "a COCO JSON file", "coco"),
        (packed, "crowdhuman", "a COCO JSON file", "coco"),
        (coco.annotations, "voc", "a COCO JSON file", "coco"),
        (str(odgt), "coco", "an .odgt file of CrowdHuman", "crowdhuman"),
        (str(odgt), "yolo", "an .odgt file of CrowdHuman", "crowdhuman"),
    ):
        said = re.escape(f"{file}: is {is_}, but") + f".*format {wrong} are.*say --format {right}$"
        place = coco._replace(annotations=file, format=wrong)
        with pytest.raises(UsageError, match=said):
            check_paths(place)
    # What has no sign of a format is left to its reader.
    odgt.write_bytes(b"\x1f\x8b damaged")
    with pytest.raises(DataError, match="the packed file is damaged"):
        read_source(coco._replace(annotations=str(odgt)))


@given(
    names=st.lists(names, unique=True),
    more=st.lists(names, unique=True),
    share=st.floats(0.01, 0.99),
)
def test_splits_are_disjoint_exhaustive_and_stable(
    names: list[str], more: list[str], share: float
) -> None:
    val = {name for name in names if in_val(name, share)}
    assert {name for name in [*names, *more] if in_val(name, share)} >= val
    # A larger share only adds.
    assert {name for name in names if in_val(name, min(share + 0.2, 1.0))} >= val
    assert not any(in_val(name, 0.0) for name in names) and all(in_val(name, 1.0) for name in names)


def test_val_share_holds_for_many_names() -> None:
    # Of 4000 independent draws of 0.1, 400 +- 4 standard deviations of 19.
    assert 324 <= sum(in_val(f"{number:012d}.jpg", 0.1) for number in range(4000)) <= 476


def test_a_split_of_a_coco_file_counts_its_own_records(tmp_path: Path) -> None:
    images = [(number, f"{number}.jpg") for number in range(50)]
    place = write(tmp_path, "all", images, [(number, 1) for number in range(50)], {1: "cat"})
    content = json.loads(Path(place.annotations).read_text())
    # A bad record of every image, one of an image that is not listed, one that no image is known
    # of.
    content["annotations"] += [
        {"id": 100 + n, "image_id": n, "category_id": 1, "bbox": None} for n in range(50)
    ]
    content["annotations"] += [{"id": 200, "image_id": 99, "category_id": 1, "bbox": [0, 0, 5, 5]}]
    Path(place.annotations).write_text(json.dumps(content))
    parts = {
        split: read_sources([place], split=split, val_share=0.3).source
        for split in ("train", "val", "all")
    }
    for split, part in parts.items():
        ids = {image.image_id for image in part.images}
        assert {int(one.where) - 100 for one in part.quarantined} == ids | {100}, split
        assert part.listed == len(ids) and part.annotated == 2 * len(ids) + 1
        assert all(len(image.annotations) == 1 for image in part.images)
    assert {image.image_id for image in parts["train"].images} ^ {
        image.image_id for image in parts["val"].images
    } == set(range(50))
    with pytest.raises(
        DataError, match="none of its images falls into --split val with --val_share 1e-06"
    ):
        read_sources([place], split="val", val_share=1e-6)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 99),
            st.lists(st.tuples(st.integers(0, 5), st.none() | st.floats(0, 9)), max_size=4),
        ),
        unique_by=lambda one: one[0],
    )
)
def test_columns_give_back_the_records(
    content: list[tuple[int, list[tuple[int, float | None]]]],
) -> None:
    made = [
        ImageRecord(
            image_id,
            f"{image_id}.jpg",
            None,
            5,
            tuple(
                Annotation(n, label, (0, 1, 2, n), n % 2 == 0, area)
                for n, (label, area) in enumerate(boxes)
            ),
        )
        for image_id, boxes in content
    ]
    assert list(images_of_records(made)) == sorted(made)


COCO_TEXT = '\ufeff {"categories": [], "images": []}'
CVAT_TEXT = "<?xml version='1.0'?>\n<!-- <annotation> -->\n<annotations></annotations>"
TASKS_TEXT = '[{"id": 1, "annotations": [], "data": {"image": "a.jpg"}}]'
MIN_TEXT = '[{"image": "a.jpg", "id": 1, "annotation_id": 5}]'


@pytest.mark.parametrize(
    ("text", "format_", "why"),
    [
        (
            CVAT_TEXT,
            "coco",
            "is an XML file of CVAT, but .* format coco are a COCO JSON file.*; say --format cvat",
        ),
        (
            CVAT_TEXT,
            "voc",
            "is an XML file of CVAT, but .* format voc are a folder.*; say --format cvat",
        ),
        (TASKS_TEXT, "coco", "is a JSON file of Label Studio, .* say --format labelstudio"),
        (MIN_TEXT, "coco", "is a JSON file of Label Studio, .* say --format labelstudio"),
        (COCO_TEXT, "labelstudio", "is a COCO JSON file, .* say --format coco"),
        (
            "<annotation/>",
            "cvat",
            "is one of the XML files of VOC, .* name the folder of these files and say",
        ),
        ("<annotation/>", "voc", "is a file, but annotations of format voc are a folder"),
    ],
)
def test_a_file_of_another_format_is_told_by_name(
    tmp_path: Path, text: str, format_: Format, why: str
) -> None:
    (tmp_path / "labels").write_text(text)
    with pytest.raises(UsageError, match=why):
        check_paths(SourcePaths("a", format_, f"{tmp_path}/labels", str(tmp_path)))


@pytest.mark.parametrize("text", ["", "x", "{}", "[1]", '{"shapes": []}', "<svg/>", "\xff{"])
def test_what_no_reader_knows_is_left_to_the_reader(tmp_path: Path, text: str) -> None:
    (tmp_path / "labels").write_bytes(text.encode("latin-1"))
    assert kind_of(f"{tmp_path}/labels") is None


def test_a_folder_of_cvat_that_is_given_as_voc_is_told_by_name(tmp_path: Path) -> None:
    (tmp_path / "annotations.xml").write_text(CVAT_TEXT)
    with pytest.raises(DataError, match="it is a file of CVAT, .* give it alone, with --format cv"):
        read_source(SourcePaths("a", "voc", str(tmp_path), str(tmp_path)))


def test_the_configuration_knows_every_format() -> None:
    assert get_args(Format) == tuple(READERS)
