"""The words about an image name each error once, and the suspects are confident disagreements."""

from __future__ import annotations

import numpy as np
import pytest

from detector.decode import Detections
from detector.error_kinds import error_kinds
from detector.image_errors import image_scores, remarks, summed_up
from detector.judgement import Judgement, judge
from detector.label_suspects import SUSPECTS, as_coco, label_suspects
from detector.metrics import Truth
from tests.support.judged_sets import NAMES, judged_set


@pytest.fixture(scope="module")
def judged() -> Judgement:
    truths, detections = judged_set(1, crowds=True)
    return judge(truths, detections, NAMES, resamples=0)


def test_each_error_of_an_image_has_one_remark(judged: Judgement):
    """Missed objects that a box or class error is about have the remark of that error."""
    for image in range(len(judged.pairing.image_ids)):
        said = remarks(judged.pairing, judged.errors, judged.kept_D, image)
        false_alarms = [remark for remark in said if remark.detection >= 0]
        assert len(false_alarms) == judged.images.false_alarms_I[image]
        assert len(said) - len(false_alarms) <= judged.images.missed_I[image]
        about = {remark.object for remark in said if remark.object >= 0}
        there = judged.pairing.objects_of(image)
        for g in range(there.start, there.stop):
            hit = judged.pairing.detection_G[g]
            found = hit >= 0 and judged.kept_D[hit]
            assert found or g in about


def test_f1_of_the_set_is_that_of_the_images(judged: Judgement):
    found = judged.images
    assert found.hits_I.sum() == np.trace(judged.confusion)
    assert (
        found.errors_I.sum()
        == (
            judged.confusion[-1].sum()
            + judged.confusion[:, -1].sum()
            # A confusion is a false alarm and a missed object.
            + 2 * (judged.confusion[:-1, :-1].sum() - np.trace(judged.confusion))
        )
    )


def test_the_worst_have_the_lowest_f1_and_the_best_the_highest(judged: Judgement):
    found = judged.images
    worst = found.worst(5)
    best = found.best(5, besides=worst)
    assert len(worst) == len(best) == 5 and not set(worst) & set(best)
    wrong = np.flatnonzero(found.errors_I)
    assert found.f1_I[worst].tolist() == sorted(found.f1_I[wrong].tolist())[:5]
    assert found.f1_I[best].min() >= found.f1_I[worst].max()


def one_image() -> Judgement:
    """An a taken for a b, a box of an a that does not fit, an a twice, a b of nothing; a missed a,
    one that is only 0.2 sure.
    """
    boxes = np.array([[30 * n, 0, 30 * n + 20, 20] for n in range(5)], float)
    truth = Truth(7, 200, 200, boxes, np.zeros(5, int), np.zeros(5, bool), np.full(5, 400.0))
    rows = [
        (boxes[0], 1, 0.95),
        ([30, 0, 50, 9], 0, 0.9),
        (boxes[2], 0, 0.8),
        ([60, 0, 80, 19], 0, 0.7),
        ([0, 150, 20, 170], 1, 0.6),
        (boxes[3], 0, 0.2),
    ]
    found = Detections(
        np.array([box for box, _, _ in rows], float),
        np.array([score for _, _, score in rows]),
        np.array([label for _, label, _ in rows]),
    )
    return judge([truth], {7: found}, ("a", "b"), resamples=0)


def test_the_words_by_hand():
    judged = one_image()
    kept_D = judged.pairing.score_D > 0.5
    said = remarks(judged.pairing, error_kinds(judged.pairing), kept_D, 0)
    assert [remark.words for remark in said] == [
        "a taken for b (0.95)",
        "box of a does not fit: IoU 0.45 (0.90)",
        "a found twice (0.70)",
        "b where nothing is labelled (0.60)",
        "a missed: only 0.20 sure of it",
        "a missed",
    ]
    assert summed_up(said) == (
        "1 of a wrong class, 1 with a box that does not fit, 1 found twice, 1 of nothing, 2 missed"
    )
    scores = image_scores(judged.pairing, kept_D)
    # Of the third object alone is a hit: 2 x 1 / (2 x 1 + 4 + 4).
    assert (scores.hits_I[0], scores.f1_I[0]) == (1, 0.2)
    assert judged.intervals is None


def test_suspects_are_a_coco_json_with_the_most_confident_first():
    judged = one_image()
    kept_D = judged.pairing.score_D > 0.5
    suspects_S = label_suspects(judged.pairing, judged.errors, kept_D)
    content = as_coco(
        judged.pairing,
        judged.errors,
        suspects_S,
        images={7: {"file_name": "7.jpg", "height": 200, "width": 200}},
        category_ids=[3, 18],
    )
    named = [(entry["suspect"], entry["score"]) for entry in content["annotations"]]
    assert named == [("wrong class", 0.95), ("loose box", 0.9), ("missing box", 0.6)]
    wrong, loose, missing = content["annotations"]
    assert (wrong["category_id"], wrong["labelled_category_id"], wrong["iou"]) == (18, 3, 1)
    # 20 x 9 of 20 x 20 px.
    assert (loose["bbox"], loose["labelled_bbox"]) == ([30, 0, 20, 9], [30, 0, 20, 20])
    assert loose["iou"] == 0.45 and loose["area"] == 180
    assert "labelled_bbox" not in missing and missing["image_id"] == 7
    assert content["images"] == [{"id": 7, "file_name": "7.jpg", "height": 200, "width": 200}]
    assert content["categories"] == [{"id": 3, "name": "a"}, {"id": 18, "name": "b"}]


def test_an_object_is_suspected_once_and_all_suspects_count(judged: Judgement):
    suspects_S = label_suspects(judged.pairing, judged.errors, judged.kept_D)
    score_S = judged.pairing.score_D[suspects_S]
    assert len(suspects_S) > 10 and (np.diff(score_S) <= 0).all()
    assert judged.kept_D[suspects_S].all()
    assert set(judged.errors.kind_D[suspects_S].tolist()) <= set(SUSPECTS)
    objects = judged.errors.object_D[suspects_S]
    assert len(set(objects[objects >= 0].tolist())) == (objects >= 0).sum()
    assert len(label_suspects(judged.pairing, judged.errors, judged.kept_D, most=4)) == 4
