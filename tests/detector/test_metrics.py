"""The COCO table: worked by hand where it can be, and number for number what pycocotools says of
the same COCO files.
"""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detector.decode import Detections
from detector.metrics import SUMMARY_NAMES, CocoTable, Truth, _coco_index, coco_table
from detector.voc_metrics import voc_average_precisions

NAMES = ("cat", "dog", "bird")


def truth(image_id: int, *objects: tuple[list[float], int], crowd: tuple[int, ...] = ()) -> Truth:
    """Objects as (XYXY, label); `crowd` holds the places of those that are regions."""
    boxes = np.array([box for box, _ in objects], np.float32).reshape(-1, 4)
    labels = np.array([label for _, label in objects], np.int64)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return Truth(image_id, 480, 640, boxes, labels, np.isin(np.arange(len(objects)), crowd), area)


def found(*rows: tuple[list[float], int, float]) -> Detections:
    rows = tuple(sorted(rows, key=lambda row: -row[2]))
    boxes = np.array([box for box, _, _ in rows], np.float32).reshape(-1, 4)
    return Detections(
        boxes,
        np.array([score for _, _, score in rows], np.float32),
        np.array([label for _, label, _ in rows], np.int64),
    )


A, B, C = [10.0, 10, 110, 110], [200.0, 50, 320, 170], [400.0, 300, 520, 420]


def table_of(truths: list[Truth], detections: dict[int, Detections]) -> CocoTable:
    return coco_table(truths, detections, NAMES)


def test_perfect_detections():
    truths = [truth(5, (A, 0), (B, 1)), truth(9, (C, 2)), truth(11)]
    table = table_of(truths, {5: found((A, 0, 0.9), (B, 1, 0.8)), 9: found((C, 2, 0.7))})
    # A match of the very first annotation would be lost, were its id 0.
    assert [table.summary[name] for name in ("AP", "AP50", "AR100")] == pytest.approx([1, 1, 1])
    assert {name: row["AP"] for name, row in table.per_class.items()} == pytest.approx(
        dict.fromkeys(NAMES, 1.0)
    )
    assert (table.images, table.detections) == (3, 3)


def test_detections_of_a_class_that_was_not_searched_for_are_not_scored():
    # Cats are annotated in 1 and known to be absent in 2; nobody looked for them in 3.
    searched = [np.array([0]), np.array([0, 2]), np.array([1])]
    whole = [truth(1, (A, 0)), truth(2), truth(3, (B, 1))]
    partly = [replace(one, searched=labels) for one, labels in zip(whole, searched, strict=True)]
    wrong = {2: found((A, 0, 0.9)), 3: found((A, 0, 0.8), (B, 1, 0.7))}
    detections = {1: found((A, 0, 0.5)), **wrong}
    for truths, precision, scored in ((whole, 1 / 3, 4), (partly, 1 / 2, 3)):
        # One cat, found behind two false alarms, or behind one.
        table = table_of(truths, detections)
        assert table.per_class["cat"]["AP"] == pytest.approx(precision)
        assert table.per_class["dog"]["AP"] == pytest.approx(1) and table.detections == scored
        voc = voc_average_precisions(truths, detections, NAMES)
        assert voc[0].tolist() == pytest.approx([precision, precision])


def test_detections_without_an_object_do_not_count_where_objects_may_be_missing():
    # In image 1 not every cat is annotated. Its second detection of the annotated one and the one
    # far from it, of any size, are no false alarms; that of a dog is.
    small = [300.0, 10, 310, 20]
    cats = ((A, 0, 0.9), (C, 0, 0.8), (small, 0, 0.7), (A, 0, 0.6))
    detections = {1: found(*cats, (C, 1, 0.9), (B, 1, 0.5)), 2: found((C, 0, 0.75), (B, 0, 0.5))}
    whole = [truth(1, (A, 0), (B, 1)), truth(2, (B, 0))]
    partly = [replace(whole[0], incomplete=np.array([0])), whole[1]]
    # Cats by score: hit, wrong, wrong, wrong, wrong, hit (2 of 6); and hit, wrong, hit (2 of 3).
    # COCO reads 101 points of recall, 51 of them up to 0.5.
    for truths, last in ((whole, 2 / 6), (partly, 2 / 3)):
        table = table_of(truths, detections)
        assert table.per_class["cat"]["AP"] == pytest.approx((51 + 50 * last) / 101)
        assert table.per_class["cat"]["objects"] == 2 and table.detections == 8
        assert table.per_class["dog"]["AP"] == pytest.approx(1 / 2)
        voc = voc_average_precisions(truths, detections, NAMES)
        assert voc[0, 0] == pytest.approx((1 + last) / 2) and voc[1, 0] == pytest.approx(1 / 2)


