"""How far AP may be off because the set has these images and not others: intervals, and the paired
difference of two sets of detections of the same images.

The bootstrap over images (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 6
and 13): draw as many images as the set has, with repetition, score them, and do it again. The
numbers are COCO's. Detections are matched with objects once; each resample then is a vector of
counts, see detector/weighted_ap.py. Images of one video are alike: give `groups`, and whole groups
are drawn.

Two sets of detections are scored on the same draws, so that images that are hard for both add
nothing to the spread of their difference. The spread between two trainings with other seeds is not
in it.

Intervals are percentile intervals (chapter 13). BCa (chapter 14) needs the AP without each image,
5,000 more evaluations in a set of 5,000 images, five times the work of 1,000 resamples.

Shapes: I images, B resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from detector.coco_matching import Matches
from detector.weighted_ap import NAMES, weighted_scores

FEWEST, MOST = 200, 1000
"""Resamples of a report."""
COST_OF_CLASS_S, COST_OF_DETECTION_S, BUDGET_S = 1.7e-4, 2.8e-8, 40.0
"""CPU seconds that a class and a detection of the set take in a resample of all numbers, measured
with tests/benchmarks/resampling.py, and those that a report may take.
"""


@dataclass(frozen=True)
class Interval:
    estimate: float
    """The number of the set itself."""
    low: float
    high: float
    confidence: float
    """The share of such intervals that hold the true number, 0..1."""


@dataclass(frozen=True)
class IntervalTable:
    """None where the set has no such object, as in `detector.metrics.CocoTable`."""

    resamples: int

    summary: dict[str, Interval | None]
    """Name of a number -> its interval over all classes."""
    per_class: dict[str, dict[str, Interval | None]]
    """Class name -> name of a number -> its interval."""


@dataclass(frozen=True)
class PairedDifference:
    """A number of the second set of detections minus that of the first."""

    name: str
    interval: Interval
    share_above_zero: float
    """The share of resamples in which the second is better, 0..1."""

    @property
    def estimate(self) -> float:
        return self.interval.estimate


def intervals(
    matches: Matches,
    *,
    seed: int,
    names: Sequence[str] = NAMES,
    resamples: int = 1000,
    confidence: float = 0.95,
    groups: np.ndarray | None = None,
) -> IntervalTable:
    """The intervals of the numbers `names` (of `detector.weighted_ap.NAMES`) over all classes and
    of each class. A resample without such an object does not count.

    `groups`: a value (I,) for each image, in the order of `matches.image_ids`; images with equal
    values are drawn together. `ValueError` for less than two images or groups.
    """
    counts_BI = _with_the_set_itself(matches, resamples, seed=seed, groups=groups)
    scores = weighted_scores(matches, counts_BI, names=names)
    return IntervalTable(
        resamples,
        {name: percentile_interval(scores[name].of_all_B, confidence) for name in names},
        {
            label: {
                name: percentile_interval(scores[name].per_class_BK[:, k], confidence)
                for name in names
            }
            for k, label in enumerate(matches.class_names)
        },
    )


@dataclass(frozen=True)
class DifferenceTable:
    """None where the set has no such object."""

    resamples: int

    summary: dict[str, PairedDifference | None]
    """Name of a number -> its difference over all classes."""
    per_class: dict[str, dict[str, PairedDifference | None]]
    """Class name -> name of a number -> its difference."""


def paired_differences(
    first: Matches,
    second: Matches,
    *,
    seed: int,
    names: Sequence[str] = NAMES,
    resamples: int = 1000,
    confidence: float = 0.95,
    groups: np.ndarray | None = None,
) -> DifferenceTable:
    """How much better `second` is than `first` in the numbers `names`, over all classes and in each
    class. `groups` as in `intervals`. `ValueError` for less than two images or groups, and if the
    two were not matched with the same objects.
    """
    if not _same_objects(first, second):
        raise ValueError(
            "the two sets of detections were matched with different images, classes or objects;"
            " match both with the same truth"
        )
    counts_BI = _with_the_set_itself(first, resamples, seed=seed, groups=groups)
    one, other = (weighted_scores(each, counts_BI, names=names) for each in (first, second))

    def difference(name: str, one_B: np.ndarray, other_B: np.ndarray) -> PairedDifference | None:
        return _difference(name, other_B - one_B, confidence)

    return DifferenceTable(
        resamples,
        {name: difference(name, one[name].of_all_B, other[name].of_all_B) for name in names},
        {
            label: {
                name: difference(name, one[name].per_class_BK[:, k], other[name].per_class_BK[:, k])
                for name in names
            }
            for k, label in enumerate(first.class_names)
        },
    )


def paired_difference(
    first: Matches,
    second: Matches,
    *,
    seed: int,
    name: str = "AP",
    resamples: int = 1000,
    confidence: float = 0.95,
    groups: np.ndarray | None = None,
) -> PairedDifference | None:
    """One number of `paired_differences` over all classes."""
    table = paired_differences(
        first,
        second,
        seed=seed,
        names=(name,),
        resamples=resamples,
        confidence=confidence,
        groups=groups,
    )
    return table.summary[name]


def _difference(name: str, difference_B: np.ndarray, confidence: float) -> PairedDifference | None:
    interval = percentile_interval(difference_B, confidence)
    if interval is None:
        return None
    drawn_B = difference_B[1:]
    above = float((drawn_B > 0).sum() / np.isfinite(drawn_B).sum())
    return PairedDifference(name, interval, above)


def said(difference: PairedDifference) -> str:
    """One phrase for a report. Different is what has an interval without 0."""
    interval = difference.interval
    share = f"{100 * interval.confidence:g} %"
    low, high = interval.low, interval.high
    if low <= 0 <= high:
        return (
            f"not distinguishable (difference {_shown(difference.estimate)},"
            f" {share} {_shown(low)} to {_shown(high)})"
        )
    word = "better" if low > 0 else "worse"
    low, high = sorted((abs(low), abs(high)))
    size = _shown(abs(difference.estimate))
    return f"{word} by {size} {difference.name}, {share} {_shown(low)} to {_shown(high)}"


def _shown(value: float) -> str:
    # `z`: no -0.000.
    return f"{value:z.3f}"


def resamples_for(matches: Matches) -> int:
    """How many resamples a report draws: 1,000, and of large sets as many hundreds as take about
    40 s of CPU time, but at least 200, with which the ends of a 95 % interval are the fifth lowest
    and the fifth highest number.
    """
    detections = sum(len(of.image_D) for of in matches.classes)
    cost = len(matches.classes) * COST_OF_CLASS_S + detections * COST_OF_DETECTION_S
    affordable = int(BUDGET_S / max(cost, 1e-9)) // 100 * 100
    return min(max(affordable, FEWEST), MOST)


def draws(
    images: int, resamples: int, *, seed: int, groups: np.ndarray | None = None
) -> np.ndarray:
    """int32 (B, I): how often each image stands in each resample. As many images, or groups, are
    drawn as there are.
    """
    group_I = np.arange(images)
    if groups is not None:
        if len(groups) != images:
            raise ValueError(f"groups has {len(groups)} values for {images} images; give one each")
        group_I = np.unique(groups, return_inverse=True)[1]
    units = int(group_I.max(initial=-1)) + 1
    if resamples < 1:
        raise ValueError(f"resamples {resamples}: take at least 1, better 1,000")
    if units < 2:
        raise ValueError(
            f"{units} images or groups: a resample draws from at least 2; give more images"
        )
    random = np.random.default_rng(seed)
    counts_BG = [
        np.bincount(random.integers(units, size=units), minlength=units) for _ in range(resamples)
    ]
    return np.array(counts_BG, np.int32)[:, group_I]


def percentile_interval(values: np.ndarray, confidence: float) -> Interval | None:
    """The interval from the number of the set, `values[0]`, and those of its resamples, the rest;
    NaN, no number, is left out. None if the set has no number, or no resample has one.
    """
    estimate, resampled = float(values[0]), values[1:][np.isfinite(values[1:])]
    if not np.isfinite(estimate) or not len(resampled):
        return None
    tail = (1 - confidence) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail]).tolist()
    return Interval(estimate, low, high, confidence)


def _with_the_set_itself(
    matches: Matches, resamples: int, *, seed: int, groups: np.ndarray | None
) -> np.ndarray:
    """The draws, and in front of them the set: every image once."""
    images = len(matches.image_ids)
    drawn_BI = draws(images, resamples, seed=seed, groups=groups)
    return np.concatenate([np.ones((1, images), np.int32), drawn_BI])


def _same_objects(first: Matches, second: Matches) -> bool:
    return (
        first.class_names == second.class_names
        and np.array_equal(first.image_ids, second.image_ids)
        and all(
            np.array_equal(one.image_G, other.image_G)
            and np.array_equal(one.counted_SG, other.counted_SG)
            for one, other in zip(first.classes, second.classes, strict=True)
        )
    )
