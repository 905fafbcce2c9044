"""One evaluation for all: the metrics of the tuple reach training and the verb alike."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from cluster.runs import package_files
from cluster.runs.evaluations import Request
from cluster.scoring import detect, evaluate, evaluate_package, truths
from cluster.scoring.evaluate import (
    EXAMPLES,
    MetricResult,
    evaluate_checkpoint,
    evaluate_detections,
    examples_of,
)
from cluster.shards import index
from cluster.shards.classes import ClassMatch
from cluster.shards.format import Category
from cluster.training import background_evaluation
from detector.choices import WHOLE_PICTURE, ViewSettings
from detector.decode import Detections
from detector.metrics import SUMMARY_NAMES, Truth, coco_table

NAMES = ("cat", "dog", "bird")
CATEGORIES = tuple(Category(label, label + 1, name) for label, name in enumerate(NAMES))
A, B, FAR = (10, 10, 60, 60), (100, 50, 160, 150), (200, 200, 240, 240)
REQUEST = Request("/run/checkpoints/images-000000000100", 100, 1)


def truth(image_id: int, *objects: tuple[tuple[int, ...], int]) -> Truth:
    boxes = np.array([box for box, _ in objects], np.float32).reshape(-1, 4)
    area = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).astype(np.float64)
    labels = np.array([label for _, label in objects], np.int64)
    return Truth(image_id, 300, 300, boxes, labels, np.zeros(len(objects), bool), area)


def detections(*rows: tuple[tuple[int, ...], int, float]) -> Detections:
    return Detections(
        np.array([box for box, _, _ in rows], np.float32).reshape(-1, 4),
        np.array([score for _, _, score in rows], np.float32),
        np.array([label for _, label, _ in rows], np.int64),
    )


# The cat is detected, the dog is missed, and there is no bird.
TRUTHS = [truth(1, (A, 0)), truth(2, (B, 1))]
DETECTIONS = {1: detections((A, 0, 0.9)), 2: detections((FAR, 1, 0.8), (A, 0, 0.3))}


def busiest_image(
    detections: Mapping[int, Detections], truths: Sequence[Truth], class_names: Sequence[str]
) -> MetricResult:
    """A metric that nobody needs: the largest number of detections in an image."""
    most = max(len(each.scores_N) for each in detections.values())
    per_class = {name: {"busiest": float(k)} for k, name in enumerate(class_names)}
    return MetricResult({"busiest": float(most)}, per_class)


@pytest.fixture
def made_up_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    """`busiest_image` in the tuple, and a model whose detections are `DETECTIONS`."""
    monkeypatch.setattr(evaluate, "METRICS", (*evaluate.METRICS, busiest_image))
    monkeypatch.setattr(package_files, "build_package", lambda *_, **__: None)
    shard_set = SimpleNamespace(
        uri="/val",
        digest="d" * 64,
        class_names=NAMES,
        categories=CATEGORIES,
        rows_per_group=[],
        locate_group=None,
    )
    # It takes the name when it is imported, and would keep what stands there until then.
    import cluster.training.preflight  # noqa: F401

    monkeypatch.setattr(index, "open_shard_set", lambda uri: shard_set)
    for module in (detect, evaluate_package):
        monkeypatch.setattr(module, "detect_set", lambda *_, **__: DETECTIONS)
    for module in (truths, evaluate_package):
        monkeypatch.setattr(module, "read_truths", lambda *_: TRUTHS)
    for module in (package_files, evaluate_package):
        monkeypatch.setattr(module, "read_package", lambda folder: {})
    monkeypatch.setattr(package_files, "read_classes", lambda folder: list(CATEGORIES))
    # The set has no files for it.
    monkeypatch.setattr(evaluate_package, "write_report_files", lambda *_, **__: None)


def test_coco_numbers_are_those_of_the_table() -> None:
    table = evaluate_detections(DETECTIONS, TRUTHS, NAMES, [evaluate.coco])
    expected = coco_table(TRUTHS, DETECTIONS, NAMES)
    assert table.as_dict() == expected.as_dict() and tuple(table.summary) == SUMMARY_NAMES
    np.testing.assert_array_equal(table.precision_RK, expected.precision_RK)
    assert (table.images, table.detections) == (2, 3)


def test_ap_by_frequency_is_the_mean_over_classes_that_have_objects() -> None:
    def summary(frequencies: dict[str, str]) -> Mapping[str, float | None]:
        return evaluate.coco(DETECTIONS, TRUTHS, NAMES, frequencies=frequencies).summary

    # cat 1, dog 0, bird without objects.
    found = summary({"cat": "f", "dog": "f", "bird": "f"})
    assert [found[f"AP_{key}"] for key in "rcf"] == [None, None, pytest.approx(0.5)]
    found = summary({"cat": "r", "dog": "c", "bird": "f"})
    assert [found[f"AP_{key}"] for key in "rcf"] == [pytest.approx(1), 0, None]
    assert tuple(summary({})) == SUMMARY_NAMES


def test_voc_adds_its_two_numbers_to_the_table() -> None:
    table = evaluate_detections(DETECTIONS, TRUTHS, NAMES, [*evaluate.METRICS, evaluate.voc])
    # cat 1, dog 0, bird without objects: the mean is over two classes.
    assert (table.summary["VOC_AP50"], table.summary["VOC07_AP50"]) == pytest.approx((0.5, 0.5))
    assert [table.per_class[name]["VOC_AP50"] for name in NAMES] == [1, 0, None]
    assert "VOC07_AP50" in table.as_text() and table.as_dict()["VOC_AP50"] == 0.5


def test_a_metric_may_count_but_not_take_the_name_of_another() -> None:
    def boxes(detections, truths, class_names) -> MetricResult:
        return MetricResult({"boxes": sum(len(truth.boxes_N4) for truth in truths)})

    table = evaluate_detections(DETECTIONS, TRUTHS, NAMES, [evaluate.coco, boxes])
    # MLflow gets the numbers that are floats.
    assert isinstance(table.summary["boxes"], float)
    with pytest.raises(ValueError, match="two metrics give boxes; rename one of them"):
        evaluate_detections(DETECTIONS, TRUTHS, NAMES, [boxes, boxes])


def test_a_metric_of_the_tuple_reaches_training_between_epochs(made_up_metric: None) -> None:
    evaluation = evaluate_checkpoint(REQUEST, "ema", DETECTIONS, TRUTHS, NAMES, frequencies={})
    assert evaluation.metrics["busiest"] == 2 and evaluation.request == REQUEST
    # AP alone is stored for each class.
    assert evaluation.per_class == {"cat": pytest.approx(1.0), "dog": 0.0, "bird": None}
    assert (evaluation.weights, evaluation.images_evaluated) == ("ema", 2)


def test_evaluations_of_a_training_count_what_was_detected(made_up_metric: None) -> None:
    between = evaluate_checkpoint(REQUEST, "ema", DETECTIONS, TRUTHS, NAMES, frequencies={})
    beside = background_evaluation.evaluate(REQUEST, "model", "/val", {})
    for evaluation in (between, beside):
        detected = evaluation.detected
        assert detected is not None and detected.images == 2
        # A cat in both images, a dog in the second, no bird; all together.
        assert detected.detections_C.tolist() == [2, 1, 0, 3]
        assert detected.images_C.tolist() == [2, 1, 0, 2]
        assert detected.widths == {300: 2}
        chosen = evaluation.thresholds
        assert chosen is not None
        assert [name for name, point in chosen.classes.items() if point is not None] == ["cat"]
    empty = {1: detections()}
    nothing = evaluate_checkpoint(REQUEST, "ema", empty, TRUTHS, NAMES, frequencies={}).detected
    assert nothing is not None and nothing.detections_C.tolist() == [0, 0, 0, 0]


def test_examples_are_spread_over_the_images_with_objects() -> None:
    """Images 0, 2, 4, ... 22 of 24 have an object: 12, of which 6 are taken, both ends too."""
    truths = [truth(number, *([(A, 0)] if number % 2 == 0 else [])) for number in range(24)]
    assert EXAMPLES == 6
    # Places 0, 2.2, 4.4, 6.6, 8.8 and 11, rounded, of the images with objects.
    expected = [0, 4, 8, 14, 18, 22]
    assert [each.image_id for each in examples_of({}, truths)] == expected
    (first, *_) = examples_of({0: DETECTIONS[1]}, truths)
    assert first.objects_M4.tolist() == first.boxes_N4.tolist() == [list(map(float, A))]
    assert first.scores_N == np.float32([0.9]) and first.labels_N.tolist() == [0]


def test_where_few_images_have_objects_others_are_examples_too() -> None:
    truths = [truth(1), truth(2, (A, 0)), truth(3)]
    assert [each.image_id for each in examples_of({}, truths)] == [2, 1, 3]
    assert examples_of({}, []) == ()


def test_a_metric_of_the_tuple_reaches_the_evaluation_beside_training(made_up_metric: None) -> None:
    evaluation = background_evaluation.evaluate(REQUEST, "model", "/val", {})
    assert evaluation.metrics["busiest"] == 2 and evaluation.ap == pytest.approx(0.5)


def test_ap_by_frequency_reaches_the_evaluations_of_a_training(
    made_up_metric: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    frequencies = {"cat": "r", "dog": "f"}
    between = evaluate_checkpoint(
        REQUEST, "model", DETECTIONS, TRUTHS, NAMES, frequencies=frequencies
    )
    categories = [one._replace(frequency=frequencies.get(one.name)) for one in CATEGORIES]
    monkeypatch.setattr(index.open_shard_set("/val"), "categories", categories)
    beside = background_evaluation.evaluate(REQUEST, "model", "/val", {})
    for metrics in (between.metrics, beside.metrics):
        assert [metrics[f"AP_{key}"] for key in "rcf"] == [pytest.approx(1), None, 0]


def test_a_metric_of_the_tuple_reaches_the_verb(made_up_metric: None, tmp_path: Path) -> None:
    table, not_drawn = evaluate_package.evaluate_package(
        "/package",
        index.open_shard_set("/val"),
        ClassMatch(NAMES, (0, 1, 2)),
        str(tmp_path),
        scored="models:/m/1",
    )
    assert not_drawn == []
    stored = json.loads((tmp_path / "metrics.json").read_text())
    assert table.summary["busiest"] == stored["busiest"] == 2
    assert stored["per_class"]["dog"]["busiest"] == 1 and "VOC_AP50" in stored
    assert stored["model"] == "models:/m/1" and stored["data_digest"] == "d" * 64
    assert "busiest" in (tmp_path / "table.txt").read_text()
    assert (tmp_path / "precision_recall.png").stat().st_size > 0


def test_the_verb_says_what_is_not_scored_and_shows_the_frequencies(
    made_up_metric: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shard_set = index.open_shard_set("/val")
    frequent = [one._replace(frequency="f") for one in CATEGORIES]
    monkeypatch.setattr(shard_set, "categories", frequent)
    # The second image was searched for dogs alone: its cat is not scored.
    partly = [TRUTHS[0], replace(TRUTHS[1], searched=np.array([1]))]
    monkeypatch.setattr(evaluate_package, "read_truths", lambda *_: partly)
    table, lines = evaluate_package.evaluate_package(
        "/package", shard_set, ClassMatch(NAMES, (0, 1, 2)), str(tmp_path), scored=""
    )
    assert lines == [
        "1 of 2 images were not searched for every class (as in LVIS): 1 of 3 detections are of"
        " other classes and are not scored"
    ]
    assert table.summary["AP_f"] == pytest.approx(0.5)
    assert "AP_f        0.5000" in (tmp_path / "table.txt").read_text()


def test_the_verb_says_how_many_images_were_tiled(
    made_up_metric: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shard_set = index.open_shard_set("/val")
    sizes = pa.table({"height": [300, 90], "width": [120, 100]})
    monkeypatch.setattr(evaluate_package, "read_columns", lambda *_: sizes)
    given: list[ViewSettings] = []

    def detect_set(*_, settings: ViewSettings, **__) -> Mapping[int, Detections]:
        given.append(settings)
        return DETECTIONS

    monkeypatch.setattr(evaluate_package, "detect_set", detect_set)

    def notes(views: ViewSettings, **wanted: float) -> list[str]:
        _, lines = evaluate_package.evaluate_package(
            "/package",
            shard_set,
            ClassMatch(NAMES, (0, 1, 2)),
            str(tmp_path),
            scored="",
            wanted=evaluate_package.Wanted(**wanted),
            views=views,
        )
        stored = json.loads((tmp_path / "metrics.json").read_text())
        assert stored.get("views", {}) == views.as_dict()
        return lines

    tiled = ViewSettings(100, 0)
    # 300 x 120 px: three tiles down, two across; 90 x 100 px is no larger than a tile.
    assert notes(tiled) == ["1 of 2 images were detected in 6 tiles too"]
    assert notes(ViewSettings(300)) == [
        "tile 300: no image of the data is larger, so no tile was used"
    ]
    assert notes(WHOLE_PICTURE) == [] and given == [tiled, ViewSettings(300), WHOLE_PICTURE]
    # A class that does not reach the wished precision is named.
    assert notes(WHOLE_PICTURE, precision=0.9) == [
        "no threshold for dog, bird: no score reaches precision 0.9"
    ]


def test_a_report_that_fails_costs_a_note_and_no_table(
    made_up_metric: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_, **__) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(evaluate_package, "write_report_files", fail)
    table, lines = evaluate_package.evaluate_package(
        "/package",
        index.open_shard_set("/val"),
        ClassMatch(NAMES, (0, 1, 2)),
        str(tmp_path),
        scored="",
    )
    assert lines == ["report.html is not written: OSError: the disk is full"]
    assert json.loads((tmp_path / "metrics.json").read_text())["AP"] == table.summary["AP"]
