from __future__ import annotations

from typing import Any

import pytest

from tune.config import Stopping
from tune.stopping import EarlyStopping
from tune.trials import Point, TrialRecord

IMAGES = 100


def stopping(rule: Stopping = "asha", **changes: Any) -> EarlyStopping:
    settings = {"epochs": 9, "grace_epochs": 1, "images_per_epoch": IMAGES, "name_of": str}
    return EarlyStopping(rule, **settings | changes)


def point(epoch: int, ap: float | None) -> Point:
    return Point(epoch * IMAGES, epoch, ap, ap)


def ask(early: EarlyStopping, name: str, epoch: int, ap: float | None) -> str | None:
    decision = early.on_trial_result(None, name, point(epoch, ap).to_json())
    # Tune would kill the trial, and its workers would keep their room.
    assert decision == "CONTINUE"
    return early.verdict(name, point(epoch, ap))


def test_of_the_trials_at_a_rung_the_best_third_goes_on() -> None:
    early = stopping()
    verdicts = {ap: ask(early, f"t{ap}", 1, ap) for ap in (0.5, 0.3, 0.6, 0.2, 0.7)}
    # The first at a rung has nobody to be worse than.
    assert [ap for ap, verdict in verdicts.items() if verdict is None] == [0.5, 0.6, 0.7]
    assert verdicts[0.3] == "not among the best third after epoch 1"
    # Between two rungs nothing is decided.
    assert ask(early, "t0.5", 2, 0.0) is None
    assert ask(early, "t0.7", 3, 0.7) is None and ask(early, "t0.5", 3, 0.1) is not None


def test_a_trial_at_its_last_epoch_ends_by_itself() -> None:
    early = stopping()
    for name, ap in (("good", 0.9), ("bad", 0.1)):
        ask(early, name, 1, 0.5)
        assert ask(early, name, 9, ap) is None


def test_rungs_are_counted_in_images() -> None:
    early = stopping()
    assert early.on_trial_result(None, "a", Point(99, 1, 0.9, 0.9).to_json()) == "CONTINUE"
    # 99 images are no epoch: the rung at 100 has no trial yet.
    assert ask(early, "b", 1, 0.1) is None


def record(name: str, *points: Point, stop: str = "", number: int = 0) -> TrialRecord:
    return TrialRecord(name, f"/s/runs/{name}", number, {}, 9, curve=points, stop=stop)


def test_a_sweep_that_goes_on_has_the_rungs_that_it_had() -> None:
    curves = {"a": (0.5, 0.6, 0.7), "b": (0.6, 0.5, 0.4), "c": (0.2,)}
    whole, replayed = stopping(), stopping()
    records = []
    for number, (name, aps) in enumerate(curves.items()):
        points = [point(epoch, ap) for epoch, ap in enumerate(aps, 1)]
        verdict = None
        for one in points:
            verdict = ask(whole, name, one.epoch, one.ap)
        records.append(record(name, *points, stop=verdict or "", number=number))
    replayed.replay(records)
    for name, epoch, ap in (("d", 1, 0.4), ("e", 1, 0.9), ("e", 3, 0.5), ("a", 9, 0.1)):
        assert ask(whole, name, epoch, ap) == ask(replayed, name, epoch, ap)


def test_a_trial_that_was_told_to_end_is_told_so_again_after_a_restart() -> None:
    early = stopping()
    early.replay([record("a", point(1, 0.9), stop="not among the best third after epoch 1")])
    assert ask(early, "a", 1, 0.9) == "not among the best third after epoch 1"


def test_an_evaluation_that_is_told_twice_counts_once() -> None:
    early = stopping()
    assert ask(early, "a", 1, 0.5) is None
    assert [ask(early, "b", 1, 0.6) for _ in range(3)] == [None] * 3
    # Of 0.5 and 0.6 the best third begins at 0.567: with 0.6 counted three times it would be 0.6.
    assert ask(early, "c", 1, 0.58) is None


@pytest.mark.parametrize("rule", ["asha", "median", "none"])
def test_a_trial_without_a_score_goes_on(rule: Stopping) -> None:
    early = stopping(rule)
    for name in "abcde":
        assert ask(early, name, 1, 0.5) is None
    assert ask(early, "z", 1, None) is None


def test_a_trial_below_the_median_of_three_others_ends() -> None:
    early = stopping("median")
    for name, ap in (("a", 0.5), ("b", 0.4), ("c", 0.3)):
        assert ask(early, name, 1, ap) is None
    assert ask(early, "d", 1, 0.45) is None
    assert ask(early, "e", 1, 0.2) == "below the median after epoch 1"


def test_after_the_deadline_every_trial_ends_at_its_next_evaluation() -> None:
    now = [0.0]
    early = stopping("none", deadline=10.0, clock=lambda: now[0])
    assert ask(early, "a", 1, 0.5) is None
    now[0] = 11.0
    assert ask(early, "a", 2, 0.9) == "sweep.hours are over after epoch 2"


def test_a_trial_that_the_time_had_ended_may_go_on() -> None:
    early = stopping("none")
    early.replay([record("a", point(1, 0.5), stop="sweep.hours are over after epoch 1")])
    assert ask(early, "a", 1, 0.5) is None
