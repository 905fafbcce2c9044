"""What the objects of each class were taken for, at given thresholds.

Shapes: K classes, G objects and D detections of a `Pairing`.
"""

from __future__ import annotations

import numpy as np

from detector.coco_matching import HIT
from detector.pairing import Pairing, all_overlaps


def confusion_matrix(pairing: Pairing, kept_D: np.ndarray) -> np.ndarray:
    """int (K + 1, K + 1): rows are the classes of objects, columns those of detections; the last of
    both is the background. `kept_D` (bool): the detections that count, ignored ones not among them.

    Hits stand on the diagonal. The rest is paired across the classes, one to one, the largest IoU
    first, down to that of the pairing. What is left is a missed object or a false alarm.
    """
    classes = len(pairing.class_names)
    matrix = np.zeros((classes + 1, classes + 1), np.int64)
    hit_D = kept_D & (pairing.outcome_D == HIT)
    np.add.at(matrix, (pairing.label_D[hit_D], pairing.label_D[hit_D]), 1)
    free_D, free_G = kept_D & ~hit_D, np.ones(len(pairing.label_G), bool)
    free_G[pairing.object_D[hit_D]] = False
    object_D = confused_objects(pairing, free_D, free_G)
    paired = np.flatnonzero(object_D >= 0)
    np.add.at(matrix, (pairing.label_G[object_D[paired]], pairing.label_D[paired]), 1)
    free_D[paired], free_G[object_D[paired]] = False, False
    np.add.at(matrix[classes], pairing.label_D[free_D], 1)
    np.add.at(matrix[:, classes], pairing.label_G[free_G], 1)
    return matrix


def confused_objects(pairing: Pairing, free_D: np.ndarray, free_G: np.ndarray) -> np.ndarray:
    """int (D,): the object that each free detection is paired with, -1 for none."""
    object_D = np.full(len(free_D), -1)
    # Objects of its own class at this IoU are not free: a better detection has them.
    candidate_D = free_D & (pairing.other_iou_D >= pairing.iou)
    for image in np.unique(pairing.image_D[candidate_D]).tolist():
        found, there = pairing.detections_of(image), pairing.objects_of(image)
        d_N = np.flatnonzero(candidate_D[found]) + found.start
        g_N = np.flatnonzero(free_G[there]) + there.start
        iou_NN = all_overlaps(pairing.boxes_D4[d_N], pairing.boxes_G4[g_N])
        while iou_NN.size and iou_NN.max() >= pairing.iou:
            d, g = np.unravel_index(iou_NN.argmax(), iou_NN.shape)
            object_D[d_N[d]] = g_N[g]
            iou_NN[d], iou_NN[:, g] = 0, 0
    return object_D
