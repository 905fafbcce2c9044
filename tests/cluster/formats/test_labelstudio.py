from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import DataError
from cluster.formats import labelstudio
from cluster.formats.annotations import Source
from cluster.shards.format import Category


def region(*labels: str, type_: str = "rectanglelabels", **value: Any) -> dict[str, Any]:
    box = {"x": 10, "y": 20, "width": 30, "height": 40, "rotation": 0, type_: list(labels)}
    return {"id": "r", "type": type_, "original_width": 640, "value": box | value}


def annotation(*results: Any, **fields: Any) -> dict[str, Any]:
    return {"was_cancelled": False, "result": list(results), **fields}


def task(id_: object, image: object, *annotations: Any, **fields: Any) -> dict[str, Any]:
    return {"id": id_, "data": {"image": image}, "annotations": list(annotations), **fields}


def read(folder: Path, *tasks: Any, pictures: tuple[str, ...] = ("a.jpg",)) -> Source:
    for name in pictures:
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "images" / name).touch()
    (folder / "tasks.json").write_text(json.dumps(tasks))
    return labelstudio.read_labelstudio(f"{folder}/tasks.json", f"{folder}/images")


def reasons(source: Source) -> list[tuple[str, str, str]]:
    return [(record.what, record.where, record.why) for record in source.quarantined]


def test_a_good_file(tmp_path: Path) -> None:
    source = read(
        tmp_path,
        task(9, "/data/upload/1/ab12cd34-a.jpg", annotation(region("dog"), region("cat"))),
        task(7, "/data/upload/1/ab12cd34-b.jpg", annotation()),
        pictures=("a.jpg", "b.jpg"),
    )
    assert source.categories == (Category(0, 1, "cat"), Category(1, 2, "dog"))
    empty, full = source.images
    assert (empty.image_id, empty.file_name, empty.annotations) == (7, "b.jpg", ())
    assert (full.image_id, full.file_name, full.normalised) == (9, "a.jpg", True)
    # 10 %, 20 %, 10 + 30 = 40 %, 20 + 40 = 60 %.
    assert [(one.id, one.label) for one in full.annotations] == [(1, 1), (2, 0)]
    assert full.annotations[0].box == pytest.approx((0.1, 0.2, 0.4, 0.6))
    assert (source.listed, source.annotated, source.lost, source.largest_id) == (2, 2, 0, 9)
    assert source.quarantined == () and source.repairs == {} and source.passed_over == {}


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("/data/upload/1/ab12cd34-cat.jpg", "cat.jpg"),
        ("/data/upload/1/ab12cd34-cat.jpg", "ab12cd34-cat.jpg"),
        ("/data/upload/1/ab12cd34-my_cat_1.jpg", "my cat (1).jpg"),
        ("/data/upload/1/ab12cd34-caf%C3%A9.jpg", "cafe\u0301.jpg"),
        ("s3://bucket/day/cat.jpg", "cat.jpg"),
        ("s3://bucket/day/cat.jpg", "day/cat.jpg"),
        ("https://server/x/cat.jpg?X-Amz-Signature=a%2Fb.png", "cat.jpg"),
        ("/data/local-files/?d=day%2Fcat.jpg", "deep/day/cat.jpg"),
        ("/data/local-files/?d=day\\cat.jpg", "day/cat.jpg"),
        ("cat.jpg", "cat.jpg"),
    ],
)
def test_the_picture_is_found_by_the_last_part_of_its_name(
    tmp_path: Path, address: str, name: str
) -> None:
    source = read(tmp_path, task(1, address, annotation(region("cat"))), pictures=(name, "b.jpg"))
    assert [one.file_name for one in source.images] == [name]