def test_average_precision_by_hand():
    # Hit, miss, hit for two objects. Precision 1 up to recall 0.5, then 2 / 3. COCO reads 101
    # points: 51 at 0.00..0.50, 50 beyond.
    table = table_of([truth(1, (A, 0), (B, 0))], {1: found((A, 0, 0.9), (C, 0, 0.8), (B, 0, 0.7))})
    expected = (51 * 1 + 50 * 2 / 3) / 101
    assert table.summary["AP"] == pytest.approx(expected) and table.summary[
        "AP50"
    ] == pytest.approx(expected)
    assert table.precision_RK[:, 0] == pytest.approx([1.0] * 51 + [2 / 3] * 50)
    # One detection an image: the first of two objects. Both are larger than 96 x 96.
    assert table.summary["AR1"] == pytest.approx(0.5) and table.summary["AR10"] == pytest.approx(
        1.0
    )
    assert (
        table.summary["AP_large"] == pytest.approx(expected)
        and table.summary["AP_small"] is table.summary["AP_medium"] is None
    )


def test_thresholds_by_hand():
    # The upper 72 of 100 rows: IoU 0.72, a hit at 0.50, 0.55, 0.60, 0.65 and 0.70 of the ten
    # thresholds.
    table = table_of([truth(1, (A, 0))], {1: found(([10.0, 10, 110, 82], 0, 0.9))})
    assert table.summary["AP"] == pytest.approx(0.5)
    assert (table.summary["AP50"], table.summary["AP75"]) == pytest.approx((1, 0))


def test_size_classes_go_by_the_annotated_area():
    # 20 x 20 = 400 < 32^2 is small; 100 x 100 with a mask of 2,000 px^2 is medium, 32^2..96^2.
    small, masked = [10.0, 10, 30, 30], [200.0, 50, 300, 150]
    one = truth(1, (small, 0), (masked, 0))
    one = Truth(1, 480, 640, one.boxes_N4, one.labels_N, one.crowd_N, np.array([400.0, 2000.0]))
    table = table_of([one], {1: found((small, 0, 0.9))})
    assert (
        table.summary["AP_small"],
        table.summary["AP_medium"],
        table.summary["AP_large"],
    ) == (pytest.approx(1), pytest.approx(0), None)


def test_crowds_count_neither_for_nor_against():
    region = [300.0, 200, 600, 450]
    truths = [truth(1, (A, 0), (region, 0), crowd=(1,))]
    in_the_crowd = ([320.0, 220, 420, 320], 0, 0.95)
    table = table_of(
        truths, {1: found((A, 0, 0.9), in_the_crowd, ([400.0, 300, 500, 400], 0, 0.94))}
    )
    assert table.summary["AP"] == pytest.approx(1)
    assert table.per_class["cat"]["objects"] == 1
    # Without the region the two detections before the hit leave precision 1 / 3 everywhere.
    assert table_of(
        [truth(1, (A, 0))], {1: found((A, 0, 0.9), in_the_crowd, ([400.0, 300, 500, 400], 0, 0.94))}
    ).summary["AP"] == pytest.approx(1 / 3)


