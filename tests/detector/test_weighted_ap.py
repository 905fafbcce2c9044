"""A set in which images stand several times or not at all has, to the last digit, the AP of a set
in which each copy is an image of its own, scored from scratch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from detector.coco_matching import match
from detector.decode import Detections
from detector.metrics import Truth, coco_table
from detector.weighted_ap import NAMES, _curve, _hits_needed, weighted_scores
from tests.detector.test_metrics_exact import CASES, by_pycocotools, names_of, random_case

OBJECT = np.array([[0.0, 0.0, 10.0, 10.0]])
ELSEWHERE = OBJECT + 50


def copies_of(
    truths: Sequence[Truth], detections: dict[int, Detections], counts_I: np.ndarray
) -> tuple[list[Truth], dict[int, Detections]]:
    """Every copy an image with an id of its own, copies side by side, in the order of the images;
    `counts_I` is in the order of the image ids.
    """
    truths = sorted(truths, key=lambda t: t.image_id)
    drawn = [truths[index] for index in np.repeat(np.arange(len(truths)), counts_I)]
    return (
        [replace(one, image_id=new_id) for new_id, one in enumerate(drawn)],
        {i: detections[one.image_id] for i, one in enumerate(drawn) if one.image_id in detections},
    )


def some_counts(images: int, seed: int) -> np.ndarray:
    """The set itself, two draws, and one that has few images many times."""
    random = np.random.default_rng(seed)
    rows = [np.ones(images), *random.multinomial(images, np.full(images, 1 / images), size=2)]
    few = np.where(random.random(images) < 0.2, random.integers(1, 9, images), 0)
    return np.array([*rows, few], np.int32)


def found(table_row: dict[str, float | None]) -> list[float]:
    return [np.nan if table_row[name] is None else table_row[name] for name in NAMES]


@pytest.mark.parametrize(("kind", "size", "seed"), CASES)
def test_the_numbers_are_those_of_scoring_from_scratch(kind, size, seed):
    truths, detections, classes = random_case(kind, size, seed)
    names = names_of(classes)
    limit = 5 if seed % 2 else 100
    matches = match(truths, detections, names, max_detections=limit)
    counts_BI = some_counts(len(truths), seed)
    scores = weighted_scores(matches, counts_BI, names=NAMES)
    for b, counts_I in enumerate(counts_BI):
        drawn = copies_of(truths, detections, counts_I)
        table = coco_table(*drawn, names, max_detections=[limit])
        ours = [scores[name].of_all_B[b] for name in NAMES]
        assert np.array_equal(ours, found(table.summary), equal_nan=True)
        for k, name in enumerate(names):
            ours = [scores[each].per_class_BK[b, k] for each in NAMES]
            assert np.array_equal(ours, found(table.per_class[name]), equal_nan=True)


@pytest.mark.parametrize("kind", ["free", "lattice"])
@pytest.mark.parametrize("seed", [1, 2])
def test_pycocotools_says_the_same(kind, seed):
    truths, detections, classes = random_case(kind, "many", seed)
    counts_BI = some_counts(len(truths), seed)
    scores = weighted_scores(
        match(truths, detections, names_of(classes)), counts_BI, names=NAMES, threads=1
    )
    for b, counts_I in enumerate(counts_BI[:3]):
        drawn = copies_of(truths, detections, counts_I)
        stats = by_pycocotools(*drawn, classes, [1, 10, 100]).stats[: len(NAMES)]
        ours = [scores[name].of_all_B[b] for name in NAMES]
        assert np.array_equal(ours, np.where(stats == -1, np.nan, stats), equal_nan=True)


def test_the_cases_hold_ties_and_numbers_without_objects():
    tied, missing = 0, 0
    for case in CASES:
        truths, detections, classes = random_case(*case)
        matches = match(truths, detections, names_of(classes))
        counts_BI = some_counts(len(truths), case[2])
        tied += sum(len(_curve(of, 0, counts_BI.max(axis=0)).tied_N) for of in matches.classes)
        missing += int(np.isnan(weighted_scores(matches, counts_BI)["AP"].per_class_BK).sum())
    assert tied > 100 and missing > 10


def test_a_hit_and_a_false_alarm_with_equal_scores_are_taken_copy_by_copy():
    truths = [Truth(1, 99, 99, OBJECT, *(np.array([v]) for v in (0, False, 100.0)))]
    its = Detections(np.concatenate([ELSEWHERE, OBJECT]), np.array([0.5, 0.5]), np.array([0, 0]))
    scores = weighted_scores(match(truths, {1: its}, ["a"]), np.array([[1], [2]]))
    # Once: false alarm, hit, precision 1/2 at all recalls. Twice: false alarm, hit, false alarm,
    # hit, precision 1/2 after each hit; with both false alarms in front it would be 1/3 and 1/2.
    assert scores["AP"].of_all_B.tolist() == [0.5, 0.5]
    its = replace(its, boxes_N4=its.boxes_N4[::-1])
    scores = weighted_scores(match(truths, {1: its}, ["a"]), np.array([[1], [2]]))
    # Twice: hit, false alarm, hit, false alarm: precision 1 at recalls up to 1/2, which are 51 of
    # the 101, and 2/3 at the 50 others; with both hits in front it would be 1 everywhere.
    once, twice = scores["AP"].of_all_B
    assert once == pytest.approx(1) and twice == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_the_hits_that_a_recall_needs_are_those_of_a_search_in_the_quotients():
    objects_B = np.array([*range(1, 400), 1000, 36_335])
    recalls = np.linspace(0, 1, 101)
    for objects, needed_R in zip(objects_B, _hits_needed(objects_B), strict=True):
        quotients = np.arange(objects + 1) / objects
        assert np.array_equal(needed_R, np.maximum(np.searchsorted(quotients, recalls), 1))


def test_an_image_that_is_not_drawn_does_not_count():
    truths, detections, classes = random_case("free", "many", 0)
    truths = sorted(truths, key=lambda t: t.image_id)
    counts_I = np.arange(len(truths)) % 2
    kept = [one for one, count in zip(truths, counts_I, strict=True) if count]
    fewer = {t.image_id: detections[t.image_id] for t in kept if t.image_id in detections}
    ones = np.ones((1, len(kept)))
    whole, part = (
        weighted_scores(match(its, some, names_of(classes)), counts, names=NAMES)
        for its, some, counts in ((truths, detections, counts_I[None]), (kept, fewer, ones))
    )
    for name in NAMES:
        assert np.array_equal(whole[name].per_class_BK, part[name].per_class_BK, equal_nan=True)
