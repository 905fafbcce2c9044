from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import DataError
from cluster.runs.config import TrainConfig
from tune.config import SweepConfig
from tune.trials import (
    Point,
    TrialRecord,
    ranked,
    read_records,
    saving,
    trial_config,
    write_record,
)

# As the version before this one wrote it.
VERSION_2 = {
    "version": 2,
    "trial": "trial-1a2b3c4d",
    "status": "stopped early",
    "AP": 0.25,
    "AP50": 0.5,
    "epochs": 2,
    "sample": {"gamma": 2.0, "alpha": 0.25},
    "proposed": {"gamma": 2.00004, "alpha": 0.25},
    "run": "/s/runs/trial-1a2b3c4d",
    "reason": "",
}


def record(name: str, *aps: float | None, **changes: Any) -> TrialRecord:
    curve = tuple(Point(8 * epoch, epoch, ap, ap) for epoch, ap in enumerate(aps, 1))
    settings = {"number": 0, "sample": {"loss.gamma": 2.0}, "epochs": 3, "curve": curve}
    return TrialRecord(name, f"/s/runs/{name}", **settings | changes)


def test_a_record_is_read_as_it_was_written_wherever_the_sweep_lies(tmp_path: Path) -> None:
    before = record("trial-a", 0.1, None, stop="bad", status="stopped early", number=4)
    moved = tmp_path / "moved"
    run = str(tmp_path / "first/runs/trial-a")
    write_record(TrialRecord(**{**vars(before), "run": run}))
    (tmp_path / "first").rename(moved)
    (again,) = read_records(str(moved))
    assert again == TrialRecord(**{**vars(before), "run": f"{moved}/runs/trial-a"})


@pytest.mark.parametrize("version", [1, 2])
def test_a_record_of_an_earlier_version_is_read(version: int) -> None:
    stored = {name: value for name, value in VERSION_2.items() if version == 2 or name != "version"}
    read = TrialRecord.from_json(stored, "/moved/runs/trial-1a2b3c4d/trial.json")
    assert (read.trial, read.status, read.ap, read.epochs_done) == (
        "trial-1a2b3c4d",
        "stopped early",
        0.25,
        2,
    )
    assert read.sample == {"loss.gamma": 2.0, "loss.alpha": 0.25}
    assert read.run == "/moved/runs/trial-1a2b3c4d"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": 4}, "/s/trial.json: is a trial record of version 4"),
        ({"status": "paused"}, "with status 'paused'"),
    ],
)
def test_a_record_that_cannot_be_read_is_named(changes: dict[str, Any], words: str) -> None:
    stored = record("a", 0.5).to_json()
    with pytest.raises(DataError, match=words):
        TrialRecord.from_json({**stored, **changes}, "/s/trial.json")
    with pytest.raises(DataError, match="/s/trial.json: is no trial record, 'curve' is missing"):
        without = {name: value for name, value in stored.items() if name != "curve"}
        TrialRecord.from_json(without, "/s/trial.json")
    assert TrialRecord.from_json(json.loads(json.dumps(stored)), "/s/runs/a/trial.json") == record(
        "a", 0.5
    )


def test_a_trial_counts_by_its_best_checkpoint_of_equal_ones_the_newest() -> None:
    best = record("a", 0.3, 0.5, 0.5, 0.2)
    assert best.best is not None and best.last is not None
    assert (best.ap, best.best.epoch, best.last.ap) == (0.5, 3, 0.2)
    assert record("b", None).ap is None and record("c").best is None
    order = ranked(
        [record("none", None), record("late", 0.5, number=1), best, record("top", 0.1, 0.9)]
    )
    assert [one.trial for one in order] == ["top", "a", "late", "none"]


def test_a_trial_takes_the_median_time_of_its_evaluations() -> None:
    curve = tuple(
        Point(8 * epoch, epoch, 0.5, 0.5, ms) for epoch, ms in enumerate((90.0, None, 20.0, 30.0))
    )
    assert record("a", curve=curve).ms_per_image == 30.0
    assert record("b", 0.5).ms_per_image is None
    older = record("a", curve=curve).to_json()
    for point in older["curve"]:
        del point["ms_per_image"]
    assert TrialRecord.from_json(older, "/s/runs/a/trial.json").ms_per_image is None


def test_only_the_epochs_of_stopped_trials_count_as_saved() -> None:
    # 3 + 1 + 0 of 9 epochs; the stopped one saved 2, and the failed one saved nothing.
    records = [
        record("a", 0.1, 0.2, 0.3, status="done"),
        record("b", 0.1, status="stopped early"),
        record("c", status="failed"),
    ]
    assert saving(records) == "4 of 9 epochs were trained; early stopping saved 2 (22%)"
    assert saving([]) == "0 of 0 epochs were trained; early stopping saved 0 (0%)"


def test_an_evaluation_that_is_told_again_replaces_itself() -> None:
    again = (
        record("a", 0.1, 0.2).with_point(Point(16, 2, 0.3, 0.3)).with_point(Point(24, 3, 0.4, 0))
    )
    assert [(one.epoch, one.ap) for one in again.curve] == [(1, 0.1), (2, 0.3), (3, 0.4)]


def test_a_trial_is_evaluated_by_its_workers_from_the_first_epoch_it_may_be_stopped_after() -> None:
    training = {"evaluate_every": 7, "evaluation_workers": 2, "batch_size": 4, "patience": 3}
    config = TrainConfig.model_validate(
        {"data": {"train": "/a", "val": "/b"}, "training": training}
    )
    sweep = SweepConfig(epochs=4, grace_epochs=2, workers=2)
    trial = trial_config(config, sweep, "/s", {"loss.gamma": 2.00004, "loss.alpha": 0.25})
    assert (trial.training.evaluate_every, trial.training.evaluation) == (2, "between")
    assert (trial.training.evaluation_workers, trial.training.workers) == (1, 2)
    assert (trial.training.epochs, trial.loss.gamma, trial.training.patience) == (4, 2.0, 0)
    assert trial.run_uri.startswith("/s/runs/trial-")
    # A trial of another length has another name.
    longer = trial_config(config, sweep.model_copy(update={"epochs": 5}), "/s", {"loss.gamma": 2.0})
    same = trial_config(config, sweep, "/s", {"loss.gamma": 2.0})
    assert longer.name != same.name


def test_a_part_of_a_gpu_is_a_gpu_for_the_training() -> None:
    config = TrainConfig.model_validate({"data": {"train": "/a", "val": "/b"}})
    quarter = SweepConfig(gpus_per_worker=0.25)
    assert trial_config(config, quarter, "/s", {}).training.gpus_per_worker == 1
    assert trial_config(config, SweepConfig(), "/s", {}).training.gpus_per_worker == 0
    with pytest.raises(ValueError, match=r"sweep.gpus_per_worker 0.25: must be 0 or 1 with"):
        SweepConfig(gpus_per_worker=0.25, workers=2)


@pytest.mark.parametrize("content", [None, [], {"version": "x", "status": "done"}])
def test_a_damaged_record_is_named(content: Any) -> None:
    with pytest.raises(DataError, match="/s/trial.json: is no trial record"):
        TrialRecord.from_json(content, "/s/trial.json")
