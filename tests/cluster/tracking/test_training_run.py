"""The MLflow run of a training whose driver was killed, or had no store, before it had sent all
that it was told; against a real SQLite store.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import PlainError
from cluster.reports import label_statistics, training_curves
from cluster.runs import evaluations, events, run_folder
from cluster.shards.index import open_shard_set
from cluster.storage import files
from cluster.tracking import client as tracking
from cluster.tracking import run
from cluster.tracking.config import tracking_uri
from cluster.tracking.training_pictures import TrainingPictures
from cluster.tracking.training_run import Tracker, is_recorded, track


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all, because creating it costs seconds."""
    return tmp_path_factory.mktemp("storage")


@pytest.fixture(autouse=True)
def sends_nothing_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "SEND_EVERY_S", 1e6)


def driver(root: Path, name: str, sets: dict[str, str] | None = None) -> Tracker:
    """With `sets` it draws."""
    uri = tracking_uri(None, str(root))
    pictures = sets and TrainingPictures(name, open_shard_set(sets["train"]), sets["val"])
    return Tracker(
        uri=uri,
        experiment="tests",
        run=f"{root}/runs/{name}",
        name=name,
        params={},
        config="{}",
        pictures=pictures or None,
    )


STEP = events.StepsDone(
    images_seen=50,
    epoch=0.5,
    images_per_second=0.5,
    data_share=0.124,
    step_share=0.8,
    rest_share=0.076,
    classification=0.5,
    box=0.5,
    positives=3.0,
    gradient_norm=1.0,
    loss_normalizer=90.0,
    learning_rate=0.5,
)


def step(images_seen: int, loss: float) -> events.StepsDone:
    return replace(STEP, images_seen=images_seen, box=loss)


def line(images_seen: int, loss: float) -> dict[str, Any]:
    """As the previous version stored it, without a version."""
    stored = step(images_seen, loss).to_json()
    del stored["version"]
    return stored


def evaluation(images_seen: int, ap: float, uri: str = "") -> events.EvaluationDone:
    return events.EvaluationDone(
        evaluations.Evaluation(
            uri, images_seen, 1, metrics={"AP": ap, "AP50": ap}, per_class={"cat": ap / 2}
        )
    )


def checkpoint(root: Path, name: str, images_seen: int, lines: list[dict[str, Any]]) -> str:
    uri = run_folder.checkpoint_uri(f"{root}/runs/{name}", images_seen)
    files.write_json(f"{uri}/{run_folder.STATE_FILE}", {"told": lines})
    return uri


def store_evaluation(root: Path, name: str, uri: str, ap: float, images_seen: int) -> None:
    evaluations.store(f"{root}/runs/{name}", evaluation(images_seen, ap, uri).evaluation)


