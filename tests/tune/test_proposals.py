from __future__ import annotations

import json
from typing import Any

import pytest
from ray.tune.search import Searcher

from cluster.runs.config import TrainConfig
from tune.build_space import space_of
from tune.proposals import Proposals, Sampler, startup_trials
from tune.trials import Point, TrialRecord

CONFIG = TrainConfig.model_validate({"name": "x", "data": {"train": "/t", "val": "/v"}})
ENTRIES = {
    "optimizer.learning_rate": "log 0.0001..0.1",
    "training.batch_size": "int 4..8",
    "loss.box": ["smooth_l1", "giou"],
    "loss.beta": "log 0.01..1 when loss.box=smooth_l1",
    "loss.gamma+loss.alpha": [[0.0, 0.75], [2.0, 0.25], [5.0, 0.25]],
}


def sampler(entries: dict[str, Any] | None = None, **changes: Any) -> Sampler:
    searched = space_of("none", ENTRIES if entries is None else entries, CONFIG)
    settings = {"searcher": "tpe", "trials": 40, "seed": 0, "before": []}
    return Sampler(searched, CONFIG, **settings | changes)


def draw(one: Sampler, count: int, score: Any = lambda sample: 0.5) -> list[dict[str, Any]]:
    samples = []
    for number in range(count):
        sample = one.draw(str(number))
        assert sample is not None
        one.told(str(number), score(sample))
        samples.append(dict(sample))
    return samples


@pytest.mark.parametrize("searcher", ["tpe", "random", "gp"])
def test_samples_lie_in_the_space_and_are_never_the_same(searcher: str) -> None:
    samples = draw(sampler(searcher=searcher), 15)
    searched = space_of("none", ENTRIES, CONFIG)
    assert all(searched.fits(sample) for sample in samples)
    assert len({json.dumps(sample, sort_keys=True) for sample in samples}) == 15
    # A condition that does not hold takes its field out; fixed pairs stay together.
    assert {"loss.beta" in sample for sample in samples} == {True, False}
    assert all(("loss.beta" in one) == (one["loss.box"] == "smooth_l1") for one in samples)
    pairs = {(one["loss.gamma"], one["loss.alpha"]) for one in samples}
    assert pairs <= {(0.0, 0.75), (2.0, 0.25), (5.0, 0.25)}
    assert draw(sampler(searcher=searcher), 15) == samples
    assert draw(sampler(searcher=searcher, seed=1), 15) != samples


def test_the_searcher_learns_after_few_random_trials() -> None:
    assert [startup_trials(trials) for trials in (1, 8, 12, 40, 1000)] == [2, 2, 3, 10, 10]
    entries = {"optimizer.weight_decay": "0..1"}
    # The score falls away from 0.8: what is proposed after the start lies nearer to it.
    samples = draw(
        sampler(entries, trials=24), 24, lambda one: 1 - abs(one["optimizer.weight_decay"] - 0.8)
    )
    distances = [abs(one["optimizer.weight_decay"] - 0.8) for one in samples]
    assert sum(distances[12:]) / 12 < 0.5 * sum(distances[:6]) / 6


def test_a_small_space_is_tried_once_and_then_ends() -> None:
    small = sampler({"loss.box": ["smooth_l1", "giou"], "optimizer.name": ["sgd", "adamw"]})
    assert len(draw(small, 4)) == 4
    assert small.draw("more") is None


def test_a_choice_that_the_searcher_shuns_is_tried_all_the_same() -> None:
    rates = [0.1, 0.01, 0.001, 0.0001, 0.00001]
    one = sampler({"optimizer.learning_rate": rates}, trials=5)
    scores = {0.1: 0.9, 0.01: 0.5, 0.001: 0.1}
    samples = draw(one, 5, lambda sample: scores.get(sample["optimizer.learning_rate"], 0.0))
    assert sorted(sample["optimizer.learning_rate"] for sample in samples) == sorted(rates)
    assert one.draw("more") is None


def record(sample: dict[str, Any], ap: float | None, **changes: Any) -> TrialRecord:
    curve = () if ap is None else (Point(8, 1, ap, ap),)
    settings = {"status": "done", "curve": curve}
    return TrialRecord("t", "/s/runs/t", 0, sample, 1, **settings | changes)


def test_a_sweep_that_goes_on_knows_what_it_has_seen() -> None:
    entries = {"loss.box": ["smooth_l1", "giou"]}
    before = [record({"loss.box": "giou"}, 0.5)]
    going_on = sampler(entries, before=before)
    assert draw(going_on, 1) == [{"loss.box": "smooth_l1"}]
    # A space that grew: the earlier trial had the configured value of the new field.
    grown = sampler({**entries, "optimizer.weight_decay": "0..1"}, before=before)
    assert len(draw(grown, 3)) == 3


def test_a_setting_that_diverged_counts_as_bad_and_one_whose_machine_failed_as_unknown() -> None:
    entries = {"optimizer.weight_decay": "0..1"}
    sample = {"optimizer.weight_decay": 0.5}
    one = sampler(entries, before=[record(sample, None, status="failed", diverged=True)])
    assert [trial.value for trial in one._study.trials] == [0.0]
    other = sampler(entries, before=[record(sample, None, status="failed")])
    assert other._study.trials == []


def test_proposals_wait_for_room_and_end_when_nothing_may_start() -> None:
    allowed, told = [True], []
    waiting = [{"loss.gamma": 2.0}, {"loss.gamma": 1.0}]
    proposals = Proposals(
        waiting,
        draw=lambda trial: {"loss.gamma": 0.0},
        told=lambda trial, ap: told.append((trial, ap)),
        concurrent=2,
        may_start=lambda: allowed[0],
    )
    assert proposals.suggest("a") == {"sample": '{"loss.gamma": 2.0}'}
    assert proposals.suggest("b") == {"sample": '{"loss.gamma": 1.0}'}
    assert proposals.suggest("c") is None
    for ap in (0.4, 0.6, 0.5):
        proposals.on_trial_result("a", {"AP": ap})
    # A trial counts by its best checkpoint.
    proposals.on_trial_complete("a", {"AP": 0.5})
    assert told == [("a", 0.6)]
    assert proposals.suggest("c") == {"sample": '{"loss.gamma": 0.0}'}
    proposals.on_trial_complete("b", {"failed": "NaN", "diverged": True})
    assert told[-1] == ("b", 0.0)
    allowed[0] = False
    assert proposals.suggest("d") == Searcher.FINISHED
    proposals.on_trial_complete("c", None, error=True)
    assert told[-1] == ("c", None)


def test_a_list_of_settings_is_proposed_once() -> None:
    proposals = Proposals([{"loss.gamma": 2.0}], concurrent=1)
    assert proposals.suggest("a") == {"sample": '{"loss.gamma": 2.0}'}
    proposals.on_trial_complete("a", {"AP": 0.5})
    assert proposals.suggest("b") == Searcher.FINISHED


def test_waiting_settings_do_not_start_either_when_nothing_may() -> None:
    allowed = [True]
    waiting = [{"loss.gamma": 2.0}, {"loss.gamma": 1.0}]
    proposals = Proposals(waiting, concurrent=2, may_start=lambda: allowed[0])
    assert proposals.suggest("a") == {"sample": '{"loss.gamma": 2.0}'}
    allowed[0] = False
    assert proposals.suggest("b") == Searcher.FINISHED
