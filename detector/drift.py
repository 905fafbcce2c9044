"""What differs between the detections in two sets of images by more than chance explains.

Of each class, and of all together: the detections an image, and the scores; of the images: their
sides. A difference is named where it is large (`FACTOR`, `OFTEN`, `SIDE_FACTOR`) and beyond
chance: if nothing has changed, a comparison of two sets names something with a probability of at
most `CHANCE` (Bonferroni's bound over all comparisons). An image counts once, however many
detections it has, because those of one image are alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, sqrt
from statistics import NormalDist

import numpy as np

from detector.detection_counts import DetectionCounts, score_quantiles, side_quantiles

CHANCE = 0.01
LEAST = 20
"""Images on both sides, of scores with a detection of the class: with fewer the normal
distribution is no good approximation, and nothing is said.
"""
FACTOR = 1.5
"""Between the detections an image."""
OFTEN = 0.65
"""How often, of two scores, one of each set, that of the same set is the higher one; 0.5: alike."""
SIDE_FACTOR = 1.25
"""Between the median widths, or heights."""
RULE = (
    "A difference is called drift where it is large and beyond chance. Large is a factor of"
    f" {FACTOR:g} between the detections an image, or of {SIDE_FACTOR:g} between the median widths"
    " or heights. Scores differ much where, of two scores, one from here and one from validation,"
    f" that from the same side is the higher one in {OFTEN:.0%} of the pairs. Beyond chance means:"
    " if nothing had changed, at most 1 page in"
    f" {1 / CHANCE:.0f} would name anything. (Permutation test of the mean, rank-sum test of scores"
    " and sides, both with the normal approximation; Bonferroni's bound over all comparisons; an"
    " image counts once, whatever the number of its detections.) Of fewer than"
    f" {LEAST} images, here or in validation, nothing is said, nor of the scores of a class that"
    " fewer images have."
)


@dataclass(frozen=True)
class Drift:
    """A difference in words. `row` is that of `DetectionCounts`, None for the sizes of images."""

    row: int | None
    sentence: str
    strength: float
    """Distance in standard deviations of chance."""


def find_drift(here: DetectionCounts, validation: DetectionCounts) -> list[Drift]:
    """The differences, the strongest first. Both sets have the same classes."""
    names = here.row_names
    limit = NormalDist().inv_cdf(1 - CHANCE / (2 * (2 * len(names) + 2)))
    found = [
        difference
        # Of a single class the last row says the same again.
        for row in range(len(names) if len(names) > 2 else 1)
        for difference in (_rate(here, validation, row), _scores(here, validation, row))
        if difference is not None
    ]
    for side in ("width", "height"):
        difference = _sides(getattr(here, f"{side}s"), getattr(validation, f"{side}s"), side)
        if difference is not None:
            found.append(difference)
    beyond = [each for each in found if each.strength > limit]
    return sorted(beyond, key=lambda each: -each.strength)


def shown_rate(rate: float) -> str:
    return f"{rate:,.1f}" if rate >= 1 else f"{rate:.2g}"


def _rate(here: DetectionCounts, validation: DetectionCounts, row: int) -> Drift | None:
    n1, n2 = here.images, validation.images
    if min(n1, n2) < LEAST:
        return None
    rate1, rate2 = (float(each.detections_C[row]) / each.images for each in (here, validation))
    if max(rate1, rate2) < FACTOR * min(rate1, rate2) or rate1 == rate2:
        return None
    # The variance of the mean of n1 images that are drawn from all of them without replacement.
    mean = (rate1 * n1 + rate2 * n2) / (n1 + n2)
    squares = int(here.squares_C[row]) + int(validation.squares_C[row])
    variance = (squares - (n1 + n2) * mean**2) / (n1 + n2 - 1)
    strength = abs(rate1 - rate2) / sqrt(variance * (1 / n1 + 1 / n2)) if variance > 0 else inf
    return Drift(
        row,
        f"{_subject(here, row)}: {shown_rate(rate1)} detections an image,"
        f" {shown_rate(rate2)} in validation",
        strength,
    )


def _scores(here: DetectionCounts, validation: DetectionCounts, row: int) -> Drift | None:
    m1, m2 = int(here.images_C[row]), int(validation.images_C[row])
    if min(m1, m2) < LEAST:
        return None
    scores1_B, scores2_B = here.scores_CB[row], validation.scores_CB[row]
    higher = _higher(scores1_B, scores2_B)
    if max(higher, 1 - higher) < OFTEN:
        return None
    (median1,), (median2,) = (
        score_quantiles(each, [0.5]) or [0] for each in (scores1_B, scores2_B)
    )
    return Drift(
        row,
        f"{_subject(here, row)}: scores are {'higher' if higher > 0.5 else 'lower'}: median"
        f" {median1:.2f} against {median2:.2f}",
        _rank_sum_strength(higher, m1, m2),
    )


def _sides(here: Mapping[int, int], validation: Mapping[int, int], name: str) -> Drift | None:
    n1, n2 = sum(here.values()), sum(validation.values())
    if min(n1, n2) < LEAST:
        return None
    (median1,), (median2,) = (side_quantiles(each, [0.5]) or [0] for each in (here, validation))
    if max(median1, median2) < SIDE_FACTOR * min(median1, median2):
        return None
    every = sorted({*here, *validation})
    higher = _higher(
        np.array([here.get(side, 0) for side in every]),
        np.array([validation.get(side, 0) for side in every]),
    )
    return Drift(
        None,
        f"images: median {name} {median1:,} px against {median2:,} px",
        _rank_sum_strength(higher, n1, n2),
    )


def _higher(counts1_B: np.ndarray, counts2_B: np.ndarray) -> float:
    """How often, of two values, one of each, the first is higher; a tie counts half. Mann and
    Whitney, "On a test of whether one of two random variables is stochastically larger than the
    other", 1947.
    """
    below2_B = np.cumsum(counts2_B) - counts2_B
    wins = float((counts1_B * (below2_B + counts2_B / 2)).sum())
    return wins / (float(counts1_B.sum()) * float(counts2_B.sum()))


def _rank_sum_strength(higher: float, m1: int, m2: int) -> float:
    """Without the correction for ties, which would name more."""
    return abs(higher - 0.5) / sqrt((m1 + m2 + 1) / (12 * m1 * m2))


def _subject(counts: DetectionCounts, row: int) -> str:
    last = row == len(counts.class_names)
    return counts.row_names[row] if last else f"class {counts.row_names[row]}"
