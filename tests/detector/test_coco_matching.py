"""What COCO counts as a hit, a false alarm or neither. That all of it together is pycocotools' is
tested in tests/detector/test_weighted_ap.py, through the numbers that come of it.
"""

from __future__ import annotations

import numpy as np
import pytest

from detector.coco_matching import FALSE_ALARM, HIT, IGNORED, Matches, match
from detector.decode import Detections
from detector.metrics import Truth

BOX = (0.0, 0.0, 10.0, 10.0)


def truth(*boxes: tuple[float, ...], crowd: bool = False, incomplete: bool = False) -> Truth:
    count = len(boxes)
    return Truth(
        1,
        100,
        100,
        np.array(boxes).reshape(-1, 4),
        np.zeros(count, np.int64),
        np.full(count, crowd),
        np.full(count, 100.0),
        incomplete=np.array([0]) if incomplete else None,
    )


def matched(one: Truth, *boxes: tuple[float, ...], limit: int = 100) -> Matches:
    scores = np.linspace(0.9, 0.1, len(boxes), dtype=np.float32)
    its = Detections(np.array(boxes, np.float32), scores, np.zeros(len(boxes), np.int64))
    return match([one], {1: its}, ["a"], max_detections=limit)


def outcomes(matches: Matches, *, size: int = 0, threshold: int = 0) -> list[int]:
    return matches.classes[0].outcome_STD[size, threshold].tolist()


def test_an_object_is_hit_once():
    assert outcomes(matched(truth(BOX), BOX, BOX)) == [HIT, FALSE_ALARM]


def test_the_iou_decides_at_which_thresholds_a_detection_hits():
    # Shares 7 of 10 columns: 70 px^2 of 100 + 70 - 70.
    its = matched(truth(BOX), (0.0, 0.0, 7.0, 10.0)).classes[0].outcome_STD[0, :, 0]
    # 0.50, 0.55, 0.60, 0.65, 0.70 are reached.
    assert its.tolist() == [HIT] * 5 + [FALSE_ALARM] * 5


def test_a_detection_takes_the_free_object_that_it_overlaps_most():
    near, other = (0.0, 0.0, 10.0, 9.0), (0.0, 0.0, 10.0, 8.0)
    assert outcomes(matched(truth(other, near), BOX, BOX, BOX)) == [HIT, HIT, FALSE_ALARM]
    # At 0.85 only the nearer one can be hit, and the first detection has it.
    assert outcomes(matched(truth(other, near), BOX, BOX), threshold=7) == [HIT, FALSE_ALARM]


def test_of_objects_that_it_overlaps_equally_a_detection_takes_the_last():
    left, right = BOX, (4.0, 0.0, 14.0, 10.0)
    # Between both: 80 px^2 of 120 with each. The second detection overlaps the left one alone.
    found = ((2.0, 0.0, 12.0, 10.0), (-1.0, 0.0, 9.0, 10.0))
    assert outcomes(matched(truth(left, right), *found)) == [HIT, HIT]
    assert outcomes(matched(truth(right, left), *found)) == [HIT, FALSE_ALARM]


def test_a_crowd_takes_any_number_and_is_no_object():
    matches = matched(truth(BOX, crowd=True), BOX, (1.0, 1.0, 2.0, 2.0), (50.0, 50.0, 60.0, 60.0))
    # The small one lies in the crowd: the share of the detection counts, not the IoU.
    assert outcomes(matches) == [IGNORED, IGNORED, FALSE_ALARM]
    assert not len(matches.classes[0].image_G)


def test_a_size_ignores_objects_and_detections_of_other_sizes():
    matches = matched(truth(BOX), BOX, (50.0, 50.0, 60.0, 60.0), (0.0, 0.0, 99.0, 99.0))
    assert outcomes(matches, size=1) == [HIT, FALSE_ALARM, IGNORED]
    assert outcomes(matches, size=3) == [IGNORED, IGNORED, FALSE_ALARM]
    assert matches.classes[0].counted_SG[:, 0].tolist() == [True, True, False, False]


def test_detections_of_a_class_that_may_have_more_objects_are_no_false_alarms():
    matches = matched(truth(BOX, incomplete=True), BOX, BOX, (50.0, 50.0, 60.0, 60.0))
    assert outcomes(matches) == [HIT, IGNORED, IGNORED]


def test_the_best_of_an_image_and_class_count():
    assert outcomes(matched(truth(BOX), (50.0, 50.0, 60.0, 60.0), BOX, BOX, limit=2)) == [
        FALSE_ALARM,
        HIT,
    ]


def test_images_and_classes_are_matched_apart_and_ordered_by_score_image_and_rank():
    boxes, labels = np.array([BOX, BOX, BOX], np.float32), np.array([0, 1, 0])
    truths = [
        Truth(i, 100, 100, boxes[:1], labels[:1], np.zeros(1, bool), np.full(1, 100.0))
        for i in (9, 4)
    ]
    its = Detections(boxes, np.array([0.5, 0.5, 0.5], np.float32), labels)
    matches = match(truths, {9: its, 4: its}, ["a", "b"])
    assert matches.image_ids.tolist() == [4, 9]
    first, second = matches.classes
    assert first.image_D.tolist() == [0, 0, 1, 1] and second.image_D.tolist() == [0, 1]
    assert first.outcome_STD[0, 0].tolist() == [HIT, FALSE_ALARM] * 2
    assert second.outcome_STD[0, 0].tolist() == [FALSE_ALARM] * 2


def test_an_empty_set_has_nothing_to_match():
    matches = match([], {}, ["a"])
    assert not len(matches.image_ids) and not len(matches.classes[0].image_D)


def test_detections_without_a_truth_and_labels_out_of_range_are_refused():
    its = Detections(np.array([BOX]), np.array([0.5]), np.array([1]))
    with pytest.raises(ValueError, match="not in the truth"):
        match([truth(BOX)], {2: its}, ["a", "b"])
    with pytest.raises(ValueError, match="not all in"):
        match([truth(BOX)], {1: its}, ["a"])