def test_no_detections_are_zeros_and_no_truth_is_none():
    truths = [truth(1, (A, 0), (B, 2)), truth(2)]
    for nothing in ({}, {1: found(), 2: found()}):
        table = table_of(truths, nothing)
        # All objects are larger than 96 x 96.
        missing = {name for name in SUMMARY_NAMES if name.endswith(("small", "medium"))}
        assert table.summary == {name: None if name in missing else 0.0 for name in SUMMARY_NAMES}
        assert {name: row["AP"] for name, row in table.per_class.items()} == {
            "cat": 0.0,
            "dog": None,
            "bird": 0.0,
        }
        assert (
            table.precision_RK.shape == (101, 3)
            and table.precision_RK[:, 1].max() == -1
            and table.detections == 0
        )
    assert table_of([truth(2)], {}).summary["AP"] is None
    table = table_of([truth(2)], {2: found((A, 0, 0.9))})
    assert table.summary["AP"] is None and table.per_class["cat"]["AP"] is None
    assert "-1" not in table.as_text() and "-1" not in json.dumps(table.as_dict())
    assert table_of([], {}).images == 0


def test_a_class_without_truth_has_no_score_and_is_left_out_of_the_mean():
    table = table_of([truth(1, (A, 0))], {1: found((A, 0, 0.9), (A, 1, 0.8))})
    assert table.summary["AP"] == pytest.approx(1)
    assert {name: value for name, value in table.per_class["dog"].items() if value is not None} == {
        "objects": 0.0
    }


def test_detections_of_unknown_images_are_refused():
    with pytest.raises(ValueError, match="image_id 3"):
        table_of([truth(1, (A, 0))], {1: found((A, 0, 0.9)), 4: found(), 3: found((A, 0, 0.9))})


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_out_of_range_are_refused(label):
    with pytest.raises(ValueError, match=r"image_id 1: labels .* 0\.\.2"):
        table_of([truth(1, (A, 0))], {1: found((A, label, 0.9))})


def test_ids_of_images_may_be_as_large_as_a_shard_set_takes_them():
    # float64 holds no odd number above 2^53, and ids times 16 classes that lie 2^60 apart are one
    # in 64 bits.
    ids = (2**53, 2**53 + 1, 2**53 + 2**60, 2**63 - 1)
    truths, detections = [truth(i, (A, 0)) for i in ids], {i: found((A, 0, 0.9)) for i in ids}
    names = [f"class {k}" for k in range(16)]
    table = coco_table(truths, detections, names)
    assert [table.summary[name] for name in ("AP", "AR1")] == pytest.approx([1, 1])
    assert voc_average_precisions(truths, detections, names)[0].tolist() == pytest.approx([1, 1])


def test_our_ids_start_at_one():
    index = _coco_index([truth(1, (A, 0), (B, 1)), truth(0, (C, 2))], NAMES)
    assert sorted(index.anns) == [1, 2, 3] and sorted(index.cats) == [1, 2, 3]
    assert index.anns[2]["bbox"] == [200, 50, 120, 120]


def random_set(seed: int) -> tuple[list[Truth], dict[int, Detections]]:
    """Images with up to eight objects of all sizes, some crowds, and detections that are shifted,
    doubled, missed and invented.
    """
    random = np.random.default_rng(seed)
    truths, detections = [], {}
    for image_id in random.choice(10_000, 12, replace=False).tolist():
        count = int(random.integers(0, 9))
        sides = np.exp(random.uniform(np.log(8), np.log(250), (count, 2)))
        corners = random.uniform(0, 1, (count, 2)) * [640, 480] * 0.6
        boxes = np.concatenate([corners, corners + sides], axis=1).astype(np.float32)
        labels = random.integers(0, 3, count)
        area = (sides.prod(axis=1) * random.uniform(0.4, 1.0, count)).astype(np.float32)
        truths.append(Truth(image_id, 480, 640, boxes, labels, random.random(count) < 0.15, area))
        if count == 0 and random.random() < 0.5:
            continue
        picked = random.integers(0, max(count, 1), int(random.integers(1, 14)) if count else 0)
        moved = boxes[picked] + random.normal(0, 0.08, (len(picked), 4)).astype(
            np.float32
        ) * np.repeat(sides[picked], 2, axis=1).astype(np.float32)
        stray = np.array([[5, 5, 60, 80], [300, 200, 380, 333]], np.float32)
        every = np.concatenate([moved, stray])
        every[:, 2:] = np.maximum(every[:, 2:], every[:, :2] + 1)
        its_labels = np.concatenate(
            [np.where(random.random(len(picked)) < 0.8, labels[picked], 1), [0, 2]]
        ).astype(np.int64)
        scores = np.sort(random.random(len(every)).astype(np.float32))[::-1]
        order = random.permutation(len(every))
        detections[image_id] = Detections(every[order], scores.copy(), its_labels[order])
    return truths, detections


