from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from cluster.errors import PlainError
from cluster.runs.config import TrainConfig
from tune import search
from tune.build_space import space_of
from tune.space import SweepConfig
from tune.trials import TrialRecord


def test_a_trial_at_its_last_epoch_ends_by_itself() -> None:
    # Tune stops a trial by killing it, and after its last evaluation it has still its checkpoint
    # and finished.json to write.
    halving = search.Halving(epochs=3, grace_epochs=1)
    assert halving.set_search_properties("AP", "max")
    decisions = []
    for number, ap in enumerate((0.9, 0.8, 0.1)):
        trial = SimpleNamespace(
            trial_id=str(number), evaluated_params={}, last_result={}, config={}
        )
        halving.on_trial_add(None, trial)
        decisions.append(
            [
                halving.on_trial_result(None, trial, {"epoch": epoch, "AP": ap})
                for epoch in (1, 2, 3)
            ]
        )
    assert decisions[0] == ["CONTINUE"] * 3 and decisions[2] == ["STOP", "CONTINUE", "CONTINUE"]


def test_ranges_reach_the_searcher() -> None:
    config = TrainConfig.model_validate(
        {"data": {"train": "/t", "val": "/v"}, "optimizer": {"learning_rate": 0.001}}
    )
    entries = {"loss.gamma": "1..1.5", "optimizer.learning_rate": "log 0.001..0.002"}
    searched = space_of("focal", entries, config)
    proposed = search.searcher(searched, SweepConfig(), [], config=config)
    samples = [proposed.suggest(str(number)) for number in range(12)]
    assert samples[0] == {
        "loss.gamma": 1.5,
        "loss.alpha": 0.25,
        "optimizer.learning_rate": 0.001,
    }
    assert all(searched.fits(sample) and len(sample) == 3 for sample in samples)
    assert len({s["loss.gamma"] for s in samples}) == 12
    same = search.searcher(searched, SweepConfig(), [], config=config)
    assert [same.suggest(str(number)) for number in range(12)] == samples


def record(trial: str, ap: float | None) -> TrialRecord:
    sample = {"loss.gamma": 2.0}
    return TrialRecord(
        trial, "failed" if ap is None else "done", ap, ap, 1, sample, sample, "/r", "no"
    )


def test_the_best_trial_comes_first_and_those_without_a_result_last() -> None:
    records = [record("c", 0.25), record("a", None), record("b", 0.5), record("d", 0.25)]
    assert [one.trial for one in search.best_first(records, "/s")] == ["b", "c", "d", "a"]
    with pytest.raises(
        PlainError, match="none of 1 trials has a result; the first failed with: no"
    ):
        search.best_first([record("a", None)], "/s")
    # A trial that ended well, on a set without objects.
    with pytest.raises(PlainError, match="none of 1 trials has a result; none has an AP"):
        search.best_first([replace(record("a", None), status="done", reason="")], "/s")
    with pytest.raises(PlainError, match="no trial was started"):
        search.best_first([], "/s")
