from __future__ import annotations

import shlex
from typing import Any

from cluster.runs.config import TrainConfig
from tune import sweep
from tune.build_space import space_of
from tune.config import SweepConfig
from tune.plan import Plan
from tune.sweep import Swept
from tune.trials import Point, TrialRecord


def test_as_many_trials_run_at_once_as_the_nodes_have_room_for() -> None:
    two = SweepConfig(concurrent=2)
    # A trial books 0.5 + 0.25 CPUs: two fit into 1.5 CPUs, one into 0.75, none into 0.7.
    assert [sweep.fitting(two, [{"CPU": cpus}]) for cpus in (64, 2, 1.5, 1.4, 0.75, 0.7)] == [
        2,
        2,
        2,
        1,
        1,
        0,
    ]
    # Four trials of a quarter share a GPU.
    small = SweepConfig(concurrent=9, gpus_per_worker=0.25)
    assert sweep.fitting(small, [{"CPU": 64, "GPU": 2}]) == 8
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


def swept(records: list[TrialRecord], storage: str, uri: str, **sweep: Any) -> Swept:
    data = {"train": "/my data/train", "val": "/my data/val"}
    config = TrainConfig.model_validate({"name": "a", "storage": storage, "data": data})
    budget = SweepConfig(**sweep)
    searched = space_of(budget.preset, budget.space, config)
    # What the sweep has read is not shown.
    planned = Plan(config, budget, f"{storage}/sweeps/a", searched, None, (), ())  # type: ignore[arg-type]
    return Swept(planned, records, None, uri)


def record(name: str, *aps: float, **changes: Any) -> TrialRecord:
    curve = tuple(Point(8 * epoch, epoch, ap, ap) for epoch, ap in enumerate(aps, 1))
    settings = {"number": 0, "sample": {"loss.gamma": 2.0}, "epochs": 4, "status": "done"}
    return TrialRecord(name, f"/s/runs/{name}", **{**settings, "curve": curve, **changes})


def test_the_command_that_uses_the_result_can_be_typed_whatever_the_paths() -> None:
    for uri, tail in (
        ("sqlite:////my runs/mlflow.db", []),
        ("http://h", ["--tracking.uri", "http://h"]),
    ):
        lines = swept([record("a-1", 0.5)], "/my runs", uri).lines()
        (line,) = [line for line in lines if line.startswith("use it   ")]
        assert shlex.split(line.removeprefix("use it   ")) == [
            *("retinaray", "train", "--config", "/my runs/sweeps/a/best.yaml"),
            *("--data.train", "/my data/train", "--data.val", "/my data/val"),
            *("--storage", "/my runs", "--name", "a-best", *tail),
        ]
        (line,) = [line for line in lines if line.startswith("register ")]
        assert shlex.split(line.removeprefix("register ")) == [
            *("retinaray", "register", "--sweep", "/my runs/sweeps/a", "--name", "a")
        ]


def test_a_sweep_that_used_up_its_time_or_images_says_what_was_not_done() -> None:
    one = record("a-1", 0.5)
    (note,) = (line for line in swept([one], "/r", "http://h", hours=0.5).lines() if "used" in line)
    assert note.startswith("note     sweep.hours 0.5 is used up: 1 of ")
    cut = record("a-1", 0.5, status="stopped early", stop="sweep.hours are over after epoch 1")
    whole = [cut, *(record(f"a-{n}", 0.1) for n in range(2, 5))]
    lines = swept(whole, "/r", "http://h", hours=2, trials=4).lines()
    assert any("4 of 4 trials were begun, 1 of them ended by it" in line for line in lines)
    for ended in ({"trials": 1, "hours": 2}, {"trials": 4}):
        assert not any(
            "used up" in line for line in swept([one], "/r", "http://h", **ended).lines()
        )


def test_a_sweep_that_found_nothing_says_so() -> None:
    lines = swept([record("a-1", 0.0)], "/r", "http://h").lines()
    assert sweep.NOTHING_FOUND in lines
    assert sweep.NOTHING_FOUND not in swept([record("a-1", 0.1)], "/r", "http://h").lines()
