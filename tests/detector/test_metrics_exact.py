"""The COCO numbers are pycocotools' to the last bit: every entry of precision and recall, and the
twelve means, on whatever data can come.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import pickle
from dataclasses import replace

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detector.decode import Detections
from detector.metrics import (
    SUMMARY_NAMES,
    Truth,
    _coco_index,
    _curves,
    coco_table,
    joined_detections,
)

LIMITS = ([1, 10, 100], [1, 2, 3], [5, 50, 300], [100])
CASES = list(itertools.product(("free", "lattice"), ("one image", "few", "many"), range(8)))


def random_boxes(random: np.random.Generator, kind: str, count: int) -> np.ndarray:
    """XYXY. On the lattice many overlaps are equal, and areas lie on the borders of the sizes, 32^2
    and 96^2; some boxes have no width or height.
    """
    if kind == "lattice":
        corners = random.integers(0, 4, (count, 2)) * 8.0
        sides = random.choice(
            [0, 8, 16, 24, 32, 96], (count, 2), p=[0.05, 0.25, 0.25, 0.2, 0.2, 0.05]
        )
    else:
        corners, sides = (
            random.uniform(-5, 60, (count, 2)),
            np.exp(random.uniform(-1, 5, (count, 2))),
        )
    return np.concatenate([corners, corners + sides], axis=1).astype(np.float32)


def random_case(kind: str, size: str, seed: int) -> tuple[list[Truth], dict[int, Detections], int]:
    """Truth, detections and the number of classes: crowds, ties of scores and of overlaps, images
    without objects, without detections or without both, classes without objects, more detections
    than any limit.
    """
    random = np.random.default_rng([seed, len(kind), len(size)])
    images = {"one image": 1, "few": 5, "many": 60}[size]
    classes = int(random.integers(1, 5))
    named = random.choice(classes, max(1, classes - seed % 2), replace=False)
    crowds = random.choice([0, 0.3])
    truths, detections = [], {}
    for image_id in random.choice(10**9 if seed % 3 else images, images, replace=False).tolist():
        count = int(random.integers(0, 7))
        boxes, labels = random_boxes(random, kind, count), random.choice(named, count)
        edges = random.choice(
            [0.0, 1024.0, np.nextafter(1024.0, 0), np.nextafter(1024.0, 2000), 9216.0, 1e10], count
        )
        area = np.where(
            random.random(count) < 0.3, edges, (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
        )
        truths.append(Truth(image_id, 100, 100, boxes, labels, random.random(count) < crowds, area))
        if random.random() < 0.15:
            continue
        given = int(random.choice([0, 1, 3, 8, 30, 400], p=[0.1, 0.1, 0.3, 0.3, 0.15, 0.05]))
        its_boxes, its_labels = (
            random_boxes(random, kind, given),
            random.integers(0, classes, given),
        )
        if count:
            of, near = random.integers(0, count, given), random.random(given) < 0.6
            moved = boxes[of] + (0 if kind == "lattice" else random.normal(0, 1, (given, 4)))
            its_boxes, its_labels = (
                np.where(near[:, None], moved, its_boxes).astype(np.float32),
                np.where(near, labels[of], its_labels),
            )
        scores = (
            random.choice([0.1, 0.5, 0.9], given) if seed % 4 == 1 else random.random(given)
        ).astype(np.float32)
        best_first = np.argsort(-scores, kind="stable")
        detections[image_id] = Detections(
            its_boxes[best_first], scores[best_first], its_labels[best_first]
        )
    return truths, detections, classes


def by_pycocotools(
    truths: list[Truth], detections: dict[int, Detections], classes: int, limits: list[int]
) -> COCOeval:
    """In one process, from dictionaries as they stand in COCO's files."""

    def xywh(box: list[float]) -> list[float]:
        return [box[0], box[1], box[2] - box[0], box[3] - box[1]]

    annotations, results = [], []
    for one in truths:
        for box, label, crowd, area in zip(
            one.boxes_N4.tolist(),
            one.labels_N.tolist(),
            one.crowd_N.tolist(),
            one.area_N.tolist(),
            strict=True,
        ):
            place = {"id": len(annotations) + 1, "image_id": one.image_id, "category_id": label + 1}
            annotations.append({**place, "bbox": xywh(box), "area": area, "iscrowd": int(crowd)})
    for image_id, its in detections.items():
        for box, score, label in zip(
            its.boxes_N4.tolist(), its.scores_N.tolist(), its.labels_N.tolist(), strict=True
        ):
            results.append(
                {"image_id": image_id, "category_id": label + 1, "bbox": xywh(box), "score": score}
            )
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": one.image_id, "height": 100, "width": 100} for one in truths],
            "annotations": annotations,
        }
        coco.dataset["categories"] = [{"id": k + 1, "name": f"c{k}"} for k in range(classes)]
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.params.maxDets = limits
        evaluation.evaluate()
        evaluation.accumulate()
        if limits == [1, 10, 100]:
            evaluation.summarize()
    return evaluation


