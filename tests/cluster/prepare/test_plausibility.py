"""Sets that are wrong as a whole are named, and good sets are not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from cluster.formats.annotations import Annotation, ImageRecord, Source, images_of_records
from cluster.formats.read import MergedSources, SourcePaths, read_sources
from cluster.prepare.plausibility import implausible
from cluster.shards.format import Category
from cluster.shards.index import IndexedSource

Box = tuple[float, float, float, float]
GOOD: tuple[Box, ...] = ((10, 10, 40, 50), (1, 2, 30, 40))
"""XYXY px on a picture of 96 x 64."""


def warnings(
    *boxes: Sequence[Box],
    format: str = "coco",
    names: Sequence[str] = ("cat",),
    crowd: bool = False,
    area: float | None = None,
    normalised: bool = False,
    size: tuple[int, int] | None = (64, 96),
) -> tuple[str, ...]:
    """What is said about images with these boxes; the labels go round."""
    height, width = size or (None, None)
    number = 0
    records = []
    for image_id, of_image in enumerate(boxes):
        annotations = []
        for box in of_image:
            annotations.append(Annotation(number, number % len(names), box, crowd, area))
            number += 1
        records.append(ImageRecord(image_id, f"{image_id}.jpg", height, width, tuple(annotations)))
    source = Source(
        categories=tuple(Category(label, label, name) for label, name in enumerate(names)),
        images=images_of_records(records, normalised=normalised),
        quarantined=(),
        repairs={},
        listed=len(records),
        annotated=number,
        lost=0,
        largest_id=len(records),
        digest="",
    )
    found = implausible(MergedSources(source, (IndexedSource("one", format, digest=""),)))
    return tuple(finding.sentence for finding in found)


@pytest.mark.parametrize("format", ["coco", "voc", "yolo"])
def test_a_good_set_has_no_warning(format: str) -> None:
    assert warnings(GOOD, (), GOOD[:1], format=format) == ()
    assert warnings(GOOD, format=format, names=("cat", "dog"), area=400.0) == ()


def test_the_synthetic_set_has_no_warning(small_coco: Path) -> None:
    for split in ("train", "val"):
        path = SourcePaths(
            "one",
            "coco",
            f"{small_coco}/annotations/instances_{split}.json",
            f"{small_coco}/images/{split}",
        )
        assert implausible(read_sources([path])) == ()


def test_nothing_to_learn() -> None:
    (line,) = warnings((), ())
    assert line.startswith("none of the 2 images has an annotation, so there is nothing to learn")
    (line,) = warnings(GOOD, crowd=True)
    assert line.startswith("all 2 boxes are crowds, areas that are ignored")


def test_almost_no_image_is_annotated() -> None:
    (line,) = warnings(GOOD, *[()] * 19)
    assert line.startswith("19 of 20 images have no objects and count as background")
    # A tenth is annotated; a set of nine images is too small to tell.
    assert warnings(GOOD, GOOD, *[()] * 18) == warnings(GOOD, *[()] * 8) == ()


def test_corners_in_a_coco_file() -> None:
    # x1, y1, x2, y2 of GOOD read as x, y, width, height: (10, 10, 40, 50) becomes x2 = 50, y2 = 60;
    # (60, 30, 90, 60) becomes x2 = 150, which is outside.
    read_wrong = [(10, 10, 50, 60), (60, 30, 150, 90)]
    (line,) = warnings(read_wrong)
    assert line.startswith(
        "one: 1 of 2 boxes leave their picture as x, y, width, height, the order of coco, and none"
        " does as x1, y1, x2, y2"
    )
    # Without the sizes of the pictures nobody can tell.
    assert warnings(read_wrong, size=None) == ()
    # A box that as corners would end before it begins: these are widths and heights.
    assert warnings([*read_wrong, (50, 40, 60, 50)]) == ()


@pytest.mark.parametrize(
    ("format", "boxes", "order"),
    [
        # Corners 0.2, 0.3, 0.7, 0.8 read as centre, width, height: 0.2 - 0.7 / 2 = -0.15.
        ("yolo", [(-0.15, -0.1, 0.55, 0.7)], "x1, y1, x2, y2"),
        # Left, top, width, height 0.1, 0.5, 0.6, 0.4: 0.1 - 0.3 = -0.2.
        ("yolo", [(-0.2, 0.3, 0.4, 0.7)], "x, y, width, height"),
        # Centre 80, 40, width 30, height 40 on 96 x 64 px read as x, y, width, height.
        ("coco", [(80, 40, 110, 80)], "centre x, centre y, width, height"),
        # x, y, width, height 60, 30, 20, 30 read as corners: the last is left of the first.
        ("csv", [(60, 30, 20, 30)], "x, y, width, height"),
    ],
)
def test_numbers_of_boxes_in_another_order(format: str, boxes: list[Box], order: str) -> None:
    (line,) = warnings(boxes, format=format, normalised=format == "yolo")
    assert f"and none does as {order}: they are probably that" in line


def test_an_image_that_is_listed_twice() -> None:
    records = [
        ImageRecord(n, "a.jpg", 64, 96, (Annotation(n, 0, GOOD[n], False, None),)) for n in (0, 1)
    ]
    source = Source(
        categories=(Category(0, 0, "cat"),),
        images=images_of_records(records),
        quarantined=(),
        repairs={},
        listed=2,
        annotated=2,
        lost=0,
        largest_id=1,
        digest="",
        doubts=("classes.txt and data.yaml differ",),
    )
    doubt, line = implausible(MergedSources(source, (IndexedSource("one", "coco", digest=""),)))
    assert doubt.sentence == "classes.txt and data.yaml differ"
    assert line.sentence.startswith("1 file names are those of several images (such as a.jpg)")


def test_shares_of_the_picture() -> None:
    (line,) = warnings([(0.1, 0.2, 0.5, 0.9), (0, 0, 1, 1)])
    assert line.startswith("one: all 2 boxes lie within one pixel")
    (line,) = warnings([(0.1 - 1, 0.2 - 1, 0.5, 0.9)], format="voc")
    assert line.startswith("one: all 1 boxes lie within one pixel")
    assert warnings([(0.1, 0.2, 0.5, 0.9)], normalised=True, format="yolo") == ()
    assert warnings([(0.1, 0.2, 0.5, 0.9), (0, 0, 9, 9)]) == ()


def test_a_voc_set_that_counts_from_zero() -> None:
    (line,) = warnings([(-1, 3, 20, 30), *GOOD], format="voc")
    assert line.startswith("one: 1 of 3 boxes begin at pixel 0, but VOC counts from 1")
    assert warnings([(0, 0, 96, 64)], format="voc") == ()


@pytest.mark.parametrize(("area", "wrong"), [(0.0, 2), (1.0, 2), (99999.0, 2), (700.0, 0)])
def test_areas_that_do_not_fit_their_boxes(area: float, wrong: int) -> None:
    # The boxes have 1200 and 1102 px^2.
    found = warnings(GOOD, area=area)
    assert bool(found) == bool(wrong)
    if wrong:
        assert found[0].startswith(f"{wrong} of 2 areas do not fit their boxes")


def test_boxes_that_are_there_more_than_once() -> None:
    (line,) = warnings(GOOD * 3)
    assert line.startswith("4 of 6 boxes repeat another box of the same image and class")
    # The same box in another image, or of another class, is another object.
    assert warnings(GOOD, GOOD) == warnings(GOOD[:1] * 2, names=("cat", "dog")) == ()


def test_names_that_look_alike() -> None:
    names = ("dog", "dog ", "Dog", "caf\u00e9", "cafe\u0301", "cow")
    (line,) = warnings(GOOD * 3, names=names)
    assert line == (
        "classes whose names differ in case, blanks or Unicode form alone: 'dog', 'dog ', 'Dog';"
        " 'caf\\xe9', 'cafe\\u0301'; are they meant to be different?"
    )
    (line,) = warnings(GOOD, names=("cow", " "))
    assert line == "a class without a name: ' '; are they meant to be different?"


def test_classes_without_an_object() -> None:
    (line,) = warnings(GOOD, names=("a", "b", "c", "d"))
    assert line == "2 of 4 classes have no object here: 'c', 'd'"
