from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import DataError, UsageError
from cluster.scoring.coco_ids import CocoIds, category_ids, ids_of_images, read_coco_ids

IDS = CocoIds("coco.json", {"below/b.jpg": 17, "c.jpg": 3}, {"dog": 4, "cat": 9, "cow": 1})


def test_ids_of_images_are_those_of_the_json() -> None:
    uris = ["s3://b/pictures/a.jpg", "s3://b/pictures/below/b.jpg"]
    # A picture that the JSON does not name has no id.
    assert ids_of_images(uris, "s3://b/pictures/", IDS) == {uris[1]: 17}
    assert ids_of_images([], "s3://b/pictures/", IDS) == {}


def test_a_path_of_another_machine_names_the_picture_that_ends_like_it() -> None:
    named = {
        "C:\\pets\\below\\b.jpg": 17,
        "/pets/a.jpg": 3,
        "../c.jpg": 4,
        "/c.jpg": 5,
        "d.jpg": 6,
        "/pets/d.jpg": 7,
    }
    uris = [f"/p/{name}" for name in ("a.jpg", "below/b.jpg", "c.jpg", "d.jpg", "x/e.jpg")]
    # Two images have the path c.jpg; d.jpg is named as it is.
    assert ids_of_images(uris, "/p", CocoIds("coco.json", named, {})) == {
        "/p/a.jpg": 3,
        "/p/below/b.jpg": 17,
        "/p/d.jpg": 6,
    }


@pytest.mark.parametrize(
    ("uris", "words"),
    [
        (["/p/x/y.jpg"], "(it lists 'below/b.jpg', there is 'x/y.jpg')"),
        # The same picture, one folder off.
        (["/p/a.jpg", "/p/b.jpg"], "(it lists 'below/b.jpg', there is 'b.jpg')"),
    ],
)
def test_a_json_that_names_none_of_the_pictures_is_refused(uris: list[str], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        ids_of_images(uris, "/p", IDS)
    assert f"coco.json: names none of the {len(uris)} pictures below /p {words}; give" in str(
        caught.value
    )
    with pytest.raises(UsageError, match="it lists no picture"):
        ids_of_images(uris, "/p", CocoIds("coco.json", {}, {}))


def test_ids_of_classes_are_those_of_the_same_name() -> None:
    model = [("cat", 1), ("dog", 2)]
    assert category_ids(model, None) == [1, 2]
    assert category_ids(model, CocoIds("coco.json", {}, {})) == [1, 2]
    assert category_ids(model, IDS) == [9, 4]


def test_classes_that_the_json_does_not_have_need_a_map() -> None:
    model = [("cat", 1), ("bull", 2), ("bird", 3)]
    with pytest.raises(
        UsageError, match="lists no class 'bull', 'bird' of the model, it has 'dog'"
    ):
        category_ids(model, IDS)
    assert category_ids(model, IDS, given={"cow": "bull"}) == [9, 1, None]
    with pytest.raises(
        UsageError, match="--classes: 'ox' is no class of coco.json, which has 'dog'"
    ):
        category_ids(model, IDS, given={"ox": "bull"})
    with pytest.raises(
        UsageError, match="--classes: 'bul' is no class of the model, which has 'bull'$"
    ):
        category_ids(model, IDS, given={"cow": "bul"})
    with pytest.raises(UsageError, match="'bull' is given for two classes of coco.json"):
        category_ids(model, IDS, given={"cow": "bull", "dog": "bull"})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([], "has no list 'images'; give a COCO JSON"),
        ({"annotations": []}, "has no list 'images'; give a COCO JSON"),
        (
            {"images": [{"file_name": "a.jpg"}]},
            r"images\[0\] must have 'file_name', a text, and 'id'",
        ),
        ({"images": [{"file_name": 5, "id": 1}]}, r"images\[0\] must have 'file_name'"),
        ({"images": ["a.jpg"]}, r"images\[0\] must have 'file_name'"),
        ({"images": [], "categories": [7]}, r"categories\[0\] must have 'name'"),
        ({"images": [{"file_name": "a", "id": 10**30}]}, r"images\[0\] must have .* of 64 bits"),
        ({"images": [], "categories": [{"id": 1}]}, r"categories\[0\] must have 'name'"),
        (
            {"images": [{"file_name": "a", "id": 1}, {"file_name": "a", "id": 2}]},
            "images has two ids for 'a'; keep one",
        ),
    ],
)
def test_a_file_that_is_no_coco_json_is_refused(tmp_path: Path, content: Any, words: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=words):
        read_coco_ids(str(tmp_path / "a.json"))


def test_pictures_of_lvis_are_named_by_their_url(tmp_path: Path) -> None:
    content = {"images": [{"coco_url": "http://example.org/val2017/a.jpg", "id": 7}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert read_coco_ids(str(tmp_path / "a.json")).images == {"val2017/a.jpg": 7}


def test_the_ids_of_a_json(tmp_path: Path) -> None:
    content = {
        "images": [{"file_name": "a.jpg", "id": 7.0}],
        "categories": [{"id": "3", "name": "cat", "supercategory": "pet"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert read_coco_ids(str(tmp_path / "a.json")) == CocoIds(
        str(tmp_path / "a.json"), {"a.jpg": 7}, {"cat": 3}
    )
