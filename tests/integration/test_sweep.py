"""A sweep as a user types it: with room for one trial, killed, ended, and typed again."""

from __future__ import annotations

import re
import signal
import time
from collections import Counter
from pathlib import Path

import mlflow
import pytest

from cluster.compute.session import RayConfig
from cluster.runs.config import TrainConfig
from cluster.tracking.config import TrackingConfig
from tests.support.trainings import Typed
from tune import space, sweep
from tune.config import SweepConfig
from tune.trials import read_records

pytestmark = pytest.mark.integration

TINY = {
    "model.backbone": "resnet18",
    "model.width": "64",
    "canvas.height": "64",
    "canvas.width": "96",
    "training.batch_size": "8",
    "optimizer.name": "adamw",
    "optimizer.learning_rate": "0.001",
}


def statuses(folder: Path) -> dict[str, str]:
    """Status in MLflow by the name of the run."""
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    return {run.info.run_name: run.info.status for run in client.search_runs(ids)}


def test_a_sweep_that_is_killed_and_ended_goes_on_and_trains_no_epoch_twice(
    small_sets: dict[str, str], tmp_path: Path
) -> None:
    """There is room for one trial: a trial that is stopped early must leave its room."""
    options = {
        **TINY,
        "name": "cells",
        "storage": str(tmp_path),
        "data.train": small_sets["train"],
        "data.val": small_sets["val"],
        "ray.num_cpus": "1",
        "sweep.trials": "5",
        "sweep.epochs": "3",
        "sweep.preset": "none",
        "sweep.space.optimizer.learning_rate": "[0.001, 1e-6, 1e-7, 1e-8, 1e-9]",
    }
    good = space.trial_name({"optimizer.learning_rate": 0.001}, 3)
    # Scores of so short trainings say nothing.
    patch = (
        "from tune.stopping import EarlyStopping\n"
        "EarlyStopping.verdict = lambda self, name, point:"
        f" None if name == {good!r} or point.epoch == 3 else 'it is bad'"
    )
    flags = [word for name, value in options.items() for word in (f"--{name}", value)]
    said = ""
    # It looks before the first one has the sweep, and is refused when it wants it.
    too_early = (
        "from cluster.runs import lease\nlook = lease.refuse_held\n"
        "lease.refuse_held = lambda run: setattr(lease, 'refuse_held', look)"
    )
    with Typed(flags, verb="sweep", patch=patch) as driver:
        driver.until(" epoch 2 of 3")
        # MLflow's tables are made beside the first trial, under a lock that others wait for.
        while "cells (sweep)" not in statuses(tmp_path):
            time.sleep(1)
        # Its trials wait for its answers meanwhile.
        driver.process.send_signal(signal.SIGSTOP)
        with Typed(flags, verb="sweep", patch=too_early) as second:
            assert second.ends() == 2, second.text
        assert f"(pid {driver.process.pid})" in second.text
        # The refused one leaves the first one's run as it is.
        assert statuses(tmp_path)["cells (sweep)"] == "RUNNING"
        driver.process.kill()
        driver.process.wait()
        said += driver.text
    with Typed(flags, verb="sweep", patch=patch) as driver:
        driver.until(" stopped early after epoch 1")
        driver.until(" started: ")
        driver.interrupt()
        said += driver.text
    assert "RUNNING" not in statuses(tmp_path).values()
    with Typed(flags, verb="sweep", patch=patch) as driver:
        assert driver.ends() == 0, driver.text
        said += driver.text
    with Typed(flags, verb="sweep", patch=patch) as driver:
        assert driver.ends() == 0, driver.text
    assert "this sweep is finished; nothing was tried again" in driver.text

    epochs = Counter(re.findall(r"(trial-\w+) epoch (\d+) of 3", said))
    assert set(epochs.values()) == {1}, epochs
    records = read_records(f"{tmp_path}/sweeps/cells")
    assert len(records) == 5
    assert {(record.trial == good, record.status, record.epochs_done) for record in records} == {
        (True, "done", 3),
        (False, "stopped early", 1),
    }
    # The trials, each once, and the sweep itself.
    ended = statuses(tmp_path)
    assert set(ended.values()) == {"FINISHED"} and len(ended) == 6


def test_trials_of_several_workers_are_told_to_end_too(
    small_sets: dict[str, str], ray_cluster: str, tmp_path: Path
) -> None:
    config = TrainConfig.model_validate(
        {
            "name": "wide",
            "storage": str(tmp_path),
            "data": small_sets,
            "model": {"backbone": "resnet18", "width": 64},
            "canvas": {"height": 64, "width": 96},
            "training": {"batch_size": 8},
            "optimizer": {"name": "adamw", "learning_rate": 0.001},
        }
    )
    # The time is over at once, so the first evaluation of each trial is its last.
    budget = SweepConfig(trials=1, epochs=3, workers=2, hours=1e-9)
    swept = sweep.sweep(config, budget, ray=RayConfig(), tracking=TrackingConfig())
    (record,) = swept.records
    assert (record.status, record.epochs_done) == ("stopped early", 1)
    assert record.stop == "sweep.hours are over after epoch 1"
