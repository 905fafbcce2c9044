"""Boxes are placed as training places them, and a sample stands for all of them."""

from __future__ import annotations

import numpy as np
import pytest

from cluster.reports.anchor_fit import View, best_iou_of_objects
from detector.image_config import CanvasConfig
from detector.model_config import AnchorConfig
from tests.support.box_sets import annotations, coco_like
from tune.anchors import DIFFERENCE_ERROR, RECALL_ERROR, SAMPLE
from tune.placed_boxes import PlacedBoxes, fit_of, place_boxes, sample_boxes

CANVAS = CanvasConfig(height=480, width=640)
RULE = {"foreground": 0.5, "background": 0.4}


def drawn(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def boxes(*sides: tuple[float, float]) -> PlacedBoxes:
    """One box of (width, height) px around the position (320, 256), which all levels have but the
    coarsest, on the canvas of 480 x 640 px.
    """
    corners = [[320 - w / 2, 256 - h / 2, 320 + w / 2, 256 + h / 2] for w, h in sides]
    count = len(sides)
    return PlacedBoxes(
        CANVAS.canvases,
        np.array(corners, np.float32),
        np.zeros(count, np.int64),
        np.arange(count) % 3,
    )


def test_without_augmentation_boxes_are_where_evaluation_has_them() -> None:
    objects = annotations(coco_like(500))
    for canvas in (CANVAS, CanvasConfig(shapes=((320, 320), (480, 640))), CanvasConfig()):
        placed = place_boxes(objects, canvas=canvas, generator=drawn())
        expected = View(canvas, AnchorConfig()).place(objects).boxes(objects)
        assert placed.boxes_N4 == pytest.approx(expected, abs=1e-3)
        assert placed.size_N.tolist() == objects.size_N.tolist()


def test_an_enlarged_picture_is_cropped_at_random() -> None:
    # 640 x 480 doubled is 1280 x 960: 640 and 480 px are cut away, at a random side.
    objects = annotations(np.tile([300.0, 220, 340, 260], (400, 1)), per_image=1)
    placed = place_boxes(objects, canvas=CANVAS, scale_range=(2.0, 2.0), generator=drawn())
    corners = placed.boxes_N4[:, :2]
    whole = (placed.boxes_N4[:, 2:] - corners == 80).all(axis=1)
    assert whole.mean() > 0.7
    # The corner is at (600, 440) less the offset, in whole px.
    assert (corners == np.rint(corners)).all()
    assert corners[whole].min() >= 0 and len(np.unique(corners[:, 0])) > 100
    # Boxes that are cut away to less than a quarter are not learnt; the others end at the canvas.
    assert placed.boxes_N4.min() >= 0 and (placed.boxes_N4 <= [640, 480] * 2).all()
    strict = place_boxes(
        objects, canvas=CANVAS, scale_range=(2.0, 2.0), min_visible=1.0, generator=drawn()
    )
    assert len(strict) == whole.sum()


def test_a_short_side_is_limited_by_what_fits() -> None:
    objects = annotations(np.array([[0.0, 0, 64, 48]]))
    half = place_boxes(objects, canvas=CANVAS, short_sides=(240, 240), generator=drawn())
    assert half.boxes_N4.tolist() == [[0, 0, 32, 24]]
    limited = place_boxes(objects, canvas=CANVAS, short_sides=(900, 900), generator=drawn())
    assert limited.boxes_N4.tolist() == [[0, 0, 64, 48]]


def test_the_fit_by_hand() -> None:
    one = AnchorConfig(strides=(8,), base_sizes=(32.0,), scales=(1.0,), ratios=(1.0,))
    # IoU with 32 x 32 around the same position: 1; 14 / 32 = 0.4375, three eighths of the way from
    # 0.4 to 0.5; 8 / 32 = 0.25.
    fit = fit_of(boxes((32, 32), (14, 32), (8, 32)), one, **RULE)
    assert (fit.objects, fit.recalled) == ((1, 1, 1), (1, 0, 0))
    assert fit.iou == pytest.approx((1, 0.4375, 0.25))
    assert fit.worth == pytest.approx((1, 0.375 * 0.4375, 0), abs=1e-6)
    assert fit.recall == pytest.approx(1 / 3)
    assert fit.recall_by_size == {"small": 1.0, "medium": 0.0, "large": 0.0}
    none = fit_of(boxes((32, 32)), one, **RULE).recall_by_size
    assert none == {"small": 1.0, "medium": None, "large": None}
    # One threshold: no ramp between them.
    assert fit_of(boxes((14, 32)), one, foreground=0.4, background=0.4).worth[0] == 0.4375


def test_the_fits_of_parts_add_up_to_that_of_the_whole() -> None:
    whole = place_boxes(annotations(coco_like(1000)), canvas=CANVAS, generator=drawn())
    parts = whole.split(300)
    assert [len(part) for part in parts] == [300, 300, 300, 100]
    fits = [fit_of(part, AnchorConfig(), **RULE) for part in parts]
    total, fit = sum(fits[1:], fits[0]), fit_of(whole, AnchorConfig(), **RULE)
    assert (total.objects, total.recalled) == (fit.objects, fit.recalled)
    assert total.worth == pytest.approx(fit.worth) and total.iou == pytest.approx(fit.iou)


def test_the_fit_is_that_of_the_report() -> None:
    objects = annotations(coco_like(2000))
    placed = place_boxes(objects, canvas=CANVAS, generator=drawn())
    exact = best_iou_of_objects(objects, View(CANVAS, AnchorConfig()))
    fit = fit_of(placed, AnchorConfig(), **RULE)
    assert fit.recall == pytest.approx((exact >= 0.5).mean(), abs=1e-9)
    assert fit.mean_iou == pytest.approx(exact.mean(), abs=1e-6)


def test_a_sample_is_as_near_to_the_whole_as_stated() -> None:
    objects = annotations(coco_like(30_000))
    whole = place_boxes(objects, canvas=CanvasConfig(), generator=drawn())
    usual = AnchorConfig()
    other = usual.model_copy(update={"base_sizes": tuple(0.8 * s for s in usual.base_sizes)})

    def recalls(some: PlacedBoxes) -> np.ndarray:
        return np.array([fit_of(some, anchors, **RULE).recall for anchors in (usual, other)])

    exact = recalls(whole)
    samples = [sample_boxes(whole, SAMPLE, drawn(seed)) for seed in range(16)]
    error = np.stack([recalls(sample) - exact for sample in samples])
    # The standard deviation of 16 numbers is known to 18 %, so 1.5 times the stated one is ample.
    assert np.sqrt((error**2).mean(axis=0)).max() < 1.5 * RECALL_ERROR
    assert np.sqrt(((error[:, 0] - error[:, 1]) ** 2).mean()) < 1.5 * DIFFERENCE_ERROR


def test_a_sample_has_each_stratum_in_its_share() -> None:
    # A tenth is 16 times as large: 30 of 300, whatever is drawn; plain drawing varies by 5.
    some = boxes(*[(16, 16)] * 2700, *[(256, 256)] * 300)
    for seed in range(5):
        sample = sample_boxes(some, 300, drawn(seed))
        widths = sample.boxes_N4[:, 2] - sample.boxes_N4[:, 0]
        assert len(sample) == 300 and (widths == 256).sum() == 30
    assert sample_boxes(some, 3000, drawn()) is some
