"""PASCAL VOC's average precision at IoU 0.5, by the rule of VOC2007 (11 points) and of 2010 and
later (the whole curve).

It differs from COCO's: a detection is assigned to the object that it overlaps most, even if a
better detection has it already, and is then a false alarm; one that is assigned to a difficult
object (stored as a crowd) is neither a hit nor a false alarm. (Everingham et al., The Pascal Visual
Object Classes Challenge, IJCV 2010, 4.2.)

Boxes are half-open, which is the same as VOC's inclusive pixels with the devkit's "+ 1". D
detections, G objects, P pairs of a detection and an object of one image and class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from detector.decode import Detections
from detector.metrics import Truth, joined_detections, joined_truths

NAMES = ("VOC_AP50", "VOC07_AP50")


def voc_average_precisions(
    truths: Sequence[Truth], detections: Mapping[int, Detections], class_names: Sequence[str]
) -> np.ndarray:
    """(K, 2): the average precision over the whole curve and over 11 points, -1 for a class without
    objects. Equal scores are ordered by image id, then by rank within the image.
    """
    truths = sorted(truths, key=lambda t: t.image_id)
    objects, columns = joined_truths(truths), joined_detections(truths, detections, class_names)
    best_first = np.argsort(-columns["scores"], kind="stable")
    columns = {name: column[best_first] for name, column in columns.items()}
    object_D = _most_overlapping_objects(objects, columns, classes=len(class_names))
    hit_D = object_D >= 0
    counted_D = ~hit_D | ~objects["crowd"][object_D] if len(objects["crowd"]) else ~hit_D
    # The best detection of an object is right, all its others are wrong.
    right_D = np.zeros(len(object_D), bool)
    right_D[np.flatnonzero(hit_D)[np.unique(object_D[hit_D], return_index=True)[1]]] = True
    counted_D &= right_D | ~_incomplete(truths, columns, classes=len(class_names))
    result = np.full((len(class_names), 2), -1.0)
    for k in range(len(class_names)):
        count = int(np.sum((objects["labels"] == k) & ~objects["crowd"]))
        if count:
            result[k] = _average_precisions(right_D[counted_D & (columns["labels"] == k)], count)
    return result


def _incomplete(
    truths: Sequence[Truth], detections: dict[str, np.ndarray], *, classes: int
) -> np.ndarray:
    """bool (D,): whether a detection's image may have more objects of its class than annotated."""
    cells = [
        index * classes + truth.incomplete
        for index, truth in enumerate(truths)
        if truth.incomplete is not None
    ]
    cell_D = detections["images"] * classes + detections["labels"]
    return np.isin(cell_D, np.concatenate([np.zeros(0, np.int64), *cells]))


def _most_overlapping_objects(
    objects: dict[str, np.ndarray],
    detections: dict[str, np.ndarray],
    *,
    classes: int,
    threshold: float = 0.5,
) -> np.ndarray:
    """int (D,): the index of the object of its image and class that each detection overlaps most,
    the first of equals; -1 where that IoU is below the threshold.
    """
    cell_G, cell_D = (
        columns["images"] * classes + columns["labels"] for columns in (objects, detections)
    )
    order_G = np.argsort(cell_G, kind="stable")
    start_D, end_D = (np.searchsorted(cell_G[order_G], cell_D, side) for side in ("left", "right"))
    pairs_D = end_D - start_D
    # (P,): the pairs of a detection stand together, in the order of the objects.
    of_P = np.repeat(np.arange(len(cell_D)), pairs_D)
    object_P = order_G[
        np.arange(len(of_P)) - np.repeat(np.cumsum(pairs_D) - pairs_D - start_D, pairs_D)
    ]
    first, second = detections["boxes"][of_P], objects["boxes"][object_P]
    sides = np.minimum(first[:, 2:], second[:, 2:]) - np.maximum(first[:, :2], second[:, :2])
    shared_P = np.clip(sides, 0, None).prod(axis=1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (first, second)]
    iou_P = shared_P / np.maximum(areas[0] + areas[1] - shared_P, 1e-9)
    first_P = np.lexsort((-iou_P, of_P))
    has_D = np.flatnonzero(pairs_D)
    best_P = first_P[np.cumsum(pairs_D)[has_D] - pairs_D[has_D]]
    nearest_D = np.full(len(cell_D), -1)
    nearest_D[has_D] = np.where(iou_P[best_P] >= threshold, object_P[best_P], -1)
    return nearest_D


def _average_precisions(right_D: np.ndarray, objects: int) -> tuple[float, float]:
    """Over the whole curve and over 11 points; `right_D` (bool) says which detections, best first,
    are right.
    """
    if not len(right_D):
        return 0.0, 0.0
    hits_D = np.cumsum(right_D)
    # The precision at a recall is the largest at that recall or a higher one.
    precision_D = np.maximum.accumulate((hits_D / np.arange(1, len(hits_D) + 1))[::-1])[::-1]
    # Recall k / 10 is reached where 10 x hits >= k x objects: in integers, so that
    # rounding has no effect.
    reached = np.searchsorted(10 * hits_D, np.arange(11) * objects)
    eleven = np.append(precision_D, 0.0)[reached]
    return float(precision_D[right_D].sum() / objects), float(eleven.mean())
