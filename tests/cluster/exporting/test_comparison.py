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
    both = detections(ONE, TWO)
    assert difference(both, detections(TWO, ONE), both, DECODE) == (0, 0, 0)
    assert difference(detections(), detections(), both, DECODE) == (0, 0, 0)


def test_small_differences_are_measured():
    # Sums of powers of two: exact in float32.
    one, two = ([0, 0, 10, 10], 0.5, 0), ([40, 0, 50, 10], 0.25, 1)
    moved = ([0, 0, 10 + 2**-11, 10], 0.5, 0)
    weaker = ([40, 0, 50, 10], 0.25 - 2**-12, 1)
    expected = detections(one, two)
    found = detections(moved, weaker)
    assert difference(expected, found, expected, DECODE) == (2**-11, 2**-12, 0)


def test_what_the_package_cannot_give_is_a_difference():
    for wrong, apart in [
        (([0, 0, 10.25, 10], 0.9, 0), 0.25),
        (([2, 0, 12, 10], 0.9, 0), 2),
        # The class is another one, and so is the nearest box of the class.
        (([0, 0, 10, 10], 0.9, 1), 40),
        (([0, 0, 10, 10], 0.9, 2), math.inf),
    ]:
        box, _, ties = difference(
            detections(ONE, TWO), detections(wrong, TWO), detections(ONE, TWO), DECODE
        )
        # The one that it should be has no reason to be missing, unless its score is in its place.
        assert box == apart and ties <= 1


def test_a_detection_that_one_side_lacks_is_a_difference():
    possible = detections(ONE, TWO, THREE)
    for expected, found in [((ONE, TWO), (ONE,)), ((ONE,), (ONE, TWO)), ((ONE,), ())]:
        lists = detections(*expected), detections(*found)
        assert math.isinf(difference(*lists, possible, DECODE)[0])


def test_a_detection_at_a_limit_is_a_tie():
    at_threshold = ([80, 0, 90, 10], 0.10001, 0)
    # IoU 20 / 3 * 10 / (200 - 200 / 3) = 0.5, the limit of NMS: it is kept or not.
    at_limit = ([10 / 3, 0, 10 + 10 / 3, 10], 0.5, 0)
    for extra in (at_threshold, at_limit):
        longer = detections(ONE, extra)
        assert difference(longer, detections(ONE), longer, DECODE) == (0, 0, 1)
        assert difference(detections(ONE), longer, longer, DECODE) == (0, 0, 1)


def test_of_two_possible_ones_with_the_same_score_either_may_be_chosen():
    other = ([0, 40, 10, 50], 0.70001, 1)
    lists = detections(ONE, TWO, THREE), detections(ONE, TWO, other)
    assert difference(*lists, detections(ONE, TWO, THREE, other), DECODE) == (0, 0, 2)
    # 40 px from the only possible one of its class.
    assert difference(*lists, detections(ONE, TWO, THREE), DECODE)[0] == 40


def test_a_check_without_a_detection_says_so():
    assert Comparison(4, 0, box=0.0, score=0.0, ties=0).text() == (
        "nothing is detected in 4 pictures, so nothing was compared"
    )


def test_a_difference_beyond_rounding_is_refused():
    Comparison(4, 20, box=9e-4, score=9e-4, ties=3).refuse("cells.onnx")
    with pytest.raises(PlainError, match="cells.onnx: 20 detections in 4 pictures .* 0.25 px") as e:
        Comparison(4, 20, box=0.25, score=0.0, ties=0).refuse("cells.onnx")
    assert e.value.exit_code == 1 and "\n" not in str(e.value)
