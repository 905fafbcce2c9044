from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import DataError
from cluster.runs.config import TrainConfig
from tune.config import SweepConfig
from tune.trials import TrialRecord, read_records, trial_config, write_record

# As the version before this one wrote it.
VERSION_1 = {
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


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    run = str(tmp_path / "runs/trial-1a2b3c4d")
    record = TrialRecord.from_json({**VERSION_1, "run": run}, "x")
    write_record(record)
    assert read_records(str(tmp_path)) == [record]
    assert json.loads(Path(run, "trial.json").read_text()) == {
        **VERSION_1,
        "run": run,
        "version": 2,
    }


def test_a_record_of_the_version_before_is_read() -> None:
    record = TrialRecord.from_json(VERSION_1, "x")
    assert (record.trial, record.status, record.ap, record.ap50, record.epochs) == (
        "trial-1a2b3c4d",
        "stopped early",
        0.25,
        0.5,
        2,
    )
    assert record.proposed == {"gamma": 2.00004, "alpha": 0.25}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": 3}, "/s/trial.json: is a trial record of version 3"),
        ({"status": "paused"}, "with status 'paused'"),
    ],
)
def test_a_record_that_cannot_be_read_is_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        TrialRecord.from_json({**VERSION_1, **changes}, "/s/trial.json")
    with pytest.raises(DataError, match="/s/trial.json: is no trial record, 'AP50' is missing"):
        without = {name: value for name, value in VERSION_1.items() if name != "AP50"}
        TrialRecord.from_json(without, "/s/trial.json")


def test_a_trial_is_evaluated_by_its_workers_from_the_first_epoch_it_may_be_stopped_after() -> None:
    training = {"evaluate_every": 7, "evaluation_workers": 2, "batch_size": 4}
    config = TrainConfig.model_validate(
        {"data": {"train": "/a", "val": "/b"}, "training": training}
    )
    sweep = SweepConfig(epochs=4, grace_epochs=2, workers=2)
    trial = trial_config(config, sweep, "/s", {"gamma": 2.00004, "alpha": 0.25})
    assert (trial.training.evaluate_every, trial.training.evaluation) == (2, "between")
    assert (trial.training.evaluation_workers, trial.training.workers) == (1, 2)
    assert (trial.training.epochs, trial.loss.gamma) == (4, 2.0)
    assert trial.run_uri.startswith("/s/runs/trial-")
