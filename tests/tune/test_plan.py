from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cluster.errors import UsageError
from cluster.runs.config import TrainConfig
from tune import plan
from tune.build_space import space_of
from tune.config import SweepConfig
from tune.plan import Plan
from tune.trials import Point, TrialRecord

CONFIG = TrainConfig.model_validate({"name": "x", "data": {"train": "/t", "val": "/v"}})
GIVEN = {"loss.gamma": 2.0, "loss.alpha": 0.25}


def planned(*records: TrialRecord, fixed: Any = (), **changes: Any) -> Plan:
    sweep = SweepConfig(epochs=3, **changes)
    searched = space_of(sweep.preset, sweep.space, CONFIG)
    # What the sweep reads is not asked here.
    return Plan(CONFIG, sweep, "/s", searched, None, fixed, records)  # type: ignore[arg-type]


def record(name: str, sample: dict[str, Any], **changes: Any) -> TrialRecord:
    settings = {"number": 0, "sample": sample, "epochs": 3, "status": "done"}
    curve = (Point(8, 1, 0.5, 0.5),)
    return TrialRecord(name, f"/s/runs/{name}", **{**settings, "curve": curve, **changes})


def test_a_fresh_sweep_begins_with_the_given_setting() -> None:
    fresh = planned()
    assert fresh.waiting([]) == [GIVEN] and fresh.trials == 8
    assert planned(record("a", GIVEN)).waiting([record("a", GIVEN)]) == []


def test_interrupted_trials_come_first() -> None:
    going = record("b", {"loss.gamma": 1.0, "loss.alpha": 0.5}, status="running")
    before = [record("a", GIVEN), going]
    one = planned(*before)
    assert one.waiting(before) == [going.sample]
    assert [ended.trial for ended in one.ended(before)] == ["a"]


def test_failed_trials_are_tried_again_only_where_nothing_has_a_result() -> None:
    failed = record("a", GIVEN, status="failed", curve=())
    assert planned(failed).waiting([failed]) == [GIVEN]
    diverged = replace(failed, diverged=True)
    assert planned(diverged).again([diverged]) == []
    good = record("b", {"loss.gamma": 1.0, "loss.alpha": 0.5})
    assert planned(failed, good).again([failed, good]) == []


def test_trials_of_another_length_or_outside_the_space_are_kept_apart() -> None:
    longer, outside = record("a", GIVEN, epochs=5), record("b", {"loss.gamma": 9.0})
    again = record("c", GIVEN, role="confirm")
    fits = record("d", {"loss.gamma": 4.0, "loss.alpha": 0.5})
    before = [longer, outside, again, fits]
    assert [one.trial for one in planned(*before).counted(before)] == ["d"]


def test_a_space_that_grew_keeps_what_fits() -> None:
    before = [record("a", {"loss.gamma": 1.0, "loss.alpha": 0.5})]
    grown = planned(*before, space={"optimizer.learning_rate": "log 0.001..0.1"})
    assert grown.counted(before) == before
    # The configured rate, 0.01, is not in this range.
    other = planned(*before, space={"optimizer.learning_rate": "log 0.05..0.1"})
    assert other.counted(before) == []


def test_a_grid_is_tried_in_full_or_as_far_as_asked() -> None:
    fixed = ({"loss.gamma": 0.0}, {"loss.gamma": 1.0}, {"loss.gamma": 2.0})
    grid = planned(fixed=fixed, searcher="grid")
    assert grid.trials == 3 and grid.waiting([]) == list(fixed)
    assert planned(fixed=fixed, searcher="grid", trials=2).trials == 2
    done = [record("a", {"loss.gamma": 1.0})]
    assert grid.waiting(done) == [fixed[0], fixed[2]]


def test_each_setting_is_trained_with_each_seed() -> None:
    settings = ({"loss.gamma": 0.0}, {"loss.gamma": 2.0})
    assert plan.with_seeds(settings, CONFIG, range(2)) == (
        *settings,
        {"loss.gamma": 0.0, "training.seed": 1},
        {"loss.gamma": 2.0, "training.seed": 1},
    )


def test_settings_without_effect_are_refused() -> None:
    with pytest.raises(ValueError, match=r"sweep.grid_points 5: does nothing without"):
        SweepConfig(grid_points=5)
    with pytest.raises(ValueError, match=r"sweep.seeds 3: does nothing for trials that a searcher"):
        SweepConfig(seeds=3)
    assert SweepConfig(seeds=3, preset="paper").seeds == 3


def test_a_batch_that_the_workers_of_a_trial_cannot_split_is_said(tmp_path: Any) -> None:
    sweep = SweepConfig(workers=3)
    with pytest.raises(UsageError, match="its trials cannot be trained: .*multiple of"):
        plan.plan_of(CONFIG, sweep, str(tmp_path))


def test_a_trial_that_the_time_has_ended_is_tried_again() -> None:
    cut = record("a", GIVEN, status="stopped early", stop="sweep.hours are over after epoch 1")
    bad = record("b", {"loss.gamma": 1.0, "loss.alpha": 0.5}, status="stopped early", stop="bad")
    one = planned(cut, bad)
    assert one.again([cut, bad]) == [cut] and one.ended([cut, bad]) == [bad]
