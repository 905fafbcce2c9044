from __future__ import annotations

import gzip
import itertools
import json
from array import array
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import DataError, UsageError
from cluster.formats import coco, coco_records, coco_references, names
from cluster.formats.annotations import Annotation, ImageRecord, Source
from cluster.shards.format import Category
from cluster.storage import files

IMAGE = {"id": 5, "file_name": "a.jpg", "height": 100, "width": 200}
CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]
BOX = {
    "id": 1,
    "image_id": 5,
    "category_id": 7,
    "bbox": [10, 20, 30, 40],
    "area": 900.5,
    "iscrowd": 0,
}


def read(
    folder: Path, *, images: Any = (IMAGE,), annotations: Any = (BOX,), categories: Any = CATEGORIES
) -> Source:
    content = {
        "images": list(images),
        "annotations": list(annotations),
        "categories": list(categories),
    }
    (folder / "coco.json").write_text(json.dumps(content))
    return coco.read_coco(str(folder / "coco.json"), "images")


def reasons(source: Source) -> list[tuple[str, str, str]]:
    return [(record.what, record.where, record.why) for record in source.quarantined]


def test_a_good_file(tmp_path: Path) -> None:
    source = read(tmp_path)
    # Labels count by ascending id: 3 comes first although it is listed second.
    assert source.categories == (Category(0, 3, "cat"), Category(1, 7, "dog"))
    # 10 + 30 = 40, 20 + 40 = 60.
    assert tuple(source.images) == (
        ImageRecord(
            5, "a.jpg", 100, 200, (Annotation(1, 1, (10.0, 20.0, 40.0, 60.0), False, 900.5),)
        ),
    )
    assert source.quarantined == () and source.repairs == {} and source.listed == 1


def test_a_bucket_reads_like_a_folder(tmp_path: Path, bucket: str) -> None:
    local = read(tmp_path)
    files.write_bytes(f"{bucket}/coco.json", (tmp_path / "coco.json").read_bytes())
    remote = coco.read_coco(f"{bucket}/coco.json", "images")
    assert (
        tuple(remote.images) == tuple(local.images)
        and replace(remote, images=local.images) == local
    )


def test_missing_and_malformed_files(tmp_path: Path, bucket: str) -> None:
    for uri in (str(tmp_path / "none.json"), f"{bucket}/none.json"):
        with pytest.raises(
            UsageError, match=r"none\.json: there is no such annotation file; check --annotations"
        ):
            coco.read_coco(uri, "images")
    (tmp_path / "bad.json").write_text('{\n  "images": [,]\n}')
    # `__"images":_[,`: the comma is the 14th character of line 2.
    with pytest.raises(DataError, match="line 2, column 14"):
        coco.read_coco(str(tmp_path / "bad.json"), "images")
    with pytest.raises(UsageError, match="cannot be read"):
        coco.read_coco(str(tmp_path), "images")