def stats_of(evaluation: COCOeval) -> list[float | None]:
    """pycocotools' twelve numbers, with None for its -1."""
    return [None if value == -1 else value for value in evaluation.stats.tolist()]


def names_of(classes: int) -> list[str]:
    return [f"c{k}" for k in range(classes)]


@pytest.mark.parametrize(("kind", "size", "seed"), CASES)
def test_every_entry_is_that_of_pycocotools(kind, size, seed):
    truths, detections, classes = random_case(kind, size, seed)
    if not sum(len(its.scores_N) for its in detections.values()):
        # pycocotools raises IndexError; what is said then is tested in
        # tests/detector/test_metrics.py.
        assert coco_table(truths, detections, names_of(classes)).detections == 0
        return
    found = joined_detections(
        sorted(truths, key=lambda t: t.image_id), detections, names_of(classes)
    )
    index = _coco_index(sorted(truths, key=lambda t: t.image_id), names_of(classes))
    for limits in LIMITS:
        reference = by_pycocotools(truths, detections, classes, limits)
        precision, recall = _curves(index, found, limits)
        assert np.array_equal(precision, reference.eval["precision"]) and np.array_equal(
            recall, reference.eval["recall"]
        )
        if limits == [1, 10, 100]:
            summary = coco_table(truths, detections, names_of(classes)).summary
            assert list(summary) == list(SUMMARY_NAMES) and list(summary.values()) == stats_of(
                reference
            )


def test_the_cases_hold_what_they_claim():
    every = [random_case(*case) for case in CASES]
    truths = [one for its, _, _ in every for one in its]
    found = [its for _, detections, _ in every for its in detections.values()]
    assert any(one.crowd_N.any() for one in truths) and any(not len(one.labels_N) for one in truths)
    assert any(1024 in one.area_N for one in truths) and any(9216 in one.area_N for one in truths)
    assert any(((one.boxes_N4[:, 2:] - one.boxes_N4[:, :2]) == 0).any() for one in truths)
    assert any(not len(its.scores_N) for its in found) and any(
        len(its.scores_N) > 300 for its in found
    )
    assert any(len(np.unique(its.scores_N)) < len(its.scores_N) for its in found)
    assert any(
        len(set(np.concatenate([one.labels_N for one in its]).tolist())) < classes
        for its, _, classes in every
    )
    # One of them is worth nothing, and most are not all right or all wrong.
    means = [
        coco_table(its, detections, names_of(classes)).summary["AP"]
        for its, detections, classes in every
    ]
    assert np.mean([value is not None and 0.01 < value < 0.99 for value in means]) > 0.5


@pytest.mark.parametrize("ranks", range(1, 6))
def test_the_numbers_do_not_depend_on_how_images_are_spread_over_ranks(ranks):
    truths, detections, classes = random_case("lattice", "many", 1)
    reference = by_pycocotools(truths, detections, classes, [1, 10, 100])
    random = np.random.default_rng(ranks)
    for _ in range(3):
        parts: list[dict[int, Detections]] = [{} for _ in range(ranks)]
        for image_id in random.permutation(list(detections)).tolist():
            parts[int(random.integers(ranks))][image_id] = detections[image_id]
        parts = [pickle.loads(pickle.dumps(parts[rank])) for rank in random.permutation(ranks)]
        merged = {image_id: its for part in parts for image_id, its in part.items()}
        table = coco_table(
            [truths[i] for i in random.permutation(len(truths))], merged, names_of(classes)
        )
        assert list(table.summary.values()) == stats_of(reference)
        assert np.array_equal(table.precision_RK, reference.eval["precision"][0, :, :, 0, -1])


