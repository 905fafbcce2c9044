"""Average precision of a set in which each image stands a given number of times, 0 among them,
without matching anything again.

The numbers equal, to the last digit, those of `detector.metrics.coco_table` for a set in which each
copy is an image of its own, with copies side by side and the order of the images kept. Equal scores
are then ordered by image, copy, and rank within the copy.

COCO's precision at a recall is the largest at that recall or a higher one, so only hits matter:
between them precision falls. The copies of a hit follow each other, and precision does not fall
from one to the next; so all of them have the precision after the last copy, and a count does for
them. This fails where an image has a hit and a false alarm of one class with equal scores: hit,
false alarm, hit, false alarm is not hit, hit, false alarm, false alarm. Such detections are laid
out copy by copy, each with a weight of 0 or 1.

Shapes: B resamples, I images, K classes, S sizes, T IoU thresholds, R recalls; of one class and
size: D detections, G objects, E detections laid out, H hits of one threshold; C numbers of hits.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from detector.coco_matching import (
    FALSE_ALARM,
    HIT,
    IGNORED,
    IOU_THRESHOLDS,
    ClassMatches,
    Matches,
)
from detector.metrics import mean

RECALLS = np.linspace(0.0, 1.0, 101)
_AT_ONCE = 32
"""Resamples computed at once: their weights of a class then fit the cache of a core."""
_PARTS: dict[str, tuple[int, slice]] = {
    "AP": (0, slice(None)),
    "AP50": (0, slice(0, 1)),
    "AP75": (0, slice(5, 6)),
    "AP_small": (1, slice(None)),
    "AP_medium": (2, slice(None)),
    "AP_large": (3, slice(None)),
}
"""Name of a number -> its size and IoU thresholds."""
NAMES = tuple(_PARTS)


@dataclass(frozen=True)
class ResampledScores:
    """One number of every resample; NaN where the resample has no such object."""

    of_all_B: np.ndarray
    per_class_BK: np.ndarray


@dataclass(frozen=True)
class _Threshold:
    """What counts at one IoU threshold; indices are those of `_Curve`'s detections."""

    hits_H: np.ndarray
    ignored_N: np.ndarray
    ignored_before_H: np.ndarray
    """How many of `ignored_N` stand before the hit."""


@dataclass(frozen=True)
class _Curve:
    """The detections of one class and size that count at some IoU threshold, best first."""

    image_E: np.ndarray
    tied_N: np.ndarray
    """Indices of the detections that are laid out copy by copy."""
    copy_N: np.ndarray
    """Their copy, from 0: it is there if the image stands more than this number of times."""
    thresholds: tuple[_Threshold, ...]
    image_G: np.ndarray
    """The images of the objects of this size."""


def weighted_scores(
    matches: Matches,
    counts_BI: np.ndarray,
    *,
    names: Sequence[str] = ("AP",),
    threads: int = 2,
) -> dict[str, ResampledScores]:
    """The numbers `names` (of `NAMES`) of each resample. `counts_BI`: how often each image stands
    in it, in the order of `matches.image_ids`; one row or more. As in COCO, a class without objects
    in a resample does not enter its mean over the classes.
    """
    counts_BI = np.ascontiguousarray(counts_BI, np.int32)
    copies_I = counts_BI.max(axis=0, initial=0)
    curves = {
        size: [_curve(of, size, copies_I) for of in matches.classes]
        for size in {_PARTS[name][0] for name in names}
    }

    def scores(start: int) -> dict[str, ResampledScores]:
        its_BI = counts_BI[start : start + _AT_ONCE]
        found: dict[str, ResampledScores] = {}
        for size, of_classes in curves.items():
            shape = (len(of_classes), len(its_BI), len(IOU_THRESHOLDS), len(RECALLS))
            precision_KBTR = np.empty(shape)  # 0.26 MB a class
            for curve, precision_BTR in zip(of_classes, precision_KBTR, strict=True):
                _fill_precision(precision_BTR, curve, its_BI)
            for name in names:
                its_size, thresholds = _PARTS[name]
                if its_size == size:
                    found[name] = _means(precision_KBTR[:, :, thresholds])
        return found

    # NumPy works without the interpreter's lock.
    with ThreadPoolExecutor(threads) as pool:
        parts = list(pool.map(scores, range(0, len(counts_BI), _AT_ONCE)))
    return {
        name: ResampledScores(
            np.concatenate([part[name].of_all_B for part in parts]),
            np.concatenate([part[name].per_class_BK for part in parts]),
        )
        for name in names
    }


def _means(precision_KBTR: np.ndarray) -> ResampledScores:
    # The mean of all classes adds in pycocotools' order: threshold, recall, class.
    of_all = [mean(np.moveaxis(of, 0, -1)) for of in np.moveaxis(precision_KBTR, 1, 0)]
    classes, resamples = precision_KBTR.shape[:2]
    per_class_BK = precision_KBTR.reshape(classes, resamples, -1).mean(axis=2).T
    return ResampledScores(
        np.array([np.nan if value is None else value for value in of_all]),
        np.where(per_class_BK == -1, np.nan, per_class_BK),
    )


