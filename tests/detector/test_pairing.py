"""The pairs have COCO's outcomes, and each hit has an object of its own."""

from __future__ import annotations

import numpy as np
import pytest

from detector.coco_matching import HIT, match, of_images
from detector.pairing import all_overlaps, pair
from tests.detector.test_metrics_exact import CASES, names_of, random_case
from tests.support.judged_sets import NAMES, judged_set


@pytest.mark.parametrize("kind, size, seed", CASES[::3])
def test_outcomes_are_those_of_coco_at_this_iou(kind: str, size: str, seed: int):
    truths, detections, classes = random_case(kind, size, seed)
    names = names_of(classes)
    pairing = pair(truths, detections, names)
    for label, of in enumerate(match(truths, detections, names).classes):
        its = np.flatnonzero(pairing.label_D == label)
        best_first = its[np.argsort(-pairing.score_D[its], kind="stable")]
        # Size "all", IoU 0.5.
        np.testing.assert_array_equal(pairing.outcome_D[best_first], of.outcome_STD[0, 0])
        np.testing.assert_array_equal(pairing.image_D[best_first], of.image_D)
        np.testing.assert_array_equal(pairing.image_G[pairing.label_G == label], of.image_G)


def test_each_hit_has_an_object_of_its_own_class_and_image():
    truths, detections = judged_set(crowds=True)
    pairing = pair(truths, detections, NAMES)
    hits = np.flatnonzero(pairing.outcome_D == HIT)
    objects = pairing.object_D[hits]
    assert len(hits) > 30 and len(set(objects.tolist())) == len(hits)
    assert (pairing.object_D >= 0).sum() == len(hits)
    np.testing.assert_array_equal(pairing.detection_G[objects], hits)
    np.testing.assert_array_equal(pairing.image_D[hits], pairing.image_G[objects])
    np.testing.assert_array_equal(pairing.label_D[hits], pairing.label_G[objects])


def test_the_best_overlaps_are_those_with_the_objects_of_the_image():
    truths, detections = judged_set()
    pairing = pair(truths, detections, NAMES)
    for image in range(len(truths)):
        found, there = pairing.detections_of(image), pairing.objects_of(image)
        iou_DG = all_overlaps(pairing.boxes_D4[found], pairing.boxes_G4[there])
        same_DG = pairing.label_D[found][:, None] == pairing.label_G[there]
        for chosen_DG, iou_D in ((same_DG, pairing.own_iou_D), (~same_DG, pairing.other_iou_D)):
            best_D = np.where(chosen_DG, iou_DG, 0).max(axis=1, initial=0)
            np.testing.assert_array_equal(iou_D[found], best_D)


def test_overlaps_are_worked_out_by_hand():
    box, beside, inside = [0, 0, 10, 10], [5, 0, 15, 10], [0, 0, 5, 10]
    iou = all_overlaps(np.array([box, inside], float), np.array([beside, inside, box], float))
    # 50 / (100 + 100 - 50), 50 / 100, 1; 0, 1, 50 / 100.
    np.testing.assert_allclose(iou, [[1 / 3, 0.5, 1], [0, 1, 0.5]])
    # Of a crowd: the share of the detection in it.
    crowd = all_overlaps(np.array([inside], float), np.array([box], float), crowds=True)
    assert crowd.tolist() == [[1.0]]


def test_the_matches_of_some_images_are_those_of_these_images_alone():
    truths, detections, classes = random_case("lattice", "many", 1)
    names = names_of(classes)
    truths.sort(key=lambda truth: truth.image_id)
    chosen = np.arange(len(truths)) % 3 == 0
    some = [truth for truth, its in zip(truths, chosen, strict=True) if its]
    ids = {truth.image_id for truth in some}
    alone = match(some, {i: d for i, d in detections.items() if i in ids}, names)
    of_all = of_images(match(truths, detections, names), chosen)
    np.testing.assert_array_equal(of_all.image_ids, alone.image_ids)
    for one, other in zip(of_all.classes, alone.classes, strict=True):
        for name, column in vars(one).items():
            np.testing.assert_array_equal(column, getattr(other, name))