@pytest.mark.parametrize(
    "content",
    [
        [],
        {"images": [], "annotations": []},
        {"images": [IMAGE], "categories": CATEGORIES},
        {"images": 3},
    ],
)
def test_json_that_is_no_coco_file(tmp_path: Path, content: Any) -> None:
    (tmp_path / "x.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="it has no list named"):
        coco.read_coco(str(tmp_path / "x.json"), "images")


def test_nothing_to_prepare(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="list of images is empty"):
        read(tmp_path, images=())
    with pytest.raises(DataError, match="list of categories is empty"):
        read(tmp_path, categories=())


@pytest.mark.parametrize(
    "category",
    [
        {"id": "seven", "name": "x"},
        {"id": 7},
        {"name": "x"},
        "dog",
        {"id": True, "name": "x"},
        {"id": [7], "name": "x"},
    ],
)
def test_a_category_without_id_or_name(tmp_path: Path, category: Any) -> None:
    with pytest.raises(DataError, match="must have an integer id and a name"):
        read(tmp_path, categories=[category])


def test_ids_used_twice_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="image id 5 is used more than once"):
        read(tmp_path, images=(IMAGE, {**IMAGE, "file_name": "b.jpg"}))
    with pytest.raises(DataError, match="annotation id 1 is used more than once"):
        read(tmp_path, annotations=(BOX, BOX))
    with pytest.raises(DataError, match="annotation id 0, 1, 2, 3, 4 and 2 more is used"):
        read(tmp_path, annotations=[{**BOX, "id": number} for number in range(7)] * 2)
    with pytest.raises(DataError, match="category id 7 is used more than once"):
        read(tmp_path, categories=[{"id": 7, "name": "a"}, {"id": 7, "name": "b"}])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"bbox": None}, "its bbox is missing"),
        ({"bbox": [1, 2, 3]}, "its bbox is not four finite numbers"),
        ({"bbox": [1, 2, 3, float("nan")]}, "its bbox is not four finite numbers"),
        ({"bbox": [1, 2, float("inf"), 4]}, "its bbox is not four finite numbers"),
        ({"bbox": [1, 2, 10**400, 4]}, "its bbox is not four finite numbers"),
        ({"bbox": ["one", 2, 3, 4]}, "its bbox is not four finite numbers"),
        ({"bbox": [True, 2, 3, 4]}, "its bbox is not four finite numbers"),
        ({"bbox": "1 2 3 4"}, "its bbox is not four finite numbers"),
        ({"image_id": 6}, "its image_id is not in the list of images"),
        ({"image_id": 6.0}, "its image_id is not in the list of images"),
        ({"image_id": [5]}, "its image_id is not an integer from 0 on"),
        ({"image_id": "five"}, "its image_id is not an integer from 0 on"),
        ({"image_id": 5.5}, "its image_id is not an integer from 0 on"),
        ({"image_id": -5}, "its image_id is not an integer from 0 on"),
        ({"image_id": None}, "its image_id is missing"),
        ({"category_id": 4}, "its category_id is not in the list of categories"),
        ({"category_id": None}, "its category_id is missing"),
        ({"category_id": "3rd"}, "its category_id is not an integer from 0 on"),
        ({"category_id": float("nan")}, "its category_id is not an integer from 0 on"),
        ({"iscrowd": 2}, "its iscrowd is neither 0 nor 1"),
        ({"iscrowd": "no"}, "its iscrowd is neither 0 nor 1"),
    ],
)
def test_a_bad_annotation_is_left_out_alone(
    tmp_path: Path, change: dict[str, Any], why: str
) -> None:
    source = read(tmp_path, annotations=(BOX, {**BOX, "id": 42, **change}))
    assert reasons(source) == [("annotation", "42", why)]
    assert [one.id for one in source.images[0].annotations] == [1]
    assert json.loads(source.quarantined[0].raw)["id"] == 42


def test_a_missing_bbox_and_a_record_that_is_no_object(tmp_path: Path) -> None:
    without = {name: value for name, value in BOX.items() if name != "bbox"}
    source = read(tmp_path, annotations=(without, "text"))
    assert reasons(source) == [
        ("annotation", "1", "its bbox is missing"),
        ("annotation", "?", "the record is not an object"),
    ]