def test_of_several_pictures_the_one_in_the_same_folders_is_meant(tmp_path: Path) -> None:
    source = read(
        tmp_path,
        task(1, "s3://bucket/x/day/a.jpg", annotation(region("cat"))),
        task(2, "s3://bucket/x/dawn/a.jpg", annotation(region("cat"))),
        pictures=("day/a.jpg", "night/a.jpg"),
    )
    assert [one.file_name for one in source.images] == ["day/a.jpg"]
    ((_, where, why),) = reasons(source)
    assert where.endswith("dawn/a.jpg") and why.startswith("several pictures in the images folder")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (
            {"image": "/data/upload/1/ab12cd34-b.jpg"},
            "no picture in the images folder has the last",
        ),
        ({"image": "data:image/png;base64,AAAA"}, "its data names no picture"),
        ({"text": "hello"}, "its data names no picture"),
        (None, "its data names no picture"),
        ({"image": ["a.jpg"]}, "its data names no picture"),
        ({"image": "http://[/a.gif"}, "no picture in the images folder has the last part"),
        ({"photo": "a.jpg"}, "another task has the same picture"),
    ],
)
def test_a_task_without_a_picture_of_its_own_costs_itself_alone(
    tmp_path: Path, data: Any, why: str
) -> None:
    bad = {"id": 2, "data": data, "annotations": [annotation(region("cat"), region("cat"))]}
    source = read(tmp_path, task(1, "a.jpg", annotation(region("cat"))), bad)
    ((what, _, said),) = reasons(source)
    assert what == "image" and said.startswith(why)
    assert (source.listed, source.annotated, source.lost, len(source.images)) == (2, 3, 2, 1)


def test_the_newest_annotation_that_was_not_cancelled_counts(tmp_path: Path) -> None:
    source = read(
        tmp_path,
        task(
            1,
            "a.jpg",
            # The second is an hour later, though its text is smaller; the third was cancelled.
            annotation(region("first"), updated_at="2024-05-02T10:00:00.500Z"),
            annotation(region("second"), updated_at="2024-05-02T09:00:00-02:00"),
            annotation(region("third"), updated_at="2024-05-09T10:00:00Z", was_cancelled=True),
            annotation(region("fourth"), created_at="2023-05-02T10:00:00Z"),
            predictions=[{"result": [region("guess")]}],
        ),
    )
    assert [one.name for one in source.categories] == ["second"] and source.annotated == 1
    assert source.repairs == {"annotations of a task that has a newer one, which is taken": 2}


def test_without_times_the_last_annotation_counts(tmp_path: Path) -> None:
    both = (annotation(region("old"), updated_at=7), annotation(region("new"), updated_at="soon"))
    assert read(tmp_path, task(1, "a.jpg", *both)).categories[0].name == "new"


def test_a_task_that_nobody_has_annotated_is_no_empty_picture(tmp_path: Path) -> None:
    source = read(
        tmp_path,
        task(1, "a.jpg", annotation(region("cat"))),
        task(2, "b.jpg", predictions=[{"result": [region("cat")]}]),
        task(3, "c.jpg", annotation(region("cat"), was_cancelled=True)),
        {"id": 4, "data": {"image": "d.jpg"}, "annotations": "none"},
        pictures=("a.jpg", "b.jpg", "c.jpg", "d.jpg"),
    )
    assert [one.file_name for one in source.images] == ["a.jpg"] and source.listed == 1
    assert source.passed_over == {"a task without an annotation, or with cancelled ones alone": 3}
    with pytest.raises(DataError, match="none of its 1 tasks has an annotation that was not"):
        read(tmp_path, task(2, "a.jpg"))


@pytest.mark.parametrize(
    ("result", "why"),
    [
        (region("cat", rotation=15), "it is a turned box (rotation)"),
        (region("cat", x="wide"), "its x, y, width and height are not finite numbers"),
        (region("cat", width=None), "its x, y, width and height are not finite numbers"),
        (region("cat", x=float("nan")), "its x, y, width and height are not finite numbers"),
        (region("cat", x=1e300), "its x, y, width and height are not finite numbers"),
        (region("cat", points=[[1, 2], [3]]), "its x, y, width and height are not finite numbers"),
        (region(), "its region has not exactly one label"),
        (region("cat", "dog"), "its region has not exactly one label"),
        (region("\ud800"), "its region has not exactly one label"),
        (region("cat", type_="keypointlabels"), "it is a region of another type"),
        (region("cat", type_="brushlabels"), "it is a region of another type"),
        ({"type": "rectangle", "value": {"x": 1}}, "its region has not exactly one label"),
        ({"type": ["rectanglelabels"]}, "it is a region of another type"),
        ({"type": "rectanglelabels", "value": 7}, "its region has not exactly one label"),
        ("rectangle", "it is a region of another type"),
    ],
)
def test_a_bad_region_costs_itself_alone(tmp_path: Path, result: Any, why: str) -> None:
    source = read(tmp_path, task(1, "a.jpg", annotation(region("cat"), result)))
    ((what, where, said),) = reasons(source)
    assert (what, where) == ("annotation", "2 of a.jpg") and said.startswith(why)
    assert [one.id for one in source.images[0].annotations] == [1] and source.annotated == 2