def _curve(matches: ClassMatches, size: int, copies_I: np.ndarray) -> _Curve:
    counted_D = (matches.outcome_STD[size] != IGNORED).any(axis=0)
    image_D, outcome_TD = matches.image_D[counted_D], matches.outcome_STD[size][:, counted_D]
    tied_D, block_D = _tied(image_D, matches.score_D[counted_D], outcome_TD)
    times_D = np.where(tied_D, copies_I[image_D], 1)
    of_E = np.repeat(np.arange(len(image_D)), times_D)
    copy_E = np.arange(len(of_E)) - np.repeat(np.cumsum(times_D) - times_D, times_D)
    order = np.lexsort((of_E, copy_E, block_D[of_E]))
    of_E, copy_E = of_E[order], copy_E[order]
    tied_N = np.flatnonzero(tied_D[of_E])
    thresholds = []
    for outcome_E in outcome_TD[:, of_E]:
        hits_H, ignored_N = np.flatnonzero(outcome_E == HIT), np.flatnonzero(outcome_E == IGNORED)
        thresholds.append(_Threshold(hits_H, ignored_N, np.searchsorted(ignored_N, hits_H)))
    image_G = matches.image_G[matches.counted_SG[size]]
    return _Curve(image_D[of_E], tied_N, copy_E[tied_N], tuple(thresholds), image_G)


def _tied(
    image_D: np.ndarray, score_D: np.ndarray, outcome_TD: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """bool (D,): whether hits and false alarms of one image have this score, at some threshold; and
    int (D,): the number of the block of detections with one image and score.
    """
    if not len(image_D):
        return np.zeros(0, bool), np.zeros(0, np.int64)
    starts_D = np.append(True, (np.diff(image_D) != 0) | (np.diff(score_D) != 0))
    block_D = np.cumsum(starts_D) - 1
    some = [
        np.logical_or.reduceat(outcome_TD == outcome, np.flatnonzero(starts_D), axis=1)
        for outcome in (HIT, FALSE_ALARM)
    ]
    return np.logical_or.reduce(some[0] & some[1], axis=0)[block_D], block_D


def _fill_precision(precision_BTR: np.ndarray, curve: _Curve, counts_BI: np.ndarray) -> None:
    """Write COCO's precision at each recall; -1 in a resample without objects."""
    objects_B = counts_BI[:, curve.image_G].sum(axis=1)
    reached_BC = _recalls_reached(objects_B)
    weight_BE = np.take(counts_BI, curve.image_E, axis=1)
    weight_BE[:, curve.tied_N] = weight_BE[:, curve.tied_N] > curve.copy_N
    seen_BE = np.cumsum(weight_BE, axis=1, dtype=np.int32)
    for t, at in enumerate(curve.thresholds):
        seen_BH = np.take(seen_BE, at.hits_H, axis=1)
        if len(at.ignored_N):
            ignored_BN = np.zeros((len(counts_BI), len(at.ignored_N) + 1), np.int32)
            np.cumsum(weight_BE[:, at.ignored_N], axis=1, out=ignored_BN[:, 1:])
            seen_BH -= ignored_BN[:, at.ignored_before_H]
        weight_BH = np.take(weight_BE, at.hits_H, axis=1)
        precision_BTR[:, t] = _at_recalls(weight_BH, seen_BH, reached_BC)
    precision_BTR[objects_B == 0] = -1


def _recalls_reached(objects_B: np.ndarray) -> np.ndarray:
    """int (B, C): how many recalls are reached with 0, 1, .. C-1 hits; C-1 is the most objects of a
    resample.
    """
    needed_BR = _hits_needed(objects_B)
    shape = (len(objects_B), int(objects_B.max(initial=1)) + 1)
    cell_BR = np.arange(shape[0])[:, None] * shape[1] + needed_BR
    return np.bincount(cell_BR.ravel(), minlength=shape[0] * shape[1]).reshape(shape).cumsum(axis=1)


def _hits_needed(objects_B: np.ndarray) -> np.ndarray:
    """int (B, R): the smallest number of hits, at least 1, whose quotient with the objects, in
    float64, is not below the recall. COCO takes recall 0 at the first detection, which has the
    precision of the first hit.
    """
    objects_B1 = np.maximum(objects_B, 1)[:, None]
    needed_BR = np.ceil(RECALLS * objects_B1)
    needed_BR -= (needed_BR - 1) / objects_B1 >= RECALLS
    needed_BR += needed_BR / objects_B1 < RECALLS
    return np.maximum(needed_BR, 1).astype(np.int64)


def _at_recalls(weight_BH: np.ndarray, seen_BH: np.ndarray, reached_BC: np.ndarray) -> np.ndarray:
    """(B, R): the largest precision of the hits that reach the recall; 0 without any.

    `weight_BH`: how often each hit stands in the resample; `seen_BH`: the detections up to it.
    """
    hits_BH = np.cumsum(weight_BH, axis=1, dtype=np.int32)
    # COCO's own divisor: it gives 1 - 2^-52 for one hit of one detection.
    precision_BH = hits_BH / (seen_BH + np.spacing(1))
    # Column r has the largest precision of the hits that reach r recalls and no more. `maximum.at`
    # takes 1.4 ns a hit; a running maximum over the hits, and a search in them, took 10.
    rows_B1 = np.arange(len(hits_BH))[:, None]
    columns = len(RECALLS) + 1
    cell_BH = np.take(reached_BC + rows_B1 * columns, hits_BH + rows_B1 * reached_BC.shape[1])
    best = np.zeros(len(hits_BH) * columns)
    np.maximum.at(best, cell_BH.ravel(), precision_BH.ravel())
    best_BR = best.reshape(-1, columns)[:, 1:]
    return np.maximum.accumulate(best_BR[:, ::-1], axis=1)[:, ::-1]
