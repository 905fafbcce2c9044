"""Thresholds: the F1 of each is the best there is, and a wished precision is reached."""

from __future__ import annotations

import json

import numpy as np
import pytest

from detector.coco_matching import HIT, IGNORED
from detector.decode import Detections
from detector.metrics import Truth
from detector.operating_points import (
    Thresholds,
    f1_thresholds,
    kept,
    threshold_curve,
    thresholds,
)
from detector.pairing import pair
from tests.detector.test_metrics_exact import names_of, random_case
from tests.support.judged_sets import NAMES, judged_set


def plain_numbers(pairing, label: int, threshold: float) -> tuple[float, float, float]:
    """Precision, recall and F1, counted one by one."""
    hits = alarms = 0
    for its, score, outcome in zip(
        pairing.label_D, pairing.score_D, pairing.outcome_D, strict=True
    ):
        if its == label and score >= threshold and outcome != IGNORED:
            hits, alarms = hits + (outcome == HIT), alarms + (outcome != HIT)
    missed = sum(its == label for its in pairing.label_G) - hits
    f1 = 2 * hits / (2 * hits + alarms + missed)
    return hits / (hits + alarms), hits / (hits + missed), f1


@pytest.mark.parametrize("seed", range(3))
def test_no_other_threshold_has_a_higher_f1(seed: int):
    pairing = pair(*judged_set(seed, crowds=True), NAMES)
    for label, name in enumerate(NAMES):
        point = thresholds(pairing).classes[name]
        assert point is not None
        numbers = (point.precision, point.recall, point.f1)
        assert numbers == pytest.approx(plain_numbers(pairing, label, point.threshold))
        scores = pairing.score_D[(pairing.label_D == label) & (pairing.outcome_D != IGNORED)]
        assert point.f1 == pytest.approx(max(plain_numbers(pairing, label, s)[2] for s in scores))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("crowds", [True, False])
def test_the_quick_way_to_f1_gives_the_same_thresholds(seed: int, crowds: bool):
    given = judged_set(seed, crowds=crowds)
    assert f1_thresholds(*given, NAMES) == thresholds(pair(*given, NAMES))


@pytest.mark.parametrize("kind", ["free", "lattice"])
@pytest.mark.parametrize("seed", range(4))
def test_the_quick_way_gives_the_same_on_ties_empty_images_and_odd_boxes(kind: str, seed: int):
    truths, detections, classes = random_case(kind, "many", seed)
    names = names_of(classes)
    quick = f1_thresholds(truths, detections, names)
    assert quick == thresholds(pair(truths, detections, names))


def test_a_wished_precision_is_reached_with_the_highest_recall():
    pairing = pair(*judged_set(1), NAMES)
    for label, name in enumerate(NAMES):
        point = thresholds(pairing, precision=0.6).classes[name]
        assert point is not None and point.precision >= 0.6
        curve = threshold_curve(pairing, label)
        assert point.recall == curve.recall_N[curve.precision_N >= 0.6].max()


def one_class(*scored: tuple[float, bool], objects: int):
    """Hits and false alarms with these scores; hits have an object each."""
    boxes = np.array([[20 * n, 0, 20 * n + 10, 10] for n in range(objects)], float).reshape(-1, 4)
    hits = iter(boxes)
    found = [next(hits) if right else np.array([0.0, 50, 10, 60]) for _, right in scored]
    truth = Truth(
        1, 99, 999, boxes, np.zeros(objects, int), np.zeros(objects, bool), np.full(objects, 100.0)
    )
    detections = Detections(
        np.array(found).reshape(-1, 4),
        np.array([score for score, _ in scored]),
        np.zeros(len(scored), int),
    )
    return pair([truth], {1: detections}, ("a", "b"))


def test_by_hand():
    pairing = one_class((0.9, True), (0.8, False), (0.8, True), (0.3, False), objects=4)
    # 0.9: 1 of 1, recall 1/4. 0.8, two of them: 2 of 3, 2/4. 0.3: 2 of 4, 2/4.
    curve = threshold_curve(pairing, 0)
    assert curve.threshold_N.tolist() == [0.9, 0.8, 0.3]
    assert curve.precision_N.tolist() == [1, 2 / 3, 1 / 2]
    assert curve.recall_N.tolist() == [1 / 4, 1 / 2, 1 / 2]
    # 2 x 2 / (3 + 4), where 2 x 1 / (1 + 4) and 2 x 2 / (4 + 4).
    chosen = thresholds(pairing)
    point = chosen.classes["a"]
    assert point is not None and (point.threshold, point.f1) == (0.8, pytest.approx(4 / 7))
    assert kept(pairing, chosen).tolist() == [True, True, True, False]
    assert chosen.classes["b"] is None and chosen.lowest("b") == np.inf
    precise = thresholds(pairing, precision=0.9).classes["a"]
    assert precise is not None and precise.threshold == 0.9


def test_a_precision_that_is_never_reached_gives_no_threshold():
    pairing = one_class((0.9, False), (0.5, True), objects=1)
    chosen = thresholds(pairing, precision=0.6)
    assert chosen.classes == {"a": None, "b": None} and not kept(pairing, chosen).any()
    assert thresholds(one_class((0.9, False), objects=1)).classes["a"] is None


def test_the_json_form_is_read_back_and_another_version_is_refused():
    chosen = thresholds(pair(*judged_set(), NAMES), precision=0.99)
    stored = json.loads(json.dumps(chosen.to_json()))
    assert stored["rule"] == "precision" and Thresholds.from_json(stored) == chosen
    with pytest.raises(ValueError, match="version 7 of thresholds is not known"):
        Thresholds.from_json({**stored, "version": 7})
