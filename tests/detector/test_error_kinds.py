"""Errors have the kinds and costs that the authors' own package gives them."""

from __future__ import annotations

import numpy as np
import pytest

from detector.coco_matching import FALSE_ALARM
from detector.decode import Detections
from detector.error_kinds import KINDS, MISSED, NONE, average_precision, error_kinds
from detector.metrics import Truth, coco_table
from detector.pairing import pair
from tests.detector.test_metrics_exact import names_of, random_case
from tests.support.judged_sets import NAMES, judged_set

# tidecv 1.0.1 on `judged_set(seed)`: TIDERun(truths, detections, 0.5, 0.1, TIDE.BOX, 100), its
# count_errors, fix_main_errors and fix_special_errors, in AP points.
RECORDED = {
    1: (
        43.360746979383556,
        {"class": 7, "box": 31, "both": 8, "duplicate": 8, "background": 27, "missed": 19},
        {
            "class": 2.3210122180731645,
            "box": 26.24474598939583,
            "both": 1.653351058915291,
            "duplicate": 0.8869276541193329,
            "background": 3.3568656302205113,
            "missed": 9.576489426007058,
            "false_alarms": 20.335622657580153,
            "misses": 24.25124272348048,
        },
    ),
    4: (
        41.95629253701545,
        {"class": 10, "box": 26, "both": 11, "duplicate": 11, "background": 27, "missed": 30},
        {
            "class": 5.454193645136208,
            "box": 16.48651256660419,
            "both": 1.5225040289966785,
            "duplicate": 2.0138320510019554,
            "background": 2.1623871462632707,
            "missed": 14.312822172583289,
            "false_alarms": 17.44964805704396,
            "misses": 29.559209492555404,
        },
    ),
}


@pytest.mark.parametrize("seed", RECORDED)
def test_kinds_and_costs_are_those_of_the_published_package(seed: int):
    """Where a recall falls on a step of the curve, the last bit decides: the package takes i / 100,
    COCO and we take i x 0.01. Neither of these two sets has such a recall.
    """
    truths, detections = judged_set(seed)
    found = error_kinds(pair(truths, detections, NAMES))
    ap50, counts, costs = RECORDED[seed]
    assert found.ap50 == pytest.approx(ap50 / 100, abs=1e-12)
    assert dict(zip(KINDS, found.count_K6.sum(axis=0).tolist(), strict=True)) == counts
    assert found.cost == {name: pytest.approx(c / 100, abs=1e-12) for name, c in costs.items()}


@pytest.mark.parametrize("kind", ["free", "lattice"])
@pytest.mark.parametrize("seed", range(4))
def test_the_ap_is_that_of_the_coco_table_and_each_false_alarm_has_one_kind(kind: str, seed: int):
    truths, detections, classes = random_case(kind, "many", seed)
    names = names_of(classes)
    pairing = pair(truths, detections, names)
    found = error_kinds(pairing)
    expected = coco_table(truths, detections, names).summary["AP50"]
    assert found.ap50 == pytest.approx(expected, abs=1e-12)
    np.testing.assert_array_equal(found.kind_D != NONE, pairing.outcome_D == FALSE_ALARM)
    assert found.count_K6[:, :MISSED].sum() == (pairing.outcome_D == FALSE_ALARM).sum()
    assert found.count_K6[:, MISSED].sum() == found.missed_G.sum()


def test_each_kind_by_hand():
    boxes = np.array([[0, 0, 10, 10], [50, 50, 60, 60], [100, 100, 110, 110]], float)
    truth = Truth(1, 200, 200, boxes, np.array([0, 0, 1]), np.zeros(3, bool), np.full(3, 100.0))
    rows = [
        ([0, 0, 10, 10], 0, 0.9),  # a hit
        ([0, 0, 10, 9], 0, 0.8),  # duplicate
        ([50, 50, 60, 54], 0, 0.7),  # box: IoU 0.4 with the second
        ([100, 100, 110, 110], 0, 0.6),  # class: it is a 1
        ([100, 100, 110, 103], 0, 0.5),  # both: IoU 0.3 with an object of class 1
        ([150, 150, 160, 160], 1, 0.4),  # background
    ]
    found = Detections(
        np.array([row[0] for row in rows], float),
        np.array([row[2] for row in rows]),
        np.array([row[1] for row in rows]),
    )
    errors = error_kinds(pair([truth], {1: found}, ("a", "b")))
    named = ["hit" if kind == NONE else KINDS[kind] for kind in errors.kind_D]
    assert named == ["hit", "duplicate", "box", "class", "both", "background"]
    # The second object is that of the box error, the third that of the class error.
    assert errors.object_D.tolist() == [-1, -1, 1, 2, -1, -1] and not errors.missed_G.any()
    # Class a: hit at 1 of 2 objects: recalls 0 to 0.5 are 51 of 101. Class b: 0.
    assert errors.ap50 == pytest.approx(51 / 101 / 2)
    # The class error becomes the hit of class b, with 0.6 before the background error.
    assert errors.cost["class"] == pytest.approx(1 / 2)
    # a: hit, duplicate, hit: precision 2/3 at recalls above 0.5, 50 of them.
    assert errors.cost["box"] == pytest.approx(50 * (2 / 3) / 101 / 2)
    assert errors.cost["missed"] == 0


def test_a_set_without_objects_has_no_ap_and_no_costs():
    truth = Truth(1, 9, 9, np.zeros((0, 4)), np.zeros(0, int), np.zeros(0, bool), np.zeros(0))
    found = Detections(np.array([[0, 0, 5, 5.0]]), np.array([0.5]), np.array([0]))
    errors = error_kinds(pair([truth], {1: found}, ("a",)))
    assert errors.ap50 is None and errors.cost == {}
    assert [KINDS[kind] for kind in errors.kind_D] == ["background"]
    assert average_precision(np.zeros(0, bool), 3) == 0 == average_precision(np.ones(1, bool), 0)
