"""Intervals hold the true number as often as they say, and a paired difference sees what is better
and nothing else.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from detector.coco_matching import FALSE_ALARM, HIT, IOU_THRESHOLDS, ClassMatches, Matches, match
from detector.metrics import coco_table
from detector.resampling import (
    Interval,
    PairedDifference,
    draws,
    intervals,
    paired_difference,
    percentile_interval,
    resamples_for,
    said,
)
from detector.weighted_ap import NAMES
from tests.detector.test_metrics_exact import names_of, random_case


def one_object_an_image(hit_I: np.ndarray) -> Matches:
    """Each image has one object and one detection, a hit or a false alarm; hits score best."""
    images = len(hit_I)
    best_first = np.argsort(~hit_I, kind="stable")
    outcome_D = np.where(hit_I[best_first], HIT, FALSE_ALARM).astype(np.int8)
    outcome_STD = np.tile(outcome_D, (4, len(IOU_THRESHOLDS), 1))
    score_D = np.linspace(1, 0, images)
    one = ClassMatches(
        best_first, score_D, outcome_STD, np.arange(images), np.ones((4, images), bool)
    )
    return Matches(np.arange(images), ("a",), (one,))


def test_the_estimate_is_that_of_the_table_and_what_has_no_objects_has_no_interval():
    truths, detections, classes = random_case("free", "many", 1)
    names = names_of(classes)
    table = coco_table(truths, detections, names)
    found = intervals(match(truths, detections, names), seed=0, resamples=20)
    assert None in [row["AP"] for row in table.per_class.values()]
    for ours, theirs in [
        (found.summary, table.summary),
        *((found.per_class[name], table.per_class[name]) for name in names),
    ]:
        assert list(ours) == list(NAMES)
        for name, interval in ours.items():
            assert (interval and interval.estimate) == theirs[name]
            assert interval is None or 0 <= interval.low <= interval.high <= 1


def test_an_interval_of_95_percent_holds_the_true_number_about_as_often():
    """The textbook case, a proportion: with hits first and without an error among them, AP is the
    recall, in steps of 1/101. Its spread is that of the binomial distribution.
    """
    share, images, sets = 0.6, 100, 80
    true = (100 * share + 1) / 101
    random = np.random.default_rng(0)
    held, widths = 0, []
    for index in range(sets):
        matches = one_object_an_image(random.random(images) < share)
        interval = intervals(matches, seed=index, names=["AP"], resamples=200).summary["AP"]
        assert interval is not None
        held += interval.low <= true <= interval.high
        widths.append(interval.high - interval.low)
    # Binomial: 80 x 0.95 = 76 +- 2; the percentile interval of a proportion is a little narrow.
    assert 70 <= held <= 79
    normal = 2 * 1.96 * math.sqrt(share * (1 - share) / images)
    assert np.mean(widths) == pytest.approx(normal, rel=0.1)


def test_the_same_detections_differ_by_exactly_nothing():
    truths, detections, classes = random_case("lattice", "many", 1)
    matches = match(truths, detections, names_of(classes))
    difference = paired_difference(matches, matches, seed=3, resamples=50)
    assert difference == PairedDifference("AP", Interval(0.0, 0.0, 0.0, 0.95), 0.0)
    assert said(difference) == "not distinguishable (difference 0.000, 95 % 0.000 to 0.000)"


def test_what_finds_more_is_better_and_the_other_way_round_worse():
    random = np.random.default_rng(5)
    hit_I = random.random(300) < 0.5
    more = one_object_an_image(hit_I | (random.random(300) < 0.1))
    less = one_object_an_image(hit_I)
    difference = paired_difference(less, more, seed=0, resamples=200)
    assert difference is not None and difference.share_above_zero == 1
    assert 0 < difference.interval.low < difference.estimate < difference.interval.high
    assert said(difference).startswith("better by 0.0")
    turned = paired_difference(more, less, seed=0, resamples=200)
    assert turned is not None and turned.share_above_zero == 0
    assert turned.estimate == -difference.estimate
    assert turned.interval.low == pytest.approx(-difference.interval.high)
    assert said(turned) == said(difference).replace("better", "worse")


def test_pairs_see_what_intervals_of_each_do_not():
    random = np.random.default_rng(1)
    hit_I = random.random(200) < 0.5
    sets = [one_object_an_image(hit_I), one_object_an_image(hit_I | (random.random(200) < 0.08))]
    of_each = [intervals(one, seed=0, names=["AP"], resamples=200).summary["AP"] for one in sets]
    assert of_each[0] and of_each[1] and of_each[0].high > of_each[1].low
    difference = paired_difference(*sets, seed=0, resamples=200)
    assert difference is not None and difference.interval.low > 0


def test_all_against_nothing_is_a_difference_of_minus_one():
    every, none = (one_object_an_image(np.full(10, hit)) for hit in (True, False))
    difference = paired_difference(every, none, seed=0, resamples=20)
    assert difference is not None and difference.estimate == pytest.approx(-1)


def test_no_objects_no_difference():
    empty = match([], {}, ["a"])
    empty = replace(empty, image_ids=np.arange(3))
    assert paired_difference(empty, empty, seed=0, resamples=5) is None


def test_other_objects_are_refused():
    first = one_object_an_image(np.full(10, True))
    for second in (
        one_object_an_image(np.full(11, True)),
        replace(first, class_names=("b",)),
        replace(first, classes=(replace(first.classes[0], image_G=np.arange(10)[::-1]),)),
    ):
        with pytest.raises(ValueError, match="match both with the same truth"):
            paired_difference(first, second, seed=0)


def test_as_many_images_are_drawn_as_there_are_and_the_seed_decides_which():
    counts_BI = draws(50, 2000, seed=1)
    assert counts_BI.shape == (2000, 50) and (counts_BI.sum(axis=1) == 50).all()
    assert np.array_equal(counts_BI, draws(50, 2000, seed=1))
    assert not np.array_equal(counts_BI, draws(50, 2000, seed=2))
    # An image is left out with probability (1 - 1/50)^50 = 0.364; 100,000 of them.
    assert (counts_BI == 0).mean() == pytest.approx(0.98**50, abs=0.01)


def test_images_of_a_group_are_drawn_together():
    groups = np.array(["b", "a", "b", "c", "a"])
    counts_BI = draws(5, 30, seed=0, groups=groups)
    assert np.array_equal(counts_BI[:, 0], counts_BI[:, 2])
    assert np.array_equal(counts_BI[:, 1], counts_BI[:, 4])
    assert (counts_BI[:, [0, 1, 3]].sum(axis=1) == 3).all()
    assert not np.array_equal(counts_BI[:, 0], counts_BI[:, 1])


def test_five_equal_images_in_each_group_tell_no_more_than_one():
    hit_I = np.random.default_rng(0).random(40) < 0.6
    alone = intervals(one_object_an_image(hit_I), seed=0, names=["AP"], resamples=100)
    repeated = one_object_an_image(np.repeat(hit_I, 5))
    grouped = intervals(
        repeated, seed=0, names=["AP"], resamples=100, groups=np.repeat(np.arange(40), 5)
    )
    ungrouped = intervals(repeated, seed=0, names=["AP"], resamples=100)
    one, same, narrow = (each.summary["AP"] for each in (alone, grouped, ungrouped))
    assert one and same and narrow
    assert (same.low, same.high) == pytest.approx((one.low, one.high))
    assert narrow.high - narrow.low < 0.7 * (same.high - same.low)


@pytest.mark.parametrize(
    ("images", "resamples", "groups", "complaint"),
    [
        (1, 10, None, "1 images or groups"),
        (5, 10, [7] * 5, "1 images or groups"),
        (5, 10, [1, 2], "2 values for 5 images"),
        (5, 0, None, "resamples 0"),
    ],
)
def test_draws_that_would_say_nothing_are_refused(images, resamples, groups, complaint):
    with pytest.raises(ValueError, match=complaint):
        draws(images, resamples, seed=0, groups=None if groups is None else np.array(groups))


def test_a_percentile_interval_by_hand():
    # 0, 1, .. 100: the number at 5 % is 5. NaN is no number.
    values = np.array([42.0, *range(101), np.nan])
    interval = percentile_interval(values, 0.9)
    assert interval is not None and interval.estimate == 42
    assert (interval.low, interval.high) == pytest.approx((5, 95))
    assert percentile_interval(np.array([np.nan, 1.0]), 0.9) is None
    assert percentile_interval(np.array([1.0, np.nan]), 0.9) is None


@pytest.mark.parametrize(
    ("numbers", "phrase"),
    [
        ((0.012, 0.003, 0.021), "better by 0.012 AP, 95 % 0.003 to 0.021"),
        ((-0.012, -0.021, -0.003), "worse by 0.012 AP, 95 % 0.003 to 0.021"),
        ((0.002, -0.004, 0.008), "not distinguishable (difference 0.002, 95 % -0.004 to 0.008)"),
        ((0.0, -0.0001, 0.0), "not distinguishable (difference 0.000, 95 % 0.000 to 0.000)"),
    ],
)
def test_what_is_said(numbers, phrase):
    assert said(PairedDifference("AP", Interval(*numbers, 0.95), 0.5)) == phrase


@pytest.mark.parametrize(
    ("classes", "detections", "resamples"),
    [
        (1, 10, 1000),
        # COCO val: 80 x 0.17 ms + 500,000 x 28 ns = 27.6 ms; 40 s / 27.6 ms = 1,449.
        (80, 500_000, 1000),
        # 80 x 0.17 ms + 2,000,000 x 28 ns = 69.6 ms; 40 s / 69.6 ms = 574.
        (80, 2_000_000, 500),
        # LVIS: 1,203 x 0.17 ms + 2,000,000 x 28 ns = 260.5 ms; 40 s / 260.5 ms = 153.
        (1203, 2_000_000, 200),
    ],
)
def test_large_sets_have_fewer_resamples(classes: int, detections: int, resamples: int) -> None:
    of = np.zeros(detections // classes, np.int8)
    none = np.zeros(0, np.int64)
    one = ClassMatches(of, of, np.zeros((4, 10, 0), np.int8), none, np.zeros((4, 0), bool))
    matches = Matches(none, ("a",) * classes, (one,) * classes)
    assert resamples_for(matches) == resamples