@pytest.mark.parametrize("seed", range(4))
def test_same_numbers_as_pycocotools_on_the_coco_files(seed, tmp_path):
    truths, detections = random_set(seed)
    ids = (3, 17, 80)  # category ids of the file, by label
    annotations, results = [], []
    for one in truths:
        for box, label, crowd, area in zip(
            one.boxes_N4.tolist(),
            one.labels_N.tolist(),
            one.crowd_N.tolist(),
            one.area_N.tolist(),
            strict=True,
        ):
            xywh = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            place = {
                "id": 1000 + len(annotations),
                "image_id": one.image_id,
                "category_id": ids[label],
            }
            annotations.append({**place, "bbox": xywh, "area": area, "iscrowd": int(crowd)})
    for image_id, its in detections.items():
        for box, score, label in zip(
            its.boxes_N4.tolist(), its.scores_N.tolist(), its.labels_N.tolist(), strict=True
        ):
            xywh = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            results.append(
                {"image_id": image_id, "category_id": ids[label], "bbox": xywh, "score": score}
            )
    images = [
        {"id": one.image_id, "height": 480, "width": 640, "file_name": f"{one.image_id}.jpg"}
        for one in truths
    ]
    categories = [{"id": category, "name": name} for category, name in zip(ids, NAMES, strict=True)]
    (tmp_path / "truth.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    (tmp_path / "results.json").write_text(json.dumps(results))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(tmp_path / "truth.json"))
        evaluation = COCOeval(coco, coco.loadRes(str(tmp_path / "results.json")), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    table = table_of(truths, detections)
    assert 0.05 < table.summary["AP"] < 0.95
    assert list(table.summary.values()) == evaluation.stats.tolist()
    for k, name in enumerate(NAMES):
        precision = evaluation.eval["precision"][:, :, k, 0, -1]
        assert table.per_class[name]["AP"] == pytest.approx(precision.mean(), abs=1e-9)
        assert table.per_class[name]["AP50"] == pytest.approx(precision[0].mean(), abs=1e-9)


def test_the_order_in_which_images_come_does_not_matter():
    truths, detections = random_set(7)
    # Equal scores everywhere: the order is the whole difference.
    detections = {
        k: Detections(d.boxes_N4, np.full_like(d.scores_N, 0.5), d.labels_N)
        for k, d in detections.items()
    }
    forth = table_of(truths, detections)
    back = table_of(truths[::-1], dict(reversed(detections.items())))
    assert forth.summary == back.summary and forth.per_class == back.per_class


def test_the_table_as_text_and_as_json():
    table = table_of([truth(1, (A, 0), (B, 1))], {1: found((A, 0, 0.9))})
    text = table.as_text()
    # dog was missed, and there is no bird: zeros, and dashes for what cannot be said.
    assert text.splitlines()[-2].split() == [
        "dog",
        "1",
        "0.0000",
        "0.0000",
        "0.0000",
        "-",
        "-",
        "0.0000",
        "0.0000",
    ]
    assert text.splitlines()[-1].split() == ["bird", "0", *"-------"]
    assert text.startswith("1 images, 1 detections") and all(
        name in text for name in (*SUMMARY_NAMES, *NAMES)
    )
    again = json.loads(json.dumps(table.as_dict(), allow_nan=False))
    assert again["AP50"] == table.summary["AP50"] and again["per_class"]["dog"]["objects"] == 1


def test_a_class_name_stays_in_its_cell() -> None:
    names = ["new\nline", "\x1b[2J", "x" * 300]
    lines = coco_table([], {}, names).as_text().splitlines()[-3:]
    assert [line.split()[0] for line in lines] == ["new\\nline", "\\x1b[2J", "x" * 37 + "..."]
