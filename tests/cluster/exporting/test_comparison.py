"""Differences between two lists of detections, worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cluster.errors import PlainError
from cluster.exporting.comparison import Comparison, difference
from detector.decode import DecodeSettings, Detections

DECODE: DecodeSettings = {
    "score_threshold": 0.1,
    "top_per_level": 100,
    "nms_threshold": 0.5,
    "max_detections": 3,
}
ONE, TWO, THREE = ([0, 0, 10, 10], 0.9, 0), ([40, 0, 50, 10], 0.8, 1), ([80, 0, 90, 10], 0.7, 0)


def detections(*rows: tuple[list[float], float, int]) -> Detections:
    boxes, scores, labels = zip(*rows, strict=True) if rows else ((), (), ())
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(scores, np.float32),
        np.array(labels, np.int64),
    )


def test_the_order_of_detections_does_not_matter():
    assert difference(detections(ONE, TWO), detections(TWO, ONE), DECODE) == (0, 0, 0)
    assert difference(detections(), detections(), DECODE) == (0, 0, 0)


def test_the_largest_difference_of_a_class_is_found():
    moved = ([0, 0, 10.25, 10], 0.9, 0)
    assert difference(detections(ONE, TWO), detections(moved, TWO), DECODE) == (0.25, 0, 0)
    weaker = ([0, 0, 10, 10], 0.775, 0)
    box, score, ties = difference(detections(ONE), detections(weaker), DECODE)
    assert (box, ties) == (0, 0) and score == pytest.approx(0.125)
    other_class = ([0, 0, 10, 10], 0.9, 1)
    assert math.isinf(difference(detections(ONE), detections(other_class), DECODE)[0])


def test_a_detection_that_one_side_lacks_is_an_infinite_difference():
    for expected, found in [((ONE, TWO), (ONE,)), ((ONE,), (ONE, TWO)), ((ONE,), ())]:
        assert math.isinf(difference(detections(*expected), detections(*found), DECODE)[0])


def test_a_detection_at_a_limit_is_a_tie():
    at_threshold = ([80, 0, 90, 10], 0.10001, 0)
    assert difference(detections(ONE, at_threshold), detections(ONE), DECODE) == (0, 0, 1)
    # Both lists are full; their last ones have nearly the same score.
    other = ([0, 40, 10, 50], 0.69999, 1)
    full = detections(ONE, TWO, THREE), detections(ONE, TWO, other)
    assert difference(*full, DECODE) == (0, 0, 2)
    # A list that is not full lacks it for no reason.
    assert math.isinf(difference(full[0], detections(ONE, TWO), DECODE)[0])
    # IoU 20 / 3 * 10 / (200 - 200 / 3) = 0.5, the limit of NMS: it is kept or not.
    at_limit = ([10 / 3, 0, 10 + 10 / 3, 10], 0.5, 0)
    assert difference(detections(ONE, at_limit), detections(ONE), DECODE) == (0, 0, 1)
    # One that lies elsewhere by a little is no tie, whatever it overlaps.
    shifted = ([2, 0, 12, 10], 0.9, 0)
    assert difference(detections(ONE), detections(shifted), DECODE) == (2, 0, 0)


def test_a_check_without_a_detection_says_so():
    assert Comparison(4, 0, box=0.0, score=0.0, ties=0).text() == (
        "nothing is detected in 4 pictures, so nothing was compared"
    )


def test_a_difference_beyond_rounding_is_refused():
    Comparison(4, 20, box=9e-4, score=9e-4, ties=3).refuse("cells.onnx")
    with pytest.raises(PlainError, match="cells.onnx: 20 detections in 4 pictures .* 0.25 px") as e:
        Comparison(4, 20, box=0.25, score=0.0, ties=0).refuse("cells.onnx")
    assert e.value.exit_code == 1 and "\n" not in str(e.value)
