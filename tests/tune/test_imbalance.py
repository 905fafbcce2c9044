"""The measured imbalance against counts by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cluster.reports.anchor_fit import View
from cluster.shards.statistics import Annotations
from detector.image_config import CanvasConfig
from detector.model_config import AnchorConfig
from tune.imbalance import Imbalance, measure

# One level with a square anchor of 32 px at each of the 8 x 12 positions, 8 px apart.
SINGLE = AnchorConfig(strides=(8,), base_sizes=(32.0,), scales=(1.0,), ratios=(1.0,))
CANVAS = CanvasConfig(height=64, width=96)
SQUARE = (8.0, 8.0, 40.0, 40.0)
"""The anchor of the position at (24, 24) px."""


def annotations(*images: Sequence[tuple[float, ...]], crowds: bool = False) -> Annotations:
    """Images of 64 x 96 px with these boxes."""
    counts = [len(boxes) for boxes in images]
    boxes_N4 = np.array([box for boxes in images for box in boxes], np.float32).reshape(-1, 4)
    return Annotations(
        heights_I=np.full(len(images), 64),
        widths_I=np.full(len(images), 96),
        image_N=np.repeat(np.arange(len(images)), counts),
        boxes_N4=boxes_N4,
        labels_N=np.zeros(len(boxes_N4), np.int64),
        crowd_N=np.full(len(boxes_N4), crowds),
        area_N=np.ones(len(boxes_N4)),
    )


def test_positives_are_the_anchors_that_overlap_an_object_enough() -> None:
    # Shifted by 8 px along one axis an anchor covers 24/32 of the box: IoU 0.75 / 1.25 = 0.6, 4 of
    # them. By 8 px along both: 0.5625 / 1.4375 = 0.39. By 16 px along one: 0.5 / 1.5 = 0.33.
    found = measure(annotations([SQUARE]), View(CANVAS, SINGLE))
    assert found == Imbalance(anchors=96, positives=5)
    assert found.anchors_a_positive == 96 / 5
    # Above 0.6 only the anchor itself.
    assert measure(annotations([SQUARE]), View(CANVAS, SINGLE), positive_iou=0.7).positives == 1


def test_the_imbalance_is_a_mean_over_all_images_also_those_without_an_object() -> None:
    # On a canvas of twice the size the box has 64 px; no anchor reaches 0.5, its best ones are
    # those that lie inside it, 32 px in a box of 64: positions 8 px apart from 32 to 64 px.
    large = View(CanvasConfig(height=128, width=192), SINGLE)
    assert measure(annotations([SQUARE], []), large) == Imbalance(anchors=384, positives=25 / 2)
    assert measure(annotations([], []), large).anchors_a_positive is None


def test_a_crowd_is_no_object() -> None:
    view = View(CANVAS, SINGLE)
    assert measure(annotations([SQUARE], crowds=True), view) == Imbalance(anchors=96, positives=0)


def test_of_many_images_some_are_matched_from_the_first_to_the_last() -> None:
    view = View(CANVAS, SINGLE)
    # Images 0, 2 and 4 of five.
    some = measure(annotations([SQUARE], [], [SQUARE], [], []), view, most=3)
    assert some == Imbalance(anchors=96, positives=10 / 3)


def test_every_canvas_has_its_own_anchors() -> None:
    shapes = CanvasConfig(shapes=((64, 96), (64, 128)))
    wide = annotations([SQUARE], [SQUARE])
    wide.widths_I[1] = 128
    # 8 x 12 and 8 x 16 positions.
    assert measure(wide, View(shapes, SINGLE)) == Imbalance(anchors=(96 + 128) / 2, positives=5)