def test_other_ways_to_draw_a_box(tmp_path: Path) -> None:
    points = [[10, 50], [30, 20], [20, 70]]
    polygon = {"type": "polygonlabels", "value": {"points": points, "polygonlabels": ["cat"]}}
    # A box whose label is a control of its own is there twice, under one id.
    bare = region(type_="rectangle")
    labelled = region("dog", type_="labels")
    choice = {"type": "choices", "value": {"choices": ["sunny"]}}
    source = read(tmp_path, task(1, "a.jpg", annotation(polygon, bare, labelled, choice)))
    boxes = [one.box for one in source.images[0].annotations]
    assert boxes[0] == (0.1, 0.2, 0.3, 0.7) and boxes[1] == pytest.approx((0.1, 0.2, 0.4, 0.6))
    assert [one.name for one in source.categories] == ["cat", "dog"] and len(boxes) == 2
    assert source.repairs == {"polygons, stored as their bounding boxes": 1}
    assert source.passed_over == {"a result for a whole picture, which is no object": 1}


def test_json_min(tmp_path: Path) -> None:
    def item(id_: int, image: str, updated_at: str, *labels: str) -> dict[str, Any]:
        boxes = [
            {"x": 10, "y": 20, "width": 30, "height": 40, "rotation": 0, "original_width": 640}
            | {"rectanglelabels": [label]}
            for label in labels
        ]
        fields = {"id": id_, "image": image, "annotator": 1, "updated_at": updated_at}
        return fields | ({"label": boxes} if boxes else {})

    source = read(
        tmp_path,
        item(3, "/data/upload/1/ab12cd34-a.jpg", "2024-05-02T10:00:00Z", "new"),
        item(3, "/data/upload/1/ab12cd34-a.jpg", "2024-05-01T10:00:00Z", "old"),
        item(4, "/data/upload/1/ab12cd34-b.jpg", "2024-05-01T10:00:00Z"),
        {"id": 5, "image": "/data/upload/1/ab12cd34-c.jpg"},
        pictures=("a.jpg", "b.jpg"),
    )
    assert [one.name for one in source.categories] == ["new"]
    assert [(one.image_id, len(one.annotations)) for one in source.images] == [(3, 1), (4, 0)]
    assert source.images[0].annotations[0].box == pytest.approx((0.1, 0.2, 0.4, 0.6))
    assert list(source.passed_over.values()) == [1]


@pytest.mark.parametrize("ids", [(None, 1), (3, 3), ("x", 1), (-1, 1)])
def test_ids_that_are_no_ids_are_counted(tmp_path: Path, ids: tuple[object, object]) -> None:
    names = ("a.jpg", "b.jpg")
    tasks = [
        task(id_, name, annotation(region("cat"))) for id_, name in zip(ids, names, strict=True)
    ]
    source = read(tmp_path, *tasks, pictures=names)
    assert [(one.image_id, one.file_name) for one in source.images] == [(1, "a.jpg"), (2, "b.jpg")]
    assert list(source.repairs.values()) == [2]


def test_a_list_of_classes_gives_their_order(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    both = annotation(region("cat"), region("cow"))
    source = read(tmp_path, task(1, "a.jpg", both))
    assert [one.name for one in source.categories] == ["dog", "cat"]
    assert reasons(source) == [("annotation", "2 of a.jpg", "its label is not in classes.txt")]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{}", "it holds no list of tasks; export it as JSON"),
        ("[]", "it holds no list of tasks"),
        ("[1, 2", "not valid JSON at line 1"),
        ("[1]", "no usable box in any task"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=why):
        labelstudio.read_labelstudio(f"{tmp_path}/a.json", str(tmp_path))


def test_regions_of_other_types_are_one_reason(tmp_path: Path) -> None:
    results = [region("cat", type_=type_) for type_ in ("brushlabels", "x\ud800", "brushlabels")]
    source = read(tmp_path, task(1, "a.jpg", annotation(region("cat"), *results)))
    assert len({entry.why for entry in source.quarantined}) == 1
    assert [entry.detail for entry in source.quarantined] == [
        "type brushlabels",
        "type x\\ud800",
        "type brushlabels",
    ]