@pytest.mark.parametrize(
    ("change", "where", "why"),
    [
        ({"file_name": ".."}, "..", "its file_name names no file"),
        ({"file_name": "x/../../"}, "x/../../", "its file_name names no file"),
        ({"file_name": "C:\\"}, "C:\\", "its file_name names no file"),
        ({"file_name": "a\0.jpg"}, "a\0.jpg", "its file_name names no file"),
        (
            {"file_name": "s3://other/a.jpg"},
            "s3://other/a.jpg",
            "its file_name is a URL; download the pictures and name the files",
        ),
        ({"file_name": "."}, ".", "its file_name names no file"),
        ({"file_name": ""}, "6", "it has no file_name"),
        ({"file_name": None}, "6", "it has no file_name"),
        ({"id": "six"}, "b.jpg", "its id is not an integer from 0 on"),
        ({"id": -1}, "b.jpg", "its id is not an integer from 0 on"),
        ({"id": 2**63}, "b.jpg", "its id is not an integer from 0 on"),
    ],
)
def test_a_bad_image_record_loses_that_image_alone(
    tmp_path: Path, change: dict[str, Any], where: str, why: str
) -> None:
    bad = {**IMAGE, "id": 6, "file_name": "b.jpg", **change}
    source = read(
        tmp_path, images=(IMAGE, bad), annotations=(BOX, {**BOX, "id": 2, "image_id": bad["id"]})
    )
    # Its annotation is lost with it and makes no entry of its own.
    assert reasons(source) == [("image", where, why)]
    (lost,) = json.loads(source.quarantined[0].raw)["annotations"]
    assert lost == {**BOX, "id": 2, "image_id": bad["id"]} and source.lost == 1
    assert [image.image_id for image in source.images] == [5]
    assert source.listed == 2


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("./sub/../sub/a.jpg", "sub/a.jpg"),
        ("sub\\a.jpg", "sub/a.jpg"),
        ("..hidden/a.jpg", "..hidden/a.jpg"),
        ("at 10:30/a.jpg", "at 10:30/a.jpg"),
        # Paths of another machine begin with a slash.
        ("/data/a.jpg", "/data/a.jpg"),
        ("//data/a.jpg", "/data/a.jpg"),
        ("C:\\data\\a.jpg", "/data/a.jpg"),
        ("c://data/a.jpg", "/data/a.jpg"),
        ("\\\\server\\share\\a.jpg", "/server/share/a.jpg"),
        ("../a.jpg", "/a.jpg"),
        ("x/../../../b/a.jpg", "/b/a.jpg"),
        ("/../../etc/passwd", "/etc/passwd"),
    ],
)
def test_a_file_name_in_its_plain_form(name: str, plain: str) -> None:
    assert names.plain_name(name) == plain