def test_a_moved_run_continues_its_mlflow_run(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    tracker = driver(old, "cells")
    tracker(step(50, 1.0))
    tracker.finish("KILLED")
    run_id = recorded(old, "cells").run_id
    old.rename(new)
    tracker = driver(new, "cells")
    tracker(step(100, 0.5))
    tracker.finish("FINISHED")
    assert recorded(new, "cells").run_id == run_id
    assert recorded(new, "cells").uri == f"sqlite:///{new}/mlflow.db"
    assert history(tracker, run_id, "train/box") == [(50, 1.0), (100, 0.5)]


def history(tracker: Tracker, run_id: str, key: str) -> list[tuple[int, float]]:
    return sorted(
        (metric.step, metric.value)
        for metric in tracking.connect(tracker.uri).get_metric_history(run_id, key)
    )


def recorded(root: Path, name: str) -> Any:
    return run_folder.read_tracking(f"{root}/runs/{name}")


def test_a_number_without_objects_is_no_value_and_class_names_are_kept_apart(root: Path) -> None:
    tracker = driver(root, "unscored")
    tracker(step(4, 4.0))
    done = evaluations.Evaluation(
        "",
        4,
        1,
        metrics={"AP": 0.5, "AP_small": None},
        per_class={"a+b": 0.25, "a*b": 0.75, "..": None, "猫": 1.0},
    )
    tracker(events.EvaluationDone(done))
    tracker.finish("FINISHED")
    stored = tracking.connect(tracker.uri).get_run(recorded(root, "unscored").run_id).data.metrics
    found = {key: value for key, value in stored.items() if key.startswith("val/")}
    # The first digits of the sha256 of val/AP/a+b and of val/AP/a*b.
    assert found == {
        "val/AP": 0.5,
        "val/AP/a_b-c872cfc5": 0.25,
        "val/AP/a_b-3fcb7253": 0.75,
        "val/AP/猫": 1.0,
    }


def test_what_a_killed_driver_had_not_sent_is_in_the_same_run_once(root: Path) -> None:
    first = driver(root, "killed")
    first(step(4, 4.0))
    assert first.run.flush()
    # It hears of these and is killed before it sends them.
    first(step(8, 8.0))
    first(evaluation(8, 0.25))
    uri = checkpoint(root, "killed", 8, [line(4, 4.0), line(8, 8.0)])
    store_evaluation(root, "killed", uri, 0.25, 8)
    again = driver(root, "killed")
    for event in (
        events.Resumed(uri, 8, 1),
        step(12, 12.0),
        evaluation(12, 0.5),
    ):
        again(event)
    store_evaluation(
        root,
        "killed",
        checkpoint(root, "killed", 12, [line(4, 4.0), line(8, 8.0), line(12, 12.0)]),
        0.5,
        12,
    )
    again.finish("FINISHED")
    run_id = recorded(root, "killed").run_id
    assert run_id == first.run.run_id == again.run.run_id
    assert history(again, run_id, "train/box") == [(4, 4.0), (8, 8.0), (12, 12.0)]
    assert history(again, run_id, "train/images_per_second") == [(4, 0.5), (8, 0.5), (12, 0.5)]
    assert history(again, run_id, "val/AP") == [(8, 0.25), (12, 0.5)]
    assert history(again, run_id, "val/AP/cat") == [(8, 0.125), (12, 0.25)]


def test_a_finished_training_is_completed_in_mlflow_once(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its driver was killed after the last step: the next start has nothing to train and hears no
    event.
    """
    first = driver(root, "over")
    first(step(4, 4.0))
    store_evaluation(
        root, "over", checkpoint(root, "over", 8, [line(4, 4.0), line(8, 8.0)]), 0.5, 8
    )
    assert not recorded(root, "over").complete
    interrupted = driver(root, "over")
    interrupted.finish("KILLED")
    assert interrupted.run is None
    driver(root, "over").finish("FINISHED")
    run_id = recorded(root, "over").run_id
    assert run_id == first.run.run_id and recorded(root, "over").complete
    assert history(first, run_id, "train/box") == [(4, 4.0), (8, 8.0)] and history(
        first, run_id, "val/AP"
    ) == [(8, 0.5)]
    assert first.run.client.get_run(run_id).info.status == "FINISHED"
    monkeypatch.setattr(tracking, "connect", None)
    driver(root, "over").finish("FINISHED")


def test_a_finished_training_whose_run_is_gone_is_recorded_anew(root: Path) -> None:
    """A run of MLflow can be deleted, or its whole store; the training's command is repeated."""
    first = driver(root, "gone")
    first(step(4, 4.0))
    store_evaluation(root, "gone", checkpoint(root, "gone", 4, [line(4, 4.0)]), 0.5, 4)
    first.finish("FINISHED")
    before = recorded(root, "gone")
    assert before.complete
    folder = f"{root}/runs/gone"
    assert is_recorded(folder, first.uri)
    first.run.client.delete_run(before.run_id)
    assert not is_recorded(folder, first.uri)
    # A training at another store would not record it there.
    assert is_recorded(folder, f"sqlite:///{root}/another.db")
    driver(root, "gone").finish("FINISHED")
    after = recorded(root, "gone")
    assert after.complete and after.run_id != before.run_id
    assert history(first, after.run_id, "train/box") == [(4, 4.0)]
    assert history(first, after.run_id, "val/AP") == [(4, 0.5)]


def test_a_training_without_a_store_is_recorded_once_one_answers(root: Path) -> None:
    """Also lines of another version of this code, which knew other metrics."""
    store_evaluation(
        root,
        "unseen",
        checkpoint(root, "unseen", 8, [{"images_seen": 4, "box": 4.0}, line(8, 8.0)]),
        0.5,
        8,
    )
    run_folder.write_finished(f"{root}/runs/unseen", run_folder.Finished(8, 1))
    tracker = driver(root, "unseen")
    assert not is_recorded(f"{root}/runs/unseen", tracker.uri)
    tracker.finish("FINISHED")
    record = recorded(root, "unseen")
    assert record.complete and tracker.run.client.get_run(record.run_id).info.status == "FINISHED"
    assert history(tracker, record.run_id, "train/box") == [(4, 4.0), (8, 8.0)] and history(
        tracker, record.run_id, "val/AP"
    ) == [(8, 0.5)]


def test_the_curves_are_those_of_the_whole_run_and_what_is_there_is_not_drawn_again(
    root: Path, small_sets: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first driver is interrupted, the second one continues the run."""
    drawn: list[Any] = []

    def curves(found: dict[str, Any], *, heading: str) -> bytes:
        drawn.append((heading, found["train/box"]))
        return b"a picture"

    monkeypatch.setattr(training_curves, "draw_curves", curves)
    monkeypatch.setattr(
        label_statistics, "draw_label_statistics", lambda sets: drawn.append([*sets]) or b"labels"
    )
    for seen, status in ((50, "KILLED"), (100, "FINISHED")):
        tracker = driver(root, "drawn", small_sets)
        tracker(step(seen, 1.0))
        tracker.finish(status)
    first, whole = [(50, 1.0)], [(50, 1.0), (100, 1.0)]
    assert drawn == [["data.train", "data.val"], ("drawn", first), ("drawn", whole)]
    run_id = recorded(root, "drawn").run_id
    files_there = {file.path for file in tracker.run.client.list_artifacts(run_id)}
    assert files_there == {"config.json", "labels.json", "labels.png", "curves.png"}


def test_the_store_is_opened_once_the_first_step_is_told(root: Path) -> None:
    """A picture of its batch may come before it."""
    tracker = driver(root, "opened")
    tracker(events.BatchSeen(0, (64, 96), ()))
    assert tracker.run is None
    tracker(step(4, 4.0))
    assert tracker.run is not None
    tracker.finish("FINISHED")


def test_a_run_without_events_is_not_recorded(root: Path) -> None:
    tracker = driver(root, "unknown")
    tracker.finish("FINISHED")
    assert tracker.run is None and recorded(root, "unknown") is None


def test_a_storage_failure_loses_only_the_backfill(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    tracker = driver(root, "away")
    checkpoint(root, "away", 4, [line(4, 4.0)])

    def away(_: str) -> None:
        raise PlainError("s3://bucket: storage is away")

    monkeypatch.setattr(evaluations, "read", away)
    tracker(step(8, 8.0))
    tracker.finish("FINISHED")
    assert (
        "warning: MLflow gets no metrics from before this start: s3://bucket: storage is away"
        in capsys.readouterr().err
    )
    assert history(tracker, tracker.run.run_id, "train/box") == [(8, 8.0)]


class Recorder:
    def __init__(self) -> None:
        self.metrics: dict[str, tuple[float, int]] = {}
        self.tags: dict[str, str] = {}
        self.files: dict[str, str] = {}

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        self.metrics |= {name: (value, step) for name, value in values.items()}

    def set_tag(self, name: str, value: str) -> None:
        self.tags[name] = value

    def log_text(self, text: str, file: str) -> None:
        self.files[file] = text


def test_mlflow_gets_the_time_split_the_nodes_and_the_profile() -> None:
    run = Recorder()
    track(run, STEP)
    worker, system = events.WorkerProcess(0, "10.0.0.1", 42), {"cpu_utilization_percentage": 99.0}
    track(run, events.RankTiming(worker, 50, 10.0, 0.0, 10.0, 0.2, system))
    track(run, events.ProfileStored("s3://b/profile/images-000000000024", 3))
    assert run.metrics["train/data_share"] == (0.124, 50)
    assert run.metrics["train/rest_share"] == (0.076, 50)
    assert run.metrics["system/10.0.0.1/cpu_utilization_percentage"] == (99.0, 50)
    assert run.tags == {"profile": "s3://b/profile/images-000000000024"}


def test_a_metric_that_a_stored_line_lacks_is_not_sent() -> None:
    run = Recorder()
    track(run, events.StepsDone.from_json({"images_seen": 4, "box": 4.0, "unknown": 1.0}))
    assert run.metrics == {"train/box": (4.0, 4)}


def test_the_run_has_the_name_of_every_tensor() -> None:
    run = Recorder()
    track(run, events.WeightsLoaded("/m.pkl", "detectron2", 290, unused=("a", "b", "c", "d")))
    content = json.loads(run.files["pretrained.json"])
    assert (content["kind"], content["uri"], content["loaded"]) == ("weights", "/m.pkl", 290)
    assert content["unused"] == ["a", "b", "c", "d"]
