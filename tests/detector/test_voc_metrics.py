"""PASCAL VOC's average precision: worked by hand, and number for number the rule of the devkit
taken one detection at a time.
"""

from __future__ import annotations

import numpy as np
import pytest

from detector.decode import Detections
from detector.metrics import Truth, coco_table
from detector.voc_metrics import _average_precisions, voc_average_precisions
from tests.detector.test_metrics import NAMES, A, B, found, random_set, truth


def test_both_rules_by_hand():
    # Right, wrong, right, wrong for four objects: recall 1/4, 1/4, 2/4, 2/4; precision 1, 1/2, 2/3,
    # 1/2; best from there on 1, 2/3, 2/3, 1/2.
    whole, eleven = _average_precisions(np.array([True, False, True, False]), 4)
    # Each right one adds a quarter of recall: 1/4 x 1 + 1/4 x 2/3.
    assert whole == pytest.approx(1 / 4 + 1 / 6)
    # Recall 0, 0.1, 0.2 are reached at precision 1, those of 0.3, 0.4, 0.5 at 2/3, the other five
    # never.
    assert eleven == pytest.approx((3 * 1 + 3 * 2 / 3) / 11)


def test_a_recall_that_is_reached_exactly_counts():
    # Three of ten objects: recall 0.3, which as a sum of tenths in floating point is above 3 / 10.
    # Points 0.0 to 0.3 of eleven.
    assert _average_precisions(np.array([True] * 3), 10) == pytest.approx((0.3, 4 / 11))


def test_no_detections_are_zero_and_no_objects_are_minus_one():
    assert voc_average_precisions([truth(1, (A, 0))], {}, NAMES).tolist() == [
        [0, 0],
        [-1, -1],
        [-1, -1],
    ]
    assert voc_average_precisions([], {}, NAMES).tolist() == [[-1, -1]] * 3
    assert voc_average_precisions([truth(2)], {2: found((A, 0, 0.9))}, NAMES).max() == -1


def test_the_second_detection_of_an_object_is_wrong_where_coco_gives_it_another():
    # Two objects overlap by IoU 90 / 110; both detections lie nearest to the first.
    first, second = [0.0, 0, 100, 100], [10.0, 0, 110, 100]
    truths = [truth(1, (first, 0), (second, 0))]
    detections = {1: found((first, 0, 0.9), ([1.0, 0, 101, 100], 0, 0.8))}
    # One right of two objects, and COCO at IoU 0.5: two.
    assert voc_average_precisions(truths, detections, NAMES)[0].tolist() == pytest.approx(
        [0.5, 6 / 11]
    )
    assert coco_table(truths, detections, NAMES).summary["AP50"] == pytest.approx(1)


def test_difficult_objects_count_neither_for_nor_against():
    truths = [truth(1, (A, 0), (B, 0), crowd=(1,))]
    twice = ([200.0, 52, 320, 170], 0, 0.94)
    assert voc_average_precisions(truths, {1: found((B, 0, 0.95), twice, (A, 0, 0.9))}, NAMES)[
        0
    ].tolist() == pytest.approx([1, 1])
    # The same without the difficult object: two false alarms before the hit, precision 1 / 3
    # everywhere.
    assert voc_average_precisions(
        [truth(1, (A, 0))], {1: found((B, 0, 0.95), twice, (A, 0, 0.9))}, NAMES
    )[0].tolist() == pytest.approx([1 / 3] * 2)


def test_an_overlap_of_one_half_is_a_hit():
    # 100 x 50 of 100 x 100 px: IoU 0.5 exactly.
    assert voc_average_precisions(
        [truth(1, (A, 0))], {1: found(([10.0, 10, 110, 60], 0, 0.9))}, NAMES
    )[0].tolist() == pytest.approx([1, 1])
    assert voc_average_precisions(
        [truth(1, (A, 0))], {1: found(([10.0, 10, 110, 59], 0, 0.9))}, NAMES
    )[0].tolist() == [0, 0]


def one_by_one(
    truths: list[Truth], detections: dict[int, Detections], label: int
) -> tuple[float, float]:
    """The devkit's loops: detections of a class best first, each to the object it overlaps most."""
    candidates = [
        (-score, image_id, rank, box)
        for image_id, its in detections.items()
        for rank, (box, score, named) in enumerate(
            zip(its.boxes_N4.tolist(), its.scores_N.tolist(), its.labels_N.tolist(), strict=True)
        )
        if named == label
    ]
    by_image = {one.image_id: one for one in truths}
    objects = sum(int(((one.labels_N == label) & ~one.crowd_N).sum()) for one in truths)
    if not objects:
        return -1.0, -1.0
    taken, right, wrong, curve = set(), 0, 0, []
    for _, image_id, _, (x1, y1, x2, y2) in sorted(candidates):
        one = by_image[image_id]
        best, nearest = -1.0, None
        for place in np.flatnonzero(one.labels_N == label).tolist():
            u1, v1, u2, v2 = one.boxes_N4[place].tolist()
            shared = max(min(x2, u2) - max(x1, u1), 0) * max(min(y2, v2) - max(y1, v1), 0)
            overlap = shared / ((x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - shared)
            if overlap > best:
                best, nearest = overlap, place
        if best >= 0.5 and one.crowd_N[nearest]:
            continue
        if best >= 0.5 and (image_id, nearest) not in taken:
            taken.add((image_id, nearest))
            right += 1
        else:
            wrong += 1
        curve.append((right, right / (right + wrong)))
    eleven = (
        sum(max([p for r, p in curve if 10 * r >= k * objects], default=0.0) for k in range(11))
        / 11
    )
    whole = (
        sum(max([p for r, p in curve if r > hit], default=0.0) for hit in range(objects)) / objects
    )
    return whole, eleven


@pytest.mark.parametrize("seed", range(6))
def test_same_numbers_as_one_detection_at_a_time(seed):
    truths, detections = random_set(seed)
    if seed % 2:
        # Equal scores: the order is the whole difference.
        detections = {
            k: Detections(d.boxes_N4, np.round(d.scores_N, 1), d.labels_N)
            for k, d in detections.items()
        }
    expected = [one_by_one(truths, detections, label) for label in range(3)]
    assert 0.02 < np.mean(expected) < 0.98
    assert voc_average_precisions(truths[::-1], detections, NAMES).tolist() == pytest.approx(
        np.array(expected)
    )
