from __future__ import annotations

import shlex

from cluster.runs.config import TrainConfig
from tune import sweep
from tune.config import SweepConfig
from tune.sweep import Swept
from tune.trials import TrialRecord


def test_as_many_trials_run_at_once_as_the_nodes_have_room_for() -> None:
    two = SweepConfig(concurrent=2)
    # A trial books 0.01 + 1 x (0.5 + 0.25) = 0.76 CPUs: two fit into 2 CPUs, one into 1.5, none
    # into 0.75.
    assert [sweep.fitting(two, [{"CPU": cpus}]) for cpus in (64, 2, 1.52, 1.5, 0.76, 0.75)] == [
        2,
        2,
        2,
        1,
        1,
        0,
    ]
    # Two workers with a GPU each: 3 GPUs hold one trial.
    wide = SweepConfig(concurrent=4, workers=2, cpus_per_worker=1, gpus_per_worker=1)
    assert [sweep.fitting(wide, [{"CPU": 64, "GPU": gpus}]) for gpus in (1, 3, 4, 100)] == [
        0,
        1,
        2,
        4,
    ]
    # Nodes with one each hold half a trial each, and what has three CPUs in all may hold none.
    assert (
        sweep.fitting(wide, [{"CPU": 2, "GPU": 1}] * 5) == 2
        and sweep.fitting(two, [{"CPU": 0.5}] * 6) == 0
    )


def test_the_command_that_uses_the_result_can_be_typed_whatever_the_paths() -> None:
    data = {"train": "/my data/train", "val": "/my data/val"}
    config = TrainConfig.model_validate({"name": "a", "storage": "/my runs", "data": data})
    sample, run = {"gamma": 2.0}, "/my runs/sweeps/a/runs/a-1"
    best = TrialRecord("a-1", "done", 0.5, 0.7, 1, sample, sample, run)
    for uri, tail in (
        ("sqlite:////my runs/mlflow.db", []),
        ("http://h", ["--tracking.uri", "http://h"]),
    ):
        lines = Swept("/my runs/sweeps/a", config, [best], uri).lines()
        (line,) = [line for line in lines if line.startswith("use it   ")]
        assert shlex.split(line.removeprefix("use it   ")) == [
            *("python", "-m", "pipelines.train", "--config", "/my runs/sweeps/a/best.yaml"),
            *("--data.train", "/my data/train", "--data.val", "/my data/val"),
            *("--storage", "/my runs", "--name", "a-best", *tail),
        ]
