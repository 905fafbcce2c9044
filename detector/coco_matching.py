"""Detections and truths -> which detection is a hit, a false alarm or ignored, by COCO's rule: the
part of COCO's evaluation that looks at one image and one class at a time.

It is for what asks the same question many times about the same detections, as
detector/resampling.py does. For one table detector/metrics.py is quicker. hotcoco has the outcomes
too, but as a Python object for each image, class and size: 1,000 images with 100 detections each
took 59 s on a busy machine of two cores, and LVIS would need 96 million of them.

Shapes: I images, K classes, S sizes (all, small, medium, large), T IoU thresholds, D detections, G
objects, P pairs of a detection and an object that overlap, N detections of a round, Q the largest
number of pairs of a detection, M matches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from detector.decode import Detections
from detector.metrics import Truth, joined_detections, joined_truths

IGNORED, FALSE_ALARM, HIT = 0, 1, 2
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
AREA_RANGES = np.array([[0, 1e10], [0, 32**2], [32**2, 96**2], [96**2, 1e10]])
"""px^2 of all, small, medium and large objects; both ends belong to the range."""
_AT_ONCE = 10_000
"""Detections whose overlaps are computed at once, which bounds the memory."""


@dataclass(frozen=True)
class ClassMatches:
    """The detections and objects of one class. Images are indices in `Matches.image_ids`."""

    image_D: np.ndarray
    score_D: np.ndarray
    """float64. Best first; equal scores by image, then by rank within the image."""
    outcome_STD: np.ndarray
    """int8: `IGNORED`, `FALSE_ALARM` or `HIT`."""
    image_G: np.ndarray
    """The images of the objects; crowds are left out."""
    counted_SG: np.ndarray
    """bool: whether the object has this size."""


@dataclass(frozen=True)
class Matches:
    image_ids: np.ndarray
    """(I,), ascending."""
    class_names: tuple[str, ...]
    classes: tuple[ClassMatches, ...]


def match(
    truths: Sequence[Truth],
    detections: Mapping[int, Detections],
    class_names: Sequence[str],
    *,
    max_detections: int = 100,
    iou_thresholds: np.ndarray = IOU_THRESHOLDS,
    area_ranges: np.ndarray = AREA_RANGES,
) -> Matches:
    """Match detections (by image id) with the objects, exactly as COCOeval.evaluateImg does.

    `max_detections`: the best of an image and class that count. `iou_thresholds` (T,), ascending,
    and `area_ranges` (S, 2), the sizes, px^2: those of COCO, or some of them. `ValueError` for
    detections of an image without a truth, and for a label out of range.
    """
    truths = sorted(truths, key=lambda t: t.image_id)
    objects = joined_truths(truths, whole_crowds=True)
    objects = _taken(objects, np.lexsort((objects["images"], objects["labels"])))
    found = joined_detections(truths, detections, class_names)
    found = _taken(found, np.lexsort((-found["scores"], found["images"], found["labels"])))
    cell_D = found["labels"] * len(truths) + found["images"]
    found = _taken(found, _rank(cell_D) < max_detections)
    outcome_STD = _outcomes(
        objects, found, images=len(truths), iou_thresholds=iou_thresholds, area_ranges=area_ranges
    )
    edges = np.arange(len(class_names) + 1)
    of_objects, of_found = (np.searchsorted(each["labels"], edges) for each in (objects, found))
    classes = tuple(
        _of_class(
            _taken(objects, slice(of_objects[k], of_objects[k + 1])),
            _taken(found, slice(of_found[k], of_found[k + 1])),
            outcome_STD[..., of_found[k] : of_found[k + 1]],
            area_ranges,
        )
        for k in range(len(class_names))
    )
    image_ids = np.array([t.image_id for t in truths], np.int64)
    return Matches(image_ids, tuple(class_names), classes)


def of_images(matches: Matches, chosen_I: np.ndarray) -> Matches:
    """The matches of some of the images: what `match` finds in these alone. `chosen_I`: bool."""
    place_I = np.cumsum(chosen_I) - 1
    classes = []
    for of in matches.classes:
        detections, objects = chosen_I[of.image_D], chosen_I[of.image_G]
        classes.append(
            ClassMatches(
                place_I[of.image_D[detections]],
                of.score_D[detections],
                of.outcome_STD[..., detections],
                place_I[of.image_G[objects]],
                of.counted_SG[:, objects],
            )
        )
    return Matches(matches.image_ids[chosen_I], matches.class_names, tuple(classes))


def _of_class(
    objects: dict[str, np.ndarray],
    found: dict[str, np.ndarray],
    outcome_STD: np.ndarray,
    area_ranges: np.ndarray,
) -> ClassMatches:
    # Stable: detections stand by image, and within an image by rank.
    best_first = np.argsort(-found["scores"], kind="stable")
    objects = _taken(objects, ~objects["crowd"])
    return ClassMatches(
        found["images"][best_first],
        found["scores"][best_first],
        outcome_STD[..., best_first],
        objects["images"],
        _in_range(objects["area"], area_ranges),
    )


def _taken(columns: dict[str, np.ndarray], rows: np.ndarray | slice) -> dict[str, np.ndarray]:
    return {name: column[rows] for name, column in columns.items()}


def _rank(sorted_N: np.ndarray) -> np.ndarray:
    """How many equal values stand before each."""
    return np.arange(len(sorted_N)) - np.searchsorted(sorted_N, sorted_N)


def _in_range(area_N: np.ndarray, ranges_S2: np.ndarray) -> np.ndarray:
    """bool (S, N): whether an area belongs to each size."""
    low_S1, high_S1 = ranges_S2[:, :1], ranges_S2[:, 1:]
    return (area_N >= low_S1) & (area_N <= high_S1)


@dataclass(frozen=True)
class _Round:
    """Detections that can be matched at once: one of each image and class."""

    detection_N: np.ndarray
    object_NQ: np.ndarray
    """The objects that each may take, the last first; G stands for no object."""
    iou_NQ: np.ndarray


def _outcomes(
    objects: dict[str, np.ndarray],
    found: dict[str, np.ndarray],
    *,
    images: int,
    iou_thresholds: np.ndarray,
    area_ranges: np.ndarray,
) -> np.ndarray:
    """int8 (S, T, D). Objects and detections stand by class and image, these by score."""
    rounds = _rounds(objects, found, images=images, least=iou_thresholds[0])
    sides_D2 = found["boxes"][:, 2:] - found["boxes"][:, :2]
    in_range_SD = _in_range(sides_D2.prod(axis=1), area_ranges)
    unmatched_SD = np.where(in_range_SD, FALSE_ALARM, IGNORED).astype(np.int8)
    outcome_STD = np.repeat(unmatched_SD[:, None], len(iou_thresholds), axis=1)
    # The last entry is that of no object.
    crowd_G = np.append(objects["crowd"], False)
    counted_SG = np.pad(_in_range(objects["area"], area_ranges), ((0, 0), (0, 1))) & ~crowd_G
    for outcome_TD, counted_G in zip(outcome_STD, counted_SG, strict=True):
        taken_TG = np.zeros((len(iou_thresholds), len(crowd_G)), bool)
        for of in rounds:
            _match_round(of, iou_thresholds, outcome_TD, taken_TG, counted_G, crowd_G)
    return outcome_STD


def _match_round(
    of: _Round,
    threshold_T: np.ndarray,
    outcome_TD: np.ndarray,
    taken_TG: np.ndarray,
    counted_G: np.ndarray,
    crowd_G: np.ndarray,
) -> None:
    """Match the detections of a round, and write into `outcome_TD` and `taken_TG`.

    A detection takes the free object that it overlaps most, an ignored one only if there is no
    other; of equals the last. A crowd is free for ever.
    """
    free_TNQ = ~taken_TG[:, of.object_NQ] | crowd_G[of.object_NQ]
    open_TNQ = free_TNQ & (of.iou_NQ >= threshold_T[:, None, None])
    counted_TNQ = open_TNQ & counted_G[of.object_NQ]
    any_TN1 = counted_TNQ.any(axis=2, keepdims=True)
    # argmax takes the first of equals, which is the last object.
    place_TN = np.where(np.where(any_TN1, counted_TNQ, open_TNQ), of.iou_NQ, -1.0).argmax(axis=2)
    t_M, n_M = np.nonzero(open_TNQ.any(axis=2))
    object_M = of.object_NQ[n_M, place_TN[t_M, n_M]]
    outcome_TD[t_M, of.detection_N[n_M]] = np.where(counted_G[object_M], HIT, IGNORED)
    taken_TG[t_M, object_M] = True


def _rounds(
    objects: dict[str, np.ndarray], found: dict[str, np.ndarray], *, images: int, least: float
) -> list[_Round]:
    """The detections that overlap an object by the `least` IoU or more: the best of each image and
    class, then the second, and so on.
    """
    cell_G, cell_D = (each["labels"] * images + each["images"] for each in (objects, found))
    of_P, object_P, iou_P = _overlapping_pairs(objects, found, cell_G, cell_D, least)
    detection_N, first_N, pairs_N = np.unique(of_P, return_index=True, return_counts=True)
    shape = (len(detection_N), int(pairs_N.max(initial=1)))
    object_NQ, iou_NQ = np.full(shape, len(cell_G)), np.full(shape, -1.0)
    row_P = np.repeat(np.arange(len(detection_N)), pairs_N)
    last_first_P = (first_N + pairs_N - 1)[row_P] - np.arange(len(of_P))
    object_NQ[row_P, last_first_P], iou_NQ[row_P, last_first_P] = object_P, iou_P
    rank_N = _rank(cell_D[detection_N])
    return [
        _Round(detection_N[chosen_N], object_NQ[chosen_N], iou_NQ[chosen_N])
        for rank in range(int(rank_N.max(initial=-1)) + 1)
        for chosen_N in [rank_N == rank]
    ]


def _overlapping_pairs(
    objects: dict[str, np.ndarray],
    found: dict[str, np.ndarray],
    cell_G: np.ndarray,
    cell_D: np.ndarray,
    least: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Detection, object and IoU (P,) of the pairs that may match, by detection, then by object."""
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for start in range(0, len(cell_D) or 1, _AT_ONCE):
        its_D = cell_D[start : start + _AT_ONCE]
        first_D, end_D = (np.searchsorted(cell_G, its_D, side) for side in ("left", "right"))
        pairs_D = end_D - first_D
        of_P = np.repeat(np.arange(len(its_D)), pairs_D)
        object_P = np.arange(len(of_P)) - np.repeat(np.cumsum(pairs_D) - end_D, pairs_D)
        of_P += start
        iou_P = overlaps(
            found["boxes"][of_P], objects["boxes"][object_P], crowd_P=objects["crowd"][object_P]
        )
        close = iou_P >= least
        parts.append((of_P[close], object_P[close], iou_P[close]))
    of_P, object_P, iou_P = (np.concatenate(column) for column in zip(*parts, strict=True))
    return of_P, object_P, iou_P


def overlaps(found_P4: np.ndarray, object_P4: np.ndarray, *, crowd_P: np.ndarray) -> np.ndarray:
    """IoU (P,) of XYXY boxes, of a crowd the share of the detection in it; each step is that of
    COCO's bbIou, which adds width to left, so that every bit is the same.
    """
    (left_P2, sides_P2), (left_of_P2, sides_of_P2) = (
        (boxes[:, :2], boxes[:, 2:] - boxes[:, :2]) for boxes in (found_P4, object_P4)
    )
    shared_P2 = np.minimum(sides_P2 + left_P2, sides_of_P2 + left_of_P2)
    shared_P2 -= np.maximum(left_P2, left_of_P2)
    shared_P = shared_P2.prod(axis=1)
    area_P = sides_P2.prod(axis=1)
    union_P = np.where(crowd_P, area_P, area_P + sides_of_P2.prod(axis=1) - shared_P)
    overlap_P = (shared_P2 > 0).all(axis=1)
    return np.divide(shared_P, union_P, out=np.zeros(len(union_P)), where=overlap_P)
