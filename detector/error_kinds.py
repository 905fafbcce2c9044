"""What is wrong with each detection, and what each kind of error costs in AP50.

The six kinds, their order and their costs are those of TIDE (Bolya et al., TIDE: A General Toolbox
for Identifying Object Detection Errors, ECCV 2020, sections 2.2 and 2.3). A false alarm has the
first kind whose rule it meets:

    box         IoU 0.1 to 0.5 with an object of its class
    class       IoU 0.5 or more with an object of another class
    duplicate   IoU 0.5 or more with an object of its class that a better detection has
    background  IoU 0.1 or less with every object
    both        the rest: another class, and not close enough

An object without a hit is `missed`, unless a box or class error is its own: then mending that error
finds it. The cost of a kind is the AP50 that mending all errors of that kind alone would add. They
do not add up to 1 - AP50, because one error may hide another.

It differs from the package tidecv in two rules: ignored detections (in crowds) are no errors here,
and a class without objects has no AP, as in COCO, where the package counts an AP of 0.

Shapes: K classes, D detections, G objects of a `Pairing`, N detections of a class.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detector.coco_matching import FALSE_ALARM, HIT, IGNORED
from detector.pairing import Pairing
from detector.weighted_ap import RECALLS

KINDS = ("class", "box", "both", "duplicate", "background", "missed")
CLASS, BOX, BOTH, DUPLICATE, BACKGROUND, MISSED = range(6)
NONE = -1
BACKGROUND_IOU = 0.1


@dataclass(frozen=True)
class ErrorKinds:
    kind_D: np.ndarray
    """int8: the place in `KINDS` of each false alarm; `NONE` for hits and ignored detections."""
    object_D: np.ndarray
    """The object that a box or class error is about; -1 for all others."""
    missed_G: np.ndarray
    """bool."""
    count_K6: np.ndarray
    """Errors of each kind, of each class: that of the detection, or of the missed object."""
    ap50: float | None
    """None for a set without objects; then nothing has a cost."""
    cost: dict[str, float]
    """Kind -> AP50 that mending it would add; then `false_alarms` and `misses`: what the absence of
    all of them would add.
    """


@dataclass(frozen=True)
class _Scored:
    """Detections that count, and the number of objects of each class."""

    label_D: np.ndarray
    score_D: np.ndarray
    right_D: np.ndarray
    objects_K: np.ndarray


def error_kinds(pairing: Pairing) -> ErrorKinds:
    """The errors of a set of detections."""
    kind_D, object_D = _kinds(pairing)
    mended_D = _mended(pairing, object_D)
    aimed_G = np.zeros(len(pairing.label_G), bool)
    aimed_G[object_D[object_D >= 0]] = True
    missed_G = (pairing.detection_G < 0) & ~aimed_G
    cell_N = np.concatenate(
        [
            pairing.label_D[kind_D >= 0] * len(KINDS) + kind_D[kind_D >= 0],
            pairing.label_G[missed_G] * len(KINDS) + MISSED,
        ]
    )
    classes = len(pairing.class_names)
    count_K6 = np.bincount(cell_N, minlength=classes * len(KINDS)).reshape(classes, len(KINDS))
    ap50, cost = _costs(pairing, kind_D, object_D, mended_D, missed_G)
    return ErrorKinds(kind_D, object_D, missed_G, count_K6, ap50, cost)


def _kinds(pairing: Pairing) -> tuple[np.ndarray, np.ndarray]:
    """(D,) twice: kinds, and the objects of box and class errors."""
    own_D, other_D = pairing.own_iou_D, pairing.other_iou_D
    rules = [
        pairing.outcome_D != FALSE_ALARM,
        (own_D >= BACKGROUND_IOU) & (own_D <= pairing.iou),
        other_D >= pairing.iou,
        own_D >= pairing.iou,
        np.maximum(own_D, other_D) <= BACKGROUND_IOU,
    ]
    kind_D = np.select(rules, [NONE, BOX, CLASS, DUPLICATE, BACKGROUND], BOTH).astype(np.int8)
    object_D = np.select([kind_D == BOX, kind_D == CLASS], [pairing.own_D, pairing.other_D], -1)
    return kind_D, object_D


def _mended(pairing: Pairing, object_D: np.ndarray) -> np.ndarray:
    """bool (D,): the error becomes a hit when it is mended, because its object has no hit and no
    better error of a box or class.
    """
    mended_D = np.zeros(len(object_D), bool)
    aimed = np.flatnonzero(object_D >= 0)
    aimed = aimed[pairing.detection_G[object_D[aimed]] < 0]
    # Detections of an image stand best first.
    mended_D[aimed[np.unique(object_D[aimed], return_index=True)[1]]] = True
    return mended_D


def _costs(
    pairing: Pairing,
    kind_D: np.ndarray,
    object_D: np.ndarray,
    mended_D: np.ndarray,
    missed_G: np.ndarray,
) -> tuple[float | None, dict[str, float]]:
    judged = pairing.objects_K > 0
    if not judged.any():
        return None, {}
    counted_D = pairing.outcome_D != IGNORED
    right_D = pairing.outcome_D == HIT

    def ap50(label_D: np.ndarray, right_D: np.ndarray, kept_D: np.ndarray, objects_K: np.ndarray):
        scored = _Scored(label_D[kept_D], pairing.score_D[kept_D], right_D[kept_D], objects_K)
        return _mean_ap50(scored, judged)

    base = ap50(pairing.label_D, right_D, counted_D, pairing.objects_K)
    cost = {}
    for kind, name in enumerate(KINDS):
        its_D = kind_D == kind
        label_D = pairing.label_D
        if kind == CLASS:
            label_D = label_D.copy()
            label_D[its_D] = pairing.label_G[object_D[its_D]]
        objects_K = pairing.objects_K
        if kind == MISSED:
            objects_K = objects_K - np.bincount(pairing.label_G[missed_G], minlength=len(objects_K))
        better = ap50(
            label_D, right_D | (its_D & mended_D), counted_D & (~its_D | mended_D), objects_K
        )
        cost[name] = max(0.0, better - base)
    found_K = np.bincount(pairing.label_D[right_D], minlength=len(judged))
    cost["false_alarms"] = ap50(pairing.label_D, right_D, right_D, pairing.objects_K) - base
    cost["misses"] = ap50(pairing.label_D, right_D, counted_D, found_K) - base
    return base, cost


def _mean_ap50(scored: _Scored, judged_K: np.ndarray) -> float:
    """The mean over the classes that have objects in the set. One that has lost all of them to
    mended misses counts 0 if it has detections, and not at all without.
    """
    order = np.lexsort((-scored.score_D, scored.label_D))
    right_D, label_D = scored.right_D[order], scored.label_D[order]
    edges = np.searchsorted(label_D, np.arange(len(judged_K) + 1))
    values = [
        average_precision(right_D[edges[k] : edges[k + 1]], int(scored.objects_K[k]))
        for k in np.flatnonzero(judged_K)
        if scored.objects_K[k] or edges[k] < edges[k + 1]
    ]
    return float(np.mean(values)) if values else 0.0


def average_precision(right_N: np.ndarray, objects: int) -> float:
    """COCO's AP at one IoU: the mean precision at 101 recalls. `right_N` (bool): which detections
    are hits, best first. 0 without objects.
    """
    if not objects or not len(right_N):
        return 0.0
    hits_N = np.cumsum(right_N)
    precision_N = np.maximum.accumulate((hits_N / np.arange(1, len(hits_N) + 1))[::-1])[::-1]
    place_R = np.searchsorted(hits_N / objects, RECALLS)
    return float(np.append(precision_N, 0.0)[place_R].mean())
