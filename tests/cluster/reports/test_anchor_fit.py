"""Objects that no anchor fits are named, with the setting that mends it."""

from __future__ import annotations

import numpy as np
import pytest

from cluster.reports.anchor_fit import View, best_iou_of_objects, warning
from cluster.shards.statistics import Annotations
from detector.image_config import CanvasConfig
from detector.model_config import AnchorConfig

SQUARE = AnchorConfig(ratios=(1.0,), scales=(1.0,))
"""One square anchor of 32, 64, 128, 256 or 512 px a position."""


def objects(*sides: tuple[float, float], labels: list[int] | None = None) -> Annotations:
    """One object of (width, height) px in the middle of each picture of 256 x 256 px."""
    count = len(sides)
    boxes = [[128 - w / 2, 128 - h / 2, 128 + w / 2, 128 + h / 2] for w, h in sides]
    return Annotations(
        heights_I=np.full(count, 256),
        widths_I=np.full(count, 256),
        image_N=np.arange(count),
        boxes_N4=np.array(boxes, np.float32).reshape(-1, 4),
        labels_N=np.array(labels or [0] * count, np.int64),
        crowd_N=np.zeros(count, bool),
        area_N=np.ones(count),
    )


def view(side: int, **anchors: object) -> View:
    return View(CanvasConfig(height=side, width=side), SQUARE.model_copy(update=anchors))


def test_the_iou_is_that_on_the_canvas_of_each_image() -> None:
    # 16 x 16 doubled on the canvas of 512 x 512. Its centre is a position of P3, so the anchor of
    # 32 x 32 is the same box.
    doubled = best_iou_of_objects(objects((16, 16)), view(512))
    assert doubled.tolist() == [1.0]
    # Two canvases: the picture takes the larger one.
    both = CanvasConfig(shapes=((256, 256), (512, 512)))
    assert best_iou_of_objects(objects((16, 16)), View(both, SQUARE)).tolist() == [1.0]
    # At most 256 px long on it, as in the file: 16 x 16 has 256 of the 1024 px^2 of the anchor.
    short = both.model_copy(update={"long_side": 256})
    assert best_iou_of_objects(objects((16, 16)), View(short, SQUARE)).tolist() == [0.25]


def test_nothing_is_said_where_the_anchors_fit() -> None:
    assert warning(objects(*[(32, 32)] * 20), ["cell"], view(256)) is None
    assert warning(objects(), ["cell"], view(256)) is None
    # Four objects are too few to speak of, and so is a quarter of a class.
    assert warning(objects(*[(8, 8)] * 4), ["cell"], view(256)) is None
    assert warning(objects(*[(8, 8)] * 5, *[(32, 32)] * 15), ["cell"], view(256)) is None


@pytest.mark.parametrize(
    ("side", "sides", "remedy"),
    [
        # 16 x 16 is the half of 32; 8 x 8 the quarter.
        (256, (16, 16), "with --model.anchors.base_sizes 16,32,64,128,256 it would be 0% "),
        (256, (8, 8), "with --model.anchors.base_sizes 8,16,32,64,128 it would be 0% "),
        # Six times as wide as high: no square fits.
        (256, (240, 40), "with --model.anchors.ratios 0.4,1,2.5 it would be 0% "),
        # A pixel or two: nothing helps.
        (256, (1, 1), "try other --model.anchors.* and a larger --canvas"),
    ],
)
def test_a_class_without_anchors_is_named_with_what_mends_it(
    side: int, sides: tuple[float, float], remedy: str
) -> None:
    labels = [0] * 10 + [1] * 10
    said = warning(
        objects(*[(32, 32)] * 10, *[sides] * 10, labels=labels), ["cat", "cell"], view(side)
    )
    assert said is not None and said.startswith(
        "many objects of 'cell' (100%) have no anchor with an IoU of 0.4 on the canvas of"
        " 256 x 256 px"
    )
    assert remedy in said


def test_other_anchors_come_before_a_larger_canvas() -> None:
    # Both halve every object against its anchor; smaller anchors cost nothing.
    said = warning(objects(*[(16, 16)] * 10), ["cell"], view(128))
    assert said is not None and "--model.anchors.base_sizes" in said