def test_each_class_is_scored_as_if_it_were_alone():
    truths, detections, classes = random_case("free", "many", 0)
    table = coco_table(truths, detections, names_of(classes))
    assert classes > 1
    for k, name in enumerate(names_of(classes)):
        its_truths = [
            Truth(
                t.image_id,
                t.height,
                t.width,
                *(
                    column[t.labels_N == k]
                    for column in (t.boxes_N4, t.labels_N, t.crowd_N, t.area_N)
                ),
            )
            for t in truths
        ]
        its = {
            i: Detections(
                *(column[d.labels_N == k] for column in (d.boxes_N4, d.scores_N, d.labels_N))
            )
            for i, d in detections.items()
        }
        stats = dict(
            zip(
                SUMMARY_NAMES,
                stats_of(by_pycocotools(its_truths, its, classes, [1, 10, 100])),
                strict=True,
            )
        )
        stats["AR"] = stats["AR100"]
        assert {
            column: value for column, value in table.per_class[name].items() if column != "objects"
        } == {column: stats[column] for column in table.per_class[name] if column != "objects"}


def test_recall_at_any_limit():
    truths, detections, classes = random_case("free", "many", 0)
    table = coco_table(truths, detections, names_of(classes), max_detections=(300, 7, 7))
    recall = by_pycocotools(truths, detections, classes, [7, 300]).eval["recall"]
    at = {
        limit: recall[:, :, 0, m][recall[:, :, 0, m] > -1].mean()
        for m, limit in enumerate((7, 300))
    }
    assert (table.summary["AR7"], table.summary["AR300"]) == (at[7], at[300]) and at[7] < at[300]
    assert "AR100" not in table.summary and table.summary["AP"] > 0


@pytest.mark.parametrize("seed", range(8))
def test_images_not_searched_for_every_class_are_scored_by_the_rule_of_lvis(seed):
    """LVIS's evaluation is COCO's with two changes (evaluate_img and _prepare of lvis-api)."""
    random = np.random.default_rng(seed)
    truths, detections, classes = random_case("free", "many", seed)
    # Detections lie in the picture and have an extent.
    truths = [replace(one, boxes_N4=one.boxes_N4 + 10, height=1000, width=1000) for one in truths]
    detections = {
        id_: Detections(
            *(column[has_extent] for column in (its.boxes_N4 + 10, its.scores_N, its.labels_N))
        )
        for id_, its in detections.items()
        for has_extent in [(its.boxes_N4[:, 2:] > its.boxes_N4[:, :2]).all(axis=1)]
    }
    searched, incomplete = (
        {one.image_id: np.flatnonzero(random.random(classes) < share) for one in truths}
        for share in (0.5, 0.4)
    )
    searched = {one.image_id: np.union1d(searched[one.image_id], one.labels_N) for one in truths}
    kept_N = {id_: np.isin(its.labels_N, searched[id_]) for id_, its in detections.items()}
    kept = {
        id_: Detections(*(column[kept_N[id_]] for column in vars(its).values()))
        for id_, its in detections.items()
    }
    theirs = by_pycocotools(truths, kept, classes, [1, 10, 100])
    for one in filter(None, theirs.evalImgs):
        if one["category_id"] - 1 in incomplete[one["image_id"]]:
            one["dtIgnore"] = np.logical_or(one["dtIgnore"], one["dtMatches"] == 0)
    with contextlib.redirect_stdout(io.StringIO()):
        theirs.accumulate()
        theirs.summarize()
    partly = [
        replace(one, searched=searched[one.image_id], incomplete=incomplete[one.image_id])
        for one in truths
    ]
    table = coco_table(partly, detections, names_of(classes))
    assert [table.summary[name] for name in SUMMARY_NAMES] == theirs.stats.tolist()
    assert table.summary != coco_table(truths, detections, names_of(classes)).summary
