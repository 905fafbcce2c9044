"""The evaluations of a run without Ray: requests, the best, early stopping, stored files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.errors import DataError, UsageError
from cluster.runs import evaluations, run_folder
from cluster.runs.evaluations import Evaluation, Request
from cluster.storage import files
from detector.detection_counts import DetectionCounts, count_detections
from detector.operating_points import OperatingPoint, Thresholds


def evaluation(run: str, images_seen: int, ap: float | None) -> Evaluation:
    return Evaluation(
        run_folder.checkpoint_uri(run, images_seen),
        images_seen,
        images_seen // 100,
        weights="ema",
        metrics={"AP": ap, "AP50": ap, "AP75": ap},
        per_class={"cat": ap},
        images_evaluated=8,
    )


def failed(images_seen: int) -> Evaluation:
    return Evaluation("lost", images_seen, images_seen // 100, error="the machine is gone")


def test_the_time_of_an_evaluation_is_stored_and_older_files_have_none() -> None:
    # 8 images in 0.4 s are 50 ms an image.
    timed = replace(evaluation("/r", 200, 0.5), seconds=0.4)
    assert timed.ms_per_image == pytest.approx(50)
    assert Evaluation.from_json(timed.to_json()) == timed
    older = timed.to_json()
    del older["seconds"]
    assert Evaluation.from_json(older).ms_per_image is None
    assert replace(timed, images_evaluated=None).ms_per_image is None


def detected(images: int) -> DetectionCounts:
    """Of images without a detection."""
    nothing, sides = np.empty(0), np.full(images, 9)
    return count_detections(
        ("cat",),
        image_N=nothing,
        labels_N=nothing,
        scores_N=nothing,
        heights_I=sides,
        widths_I=sides,
    )


def test_the_best_keeps_what_it_detected_and_the_list_does_not(tmp_path: Path) -> None:
    run = str(tmp_path)
    for images_seen, ap, images in ((100, 0.25, 1), (200, 0.75, 2), (300, 0.5, 3)):
        chosen = Thresholds(None, 0.5, {"cat": OperatingPoint(ap, 1.0, 1.0, 1.0)})
        made = replace(
            evaluation(run, images_seen, ap), detected=detected(images), thresholds=chosen
        )
        evaluations.store(run, made)
    listed = (tmp_path / "evaluations.json").read_text()
    assert "detected" not in listed and "thresholds" not in listed
    best = evaluations.best_checkpoint(run)
    assert best.detected.images == 2 and best.thresholds.lowest("cat") == 0.75
    # A best one of before them, or of another version of them.
    for stored in (None, {"version": 0}, []):
        row = json.loads((tmp_path / "best.json").read_text())
        row |= {"detected": stored, "thresholds": stored}
        (tmp_path / "best.json").write_text(json.dumps(row))
        best = evaluations.best_checkpoint(run)
        assert best.detected is None and best.thresholds is None
    # The best is evaluated again and is no longer the best.
    evaluations.store(run, evaluation(run, 200, 0.125))
    assert evaluations.best_checkpoint(run) == evaluation(run, 300, 0.5)


def request(run: str, images_seen: int) -> str:
    """Request the evaluation of a checkpoint and return its URI."""
    uri = run_folder.checkpoint_uri(run, images_seen)
    evaluations.store_request(run, Request(uri, images_seen, images_seen // 100))
    return uri


def test_a_request_of_version_1_is_read() -> None:
    new = Request("s3://runs/a/checkpoints/images-000000000200", 200, 2)
    stored = new.to_json()
    assert stored.pop("version") == evaluations.VERSION
    assert Request.from_json(stored) == new


def test_a_request_waits_until_its_evaluation_is_stored(tmp_path: Path) -> None:
    run = str(tmp_path)
    assert evaluations.waiting(run) == [] and evaluations.read(run) == []
    later, first = request(run, 1000), request(run, 200)
    assert evaluations.waiting(run) == [first, later]
    assert evaluations.read_request(run, later) == Request(later, 1000, 10)
    evaluations.store(run, evaluation(run, 200, 0.25))
    assert evaluations.waiting(run) == [later]
    assert evaluations.find(evaluations.read(run), 1000) is None
    assert evaluations.find(evaluations.read(run), 200) == evaluation(run, 200, 0.25)


def test_the_best_has_the_highest_ap_and_is_the_newest_of_equal_ones(tmp_path: Path) -> None:
    run = str(tmp_path)
    # Late evaluations are ordered by images seen; a repeated one replaces the first.
    for images_seen, ap in ((100, 0.5), (300, 0.5), (200, 0.5), (400, 0.75), (400, 0.25)):
        evaluations.store(run, evaluation(run, images_seen, ap))
    evaluations.store(run, failed(500))
    finished = evaluations.read(run)
    assert [each.images_seen for each in finished] == [100, 200, 300, 400, 500]
    assert evaluations.best_checkpoint(run) == evaluation(run, 300, 0.5)
    assert evaluations.find(finished, 500) is None


def test_a_moved_run_names_its_own_checkpoints(tmp_path: Path) -> None:
    old, new = f"{tmp_path}/old", f"{tmp_path}/elsewhere/new"
    evaluations.store(old, evaluation(old, 100, 0.5))
    checkpoint = run_folder.checkpoint_uri(old, 200)
    evaluations.store_request(old, Request(checkpoint, 200, 2))
    files.write_bytes(f"{checkpoint}/state.json", b"{}")
    for file in ("best.json", "evaluations.json", "waiting/images-000000000200.json"):
        assert old not in files.read_bytes(f"{old}/{file}").decode()
    (tmp_path / "elsewhere").mkdir()
    Path(old).rename(new)
    assert evaluations.read(new) == [evaluation(new, 100, 0.5)]
    assert evaluations.best_checkpoint(new) == evaluation(new, 100, 0.5)
    (waiting,) = evaluations.waiting(new)
    assert evaluations.read_request(new, waiting) == Request(
        run_folder.checkpoint_uri(new, 200), 200, 2
    )
    evaluations.store(new, evaluation(new, 200, 0.75))
    assert evaluations.best_checkpoint(new) == evaluation(new, 200, 0.75)
    assert not evaluations.waiting(new)


def test_a_run_without_an_evaluation_has_no_best(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a training run's folder; check --run"):
        evaluations.best_checkpoint(str(tmp_path))
    run_folder.write(str(tmp_path), run_folder.CONFIG, {"identity": {}, "config": {}})
    with pytest.raises(UsageError, match="has no evaluated checkpoint yet"):
        evaluations.best_checkpoint(str(tmp_path))
    (tmp_path / "runs").mkdir()
    with pytest.raises(UsageError, match="is the folder of a sweep; give --sweep"):
        evaluations.best_checkpoint(str(tmp_path))


def test_a_misspelt_run_is_told_which_runs_lie_beside_it(tmp_path: Path) -> None:
    for name in ("cells", "dogs"):
        run_folder.write(f"{tmp_path}/{name}", run_folder.CONFIG, {})
    (tmp_path / "cellar").mkdir()
    said = r"cels: there is no such folder; did you mean cells\? there are cells, dogs in "
    with pytest.raises(UsageError, match=said):
        evaluations.best_checkpoint(f"{tmp_path}/cels")
    with pytest.raises(UsageError, match=r"cellar: is not a training run's folder; did you mean"):
        evaluations.best_checkpoint(f"{tmp_path}/cellar")


@pytest.mark.parametrize(
    "given", [evaluation("/run", 100, 0.5), evaluation("/run", 100, None), failed(200)]
)
def test_json_restores_an_evaluation(given: Evaluation) -> None:
    assert Evaluation.from_json(json.loads(json.dumps(given.to_json()))) == given


BEST_VERSION_1 = """{
  "checkpoint": "/store/runs/cells/checkpoints/images-000000000048", "weights": "ema",
  "images_seen": 48, "epoch": 2, "AP": 0.25, "AP50": 0.5, "AP75": 0.125
}"""
EVALUATIONS_VERSION_1 = """{"evaluations": [
  {"checkpoint": "/store/runs/cells/checkpoints/images-000000000024", "images_seen": 24, "epoch": 1,
   "error": "OSError: the node is gone"},
  {"checkpoint": "/store/runs/cells/checkpoints/images-000000000048", "images_seen": 48, "epoch": 2,
   "weights": "ema", "AP": 0.25, "AP50": 0.5, "AP75": 0.125, "AP_small": -1.0, "AR100": 0.375,
   "per_class": {"cat": 0.25, "dog": -1.0}}
]}"""


def test_files_of_version_1_are_read_and_continued(tmp_path: Path) -> None:
    run = str(tmp_path)
    (tmp_path / "best.json").write_text(BEST_VERSION_1)
    (tmp_path / "evaluations.json").write_text(EVALUATIONS_VERSION_1)
    checkpoint = "/store/runs/cells/checkpoints/images-000000000048"
    metrics = {"AP": 0.25, "AP50": 0.5, "AP75": 0.125}
    assert evaluations.best_checkpoint(run) == Evaluation(
        checkpoint, 48, 2, weights="ema", metrics=metrics
    )
    first, second = evaluations.read(run)
    assert (first.images_seen, first.error) == (24, "OSError: the node is gone")
    assert second == Evaluation(
        checkpoint,
        48,
        2,
        weights="ema",
        metrics={**metrics, "AP_small": None, "AR100": 0.375},
        per_class={"cat": 0.25, "dog": None},
    )
    evaluations.store(run, evaluation(run, 72, 0.125))
    assert evaluations.read(run) == [first, second, evaluation(run, 72, 0.125)]
    assert evaluations.best_checkpoint(run) == second
    # The run was moved here since then.
    files.write_bytes(f"{run}/checkpoints/images-000000000048/state.json", b"{}")
    here = f"{run}/checkpoints/images-000000000048"
    assert evaluations.best_checkpoint(run).checkpoint == here


@pytest.mark.parametrize("stored", ["-1.0", "NaN", "null", "Infinity", '"much"', "1e999"])
def test_what_is_no_score_is_never_the_best(tmp_path: Path, stored: str) -> None:
    run = str(tmp_path)
    best = json.dumps(evaluation(run, 200, 0.25).to_json())
    text = best.replace('"AP": 0.25', f'"AP": {stored}')
    (tmp_path / "best.json").write_text(text)
    (tmp_path / "evaluations.json").write_text(f'{{"evaluations": [{text}]}}')
    assert evaluations.read(run)[0].ap is None and evaluations.read_best(run) is None
    with pytest.raises(UsageError, match="no evaluation of it has an AP"):
        evaluations.best_checkpoint(run)
    evaluations.store(run, evaluation(run, 300, None))
    assert evaluations.read_best(run) is None
    evaluations.store(run, evaluation(run, 100, 0.0))
    assert evaluations.best_checkpoint(run) == evaluation(run, 100, 0.0)
    assert ": -1" not in (tmp_path / "evaluations.json").read_text()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 3}, "version 3 is not known; use the version that wrote it"),
        ({"weights": "average"}, "weights must be one of model, ema, is 'average'"),
        ({"metrics": None}, "'metrics' is missing"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    stored = evaluation("/run", 100, 0.5).to_json() | change
    stored = {name: value for name, value in stored.items() if value is not None}
    (tmp_path / "best.json").write_text(json.dumps(stored))
    with pytest.raises(DataError, match=f"best.json: is damaged .{said}"):
        evaluations.read_best(str(tmp_path))


@pytest.mark.parametrize(
    ("aps", "patience", "rise", "stops"),
    [
        ([0.1, 0.2, 0.3], 1, 0.0, False),
        ([0.3, 0.3], 1, 0.0, True),  # equal is not better
        ([0.3, 0.2, 0.31], 2, 0.0, False),
        ([0.3, 0.2, 0.1], 2, 0.0, True),
        ([0.3, 0.2, 0.1], 3, 0.0, False),
        ([0.3, 0.2, 0.1], 0, 0.0, False),
        # Rises of 0.06 and 0.04 each fall short of 0.0625 and add up: 0.4 is 0.1 above the last
        # that counted, 0.3.
        ([0.3, 0.36, 0.4, 0.41], 2, 0.0625, False),
        ([0.3, 0.36, 0.35], 2, 0.0625, True),
        ([0.0, 0.0, 0.0], 2, 0.0, True),
        ([None, None], 1, 0.0, False),  # a set without objects: nothing to compare
        ([0.5, None, 0.5], 1, 0.0, True),  # only those with an AP count
        ([], 1, 0.0, False),
    ],
)
def test_patience_counts_evaluations_since_the_last_rise(
    aps: list[float], patience: int, rise: float, stops: bool
) -> None:
    finished = [evaluation("", 100 * number, ap) for number, ap in enumerate(aps, start=1)]
    reason = evaluations.reason_to_stop(finished, patience=patience, min_improvement=rise)
    assert (reason is not None) == stops


def test_a_failed_evaluation_does_not_count() -> None:
    finished = [evaluation("", 100, 0.5), evaluation("", 200, 0.25), failed(250)]
    assert evaluations.reason_to_stop(finished, patience=2, min_improvement=0) is None
    finished.append(evaluation("", 300, 0.5))
    reason = evaluations.reason_to_stop(finished, patience=2, min_improvement=0.125)
    assert (
        reason == "AP has not risen by more than 0.125 in 2 evaluations, from 0.5000 after epoch 1"
    )