def test_a_path_of_another_machine_is_kept_without_its_root(tmp_path: Path) -> None:
    paths = ["/data/a.jpg", "b.jpg", "..\\c.jpg", "D:\\d.jpg"]
    images = [{**IMAGE, "id": number, "file_name": path} for number, path in enumerate(paths, 5)]
    source = read(tmp_path, images=images)
    assert source.images.names == ["data/a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    assert source.images.elsewhere_I.tolist() == [True, False, True, True]
    assert source.quarantined == ()


def test_missing_fields_are_filled_and_counted(tmp_path: Path) -> None:
    bare = {"id": 1, "image_id": 5, "category_id": 7, "bbox": [10, 20, 30, 40]}
    source = read(
        tmp_path,
        images=({"id": 5, "file_name": "a.jpg"},),
        annotations=(bare, {**bare, "id": 2, "area": float("nan"), "iscrowd": None}),
    )
    assert source.repairs == {
        "areas missing or not a number, filled with width x height": 2,
        "iscrowd missing, filled with 0": 2,
        "image sizes missing in the annotations, taken from the pixels": 1,
    }
    assert [(one.crowd, one.area) for one in source.images[0].annotations] == [
        (False, None),
        (False, None),
    ]
    assert (source.images[0].height, source.images[0].width) == (None, None)


def test_crowds_and_images_without_boxes_are_kept(tmp_path: Path) -> None:
    source = read(
        tmp_path,
        images=({**IMAGE, "id": 9, "file_name": "b.jpg"}, IMAGE),
        annotations=({**BOX, "iscrowd": 1},),
    )
    assert [
        (image.image_id, [one.crowd for one in image.annotations]) for image in source.images
    ] == [(5, [True]), (9, [])]


def test_annotation_id_zero_is_an_id_like_others(tmp_path: Path) -> None:
    assert read(tmp_path, annotations=({**BOX, "id": 0},)).images[0].annotations[0].id == 0


def test_lists_may_come_in_any_order(tmp_path: Path) -> None:
    lists = {
        "images": [IMAGE, {**IMAGE, "id": 6, "file_name": ".."}],
        "annotations": [
            BOX,
            {**BOX, "id": 2, "image_id": 6},
            {**BOX, "id": 3, "category_id": 5},
            {**BOX, "id": 4, "image_id": 9},
            {**BOX, "id": 5, "bbox": 1},
        ],
        "categories": CATEGORIES,
    }
    found = []
    for order in itertools.permutations(lists):
        (tmp_path / "coco.json").write_text(json.dumps({name: lists[name] for name in order}))
        source = coco.read_coco(str(tmp_path / "coco.json"), "images")
        found.append(
            (
                tuple(source.images),
                source.quarantined,
                source.listed,
                source.annotated,
                source.lost,
                source.categories,
            )
        )
    assert all(one == found[0] for one in found)
    # Of the five: one is stored, one went with its image, three are in the quarantine with the
    # image.
    assert found[0][2:5] == (2, 5, 1) and len(found[0][1]) == 4


def test_polygons_stay_out_of_the_quarantine(tmp_path: Path) -> None:
    source = read(tmp_path, annotations=({**BOX, "bbox": None, "segmentation": [[1.5] * 1000]},))
    assert "segmentation" not in json.loads(source.quarantined[0].raw)


@settings(deadline=None)
@given(
    values=st.lists(st.integers(-5, 60)),
    ids=st.lists(st.integers(0, 50), unique=True),
    repeats=st.lists(st.integers(0, 9), max_size=20),
)
def test_positions_and_repeated_ids(values: list[int], ids: list[int], repeats: list[int]) -> None:
    found = coco_references.positions_of(
        np.array(values, np.int64), np.array(ids, np.int64)
    ).tolist()
    assert found == [ids.index(value) if value in ids else -1 for value in values]
    assert set(coco_records.repeated_ids(array("q", repeats))) == {
        value for value in repeats if repeats.count(value) > 1
    }


def test_a_packed_file_is_read_as_it_is(tmp_path: Path) -> None:
    read(tmp_path)
    (plain,) = tmp_path.glob("*.json")
    packed = tmp_path / "packed.json.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    first, second = (coco.read_coco(str(path), "images") for path in (plain, packed))
    assert tuple(first.images) == tuple(second.images) and first.digest == second.digest


@pytest.mark.parametrize("damage", [lambda data: data[:-30], lambda data: data[:20] + b"x" * 60])
def test_a_packed_file_that_is_damaged_is_named(tmp_path: Path, damage: Any) -> None:
    read(tmp_path, annotations=[{**BOX, "id": number} for number in range(50)])
    path = tmp_path / "a.json.gz"
    path.write_bytes(damage(gzip.compress((tmp_path / "coco.json").read_bytes())))
    with pytest.raises(DataError, match="a.json.gz: the packed file is damaged or cut off"):
        coco.read_coco(str(path), "images")


def test_utf_16_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes("{}".encode("utf-16"))
    with pytest.raises(DataError, match="is UTF-16; save it as UTF-8"):
        coco.read_coco(str(tmp_path / "a.json"), "images")


def test_a_parent_class_of_the_same_name_without_an_object_is_left_out(tmp_path: Path) -> None:
    categories = [{"id": 0, "name": "cat"}, {"id": 3, "name": "cat"}, {"id": 9, "name": "dog"}]
    source = read(tmp_path, categories=categories, annotations=[{**BOX, "category_id": 3}])
    assert [(one.id, one.name) for one in source.categories] == [(3, "cat"), (9, "dog")]
    assert (
        source.repairs["classes without an object that have the name of another class, left out"]
        == 1
    )
