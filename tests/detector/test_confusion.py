"""The confusion matrix counts each object and each detection once."""

from __future__ import annotations

import numpy as np
import pytest

from detector.confusion import confusion_matrix
from detector.operating_points import kept, thresholds
from detector.pairing import pair
from tests.support.judged_sets import NAMES, judged_set


def plain_iou(first: np.ndarray, second: np.ndarray) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return width * height / (areas[0] + areas[1] - width * height)


def plain_matrix(truths, detections, lowest: dict[int, float]) -> np.ndarray:
    """The rule of the docstring with loops over single boxes, without a `Pairing`."""
    classes = len(NAMES)
    matrix = np.zeros((classes + 1, classes + 1), int)
    for truth in truths:
        there = list(zip(truth.boxes_N4, truth.labels_N.tolist(), strict=True))
        found = []
        if truth.image_id in detections:
            its = detections[truth.image_id]
            rows = zip(its.boxes_N4, its.labels_N.tolist(), its.scores_N.tolist(), strict=True)
            found = [(box, label) for box, label, score in rows if score >= lowest[label]]
        left = []
        for box, label in found:
            overlap = [(plain_iou(box, g[0]), n) for n, g in enumerate(there) if g[1] == label]
            if overlap and max(overlap)[0] >= 0.5:
                matrix[label, label] += 1
                del there[max(overlap)[1]]
            else:
                left.append((box, label))
        pairs = []
        for i, (box, _) in enumerate(left):
            pairs += [(plain_iou(box, other), i, j) for j, (other, _) in enumerate(there)]
        pairs.sort(reverse=True)
        used_d, used_g = set(), set()
        for iou, i, j in pairs:
            if iou >= 0.5 and i not in used_d and j not in used_g:
                matrix[there[j][1], left[i][1]] += 1
                used_d.add(i)
                used_g.add(j)
        for i, (_, label) in enumerate(left):
            matrix[classes, label] += i not in used_d
        for j, (_, label) in enumerate(there):
            matrix[label, classes] += j not in used_g
    return matrix


@pytest.mark.parametrize("seed", range(4))
def test_it_is_that_of_a_second_computation(seed: int):
    truths, detections = judged_set(seed)
    pairing = pair(truths, detections, NAMES)
    chosen = thresholds(pairing)
    lowest = {label: chosen.lowest(name) for label, name in enumerate(NAMES)}
    matrix = confusion_matrix(pairing, kept(pairing, chosen))
    np.testing.assert_array_equal(matrix, plain_matrix(truths, detections, lowest))
    assert matrix[:3, :3].sum() > np.trace(matrix) > 0


def test_its_sums_are_the_objects_and_detections_and_its_diagonal_gives_precision_and_recall():
    pairing = pair(*judged_set(2, crowds=True), NAMES)
    chosen = thresholds(pairing)
    matrix = confusion_matrix(pairing, kept(pairing, chosen))
    np.testing.assert_array_equal(matrix[:3].sum(axis=1), pairing.objects_K)
    its = np.bincount(pairing.label_D[kept(pairing, chosen)], minlength=3)
    np.testing.assert_array_equal(matrix[:, :3].sum(axis=0), its)
    for label, name in enumerate(NAMES):
        point = chosen.classes[name]
        assert point is not None
        assert point.recall == pytest.approx(matrix[label, label] / matrix[label].sum())
        assert point.precision == pytest.approx(matrix[label, label] / matrix[:, label].sum())
