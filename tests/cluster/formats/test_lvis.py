"""LVIS v1 as it is downloaded: a COCO JSON without file names, with frequencies of classes and with
what each image was searched for.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.formats.annotations import Source
from cluster.formats.coco import read_coco
from cluster.formats.read import SourcePaths, read_sources
from cluster.shards.format import Category, Federated

CATEGORIES = [
    {"id": 4, "name": "pan", "frequency": "f", "synset": "pan.n.01", "image_count": 500},
    {"id": 2, "name": "owl", "frequency": "r", "synset": "owl.n.01", "image_count": 3},
    {"id": 9, "name": "cup", "frequency": "c", "synset": "cup.n.01", "image_count": 40},
]
BOX = {"id": 1, "image_id": 5, "category_id": 4, "bbox": [1, 2, 3, 4], "area": 9.5}


def image(id_: int, absent: Any, incomplete: Any) -> dict[str, Any]:
    return {
        "id": id_,
        "coco_url": f"http://images.example.org/val2017/{id_:012d}.jpg",
        "height": 20,
        "width": 30,
        "neg_category_ids": absent,
        "not_exhaustive_category_ids": incomplete,
    }


def write(folder: Path, name: str, images: list[dict[str, Any]], **lists: Any) -> str:
    content = {"images": images, "annotations": [BOX], "categories": CATEGORIES, **lists}
    (folder / f"{name}.json").write_text(json.dumps(content))
    return str(folder / f"{name}.json")


def read(folder: Path, *images: dict[str, Any], **lists: Any) -> Source:
    return read_coco(write(folder, "lvis", list(images), **lists), "images")


def test_a_file_as_it_is_downloaded(tmp_path: Path) -> None:
    source = read(tmp_path, image(5, [9, 2], [4]), image(6, [], []))
    assert source.categories == (
        Category(0, 2, "owl", "r"),
        Category(1, 4, "pan", "f"),
        Category(2, 9, "cup", "c"),
    )
    first, second = source.images
    assert first.file_name == "val2017/000000000005.jpg"
    # Ids 2, 4, 9 are the labels 0, 1, 2.
    assert first.federated == Federated(absent=(0, 2), incomplete=(1,))
    assert second.federated == Federated((), ())
    assert source.repairs == {
        "file names taken from coco_url, as in LVIS": 2,
        "iscrowd missing, filled with 0": 1,
    }


def test_an_image_without_the_lists_was_searched_for_every_class(tmp_path: Path) -> None:
    plain = {"id": 6, "file_name": "a.jpg", "height": 20, "width": 30}
    first, second = read(tmp_path, image(5, [9], None), plain).images
    assert first.federated == Federated((2,), ()) and second.federated is None


@pytest.mark.parametrize(
    ("absent", "bad"),
    [([9, 77], 1), ([9, None, "x", [2]], 3), ({"9": 1}, 1), (True, 1), (["9"], 0)],
)
def test_entries_that_are_no_category_are_counted(tmp_path: Path, absent: Any, bad: int) -> None:
    source = read(tmp_path, image(5, absent, []))
    said = (
        "entries of neg_category_ids or not_exhaustive_category_ids that are no listed category,"
        " passed over"
    )
    assert source.repairs.get(said, 0) == bad
    (one,) = source.images
    assert one.federated == Federated((2,) if isinstance(absent, list) else (), ())


@pytest.mark.parametrize("frequency", [None, "x", 3, ["r"], "R"])
def test_a_frequency_of_another_kind_is_none(tmp_path: Path, frequency: Any) -> None:
    category = {"id": 4, "name": "pan", "frequency": frequency}
    source = read(tmp_path, image(5, [], []), categories=[category])
    assert source.categories == (Category(0, 4, "pan"),)


def test_sources_are_merged_with_their_frequencies_and_lists(tmp_path: Path) -> None:
    plain = [{"id": 1, "name": "dog"}, {"id": 2, "name": "pan"}]
    box = {**BOX, "category_id": 2}
    paths = [
        write(tmp_path, "coco", [image(5, None, None)], categories=plain, annotations=[box]),
        write(tmp_path, "lvis", [image(5, [9, 2], [4])]),
    ]
    merged = read_sources([SourcePaths(path, "coco", path, "images") for path in paths]).source
    # dog and pan of the first, then owl (id 2 is taken: 2 + 1) and cup (9) of the second.
    assert merged.categories == (
        Category(0, 1, "dog"),
        Category(1, 2, "pan", "f"),
        Category(2, 3, "owl", "r"),
        Category(3, 9, "cup", "c"),
    )
    first, second = merged.images
    # The second source's ids move up by 5 + 1.
    assert (first.image_id, first.federated) == (5, None)
    assert (second.image_id, second.federated) == (11, Federated((2, 3), (1,)))


@pytest.mark.parametrize("frequency", ["x", "rare", "", 3])
def test_a_frequency_of_another_letter_is_counted(tmp_path: Path, frequency: Any) -> None:
    categories = [*CATEGORIES[:2], {**CATEGORIES[2], "frequency": frequency}]
    source = read(tmp_path, image(5, [], []), categories=categories)
    assert [one.frequency for one in source.categories] == ["r", "f", None]
    assert source.repairs["frequencies of classes that are none of r, c, f, passed over"] == 1
    without = [{**one, "frequency": None} for one in CATEGORIES]
    source = read(tmp_path, image(5, [], []), categories=without)
    assert not any("frequencies" in said for said in source.repairs)
