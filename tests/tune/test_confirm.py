"""Which setting wins when the best ones and the given one are trained again, and what is said."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.runs.config import TrainConfig
from detector.resampling import Interval, PairedDifference
from tune import confirm, space
from tune.build_space import space_of
from tune.config import SweepConfig
from tune.confirm import Confirmation, read_confirmation
from tune.plan import SEED, Plan
from tune.trials import Point, TrialRecord, ranked

CONFIG = TrainConfig.model_validate({"name": "x", "data": {"train": "/t", "val": "/v"}})
GIVEN = {"loss.gamma": 2.0, "loss.alpha": 0.25}


class Sweep:
    """A sweep whose trials have these APs by gamma, in the search and with the other seed."""

    def __init__(
        self,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        aps: dict[float, tuple[float | None, float | None]],
        difference: tuple[float, float, float] = (0.0, 0.0, 0.0),
        images: int = 9,
        **changes: Any,
    ):
        budget = SweepConfig(epochs=3, confirm=True, **changes)
        searched = space_of(budget.preset, budget.space, CONFIG)
        inputs: Any = SimpleNamespace(val_set=SimpleNamespace(num_rows=images))
        self.plan = Plan(CONFIG, budget, str(folder), searched, inputs, (), ())
        self.started: list[dict[str, Any]] = []
        self.again = aps
        self.records: dict[str, TrialRecord] = {}
        for gamma, (ap, _) in aps.items():
            self.add({**GIVEN, "loss.gamma": gamma}, ap, "search")
        self.console = SimpleNamespace(say=lambda line: None)
        self.concurrent = 2
        estimate, low, high = difference
        found = PairedDifference("AP", Interval(estimate, low, high, 0.95), 0.5)
        monkeypatch.setattr(confirm, "_matches", lambda *_: None)
        monkeypatch.setattr(confirm.resampling, "paired_difference", lambda *_, seed: found)

    def add(self, sample: dict[str, Any], ap: float | None, role: Any) -> None:
        name = space.trial_name(sample, 3)
        curve = () if ap is None else (Point(8, 3, ap, ap),)
        record = TrialRecord(name, f"/r/{name}", len(self.records), sample, 3, role, "done", curve)
        self.records[name] = record

    def run(self, proposals: Any, **_: Any) -> None:
        """In place of Ray Tune."""
        for sample in proposals._waiting:
            self.started.append(sample)
            self.add(sample, self.again[sample.get("loss.gamma", 2.0)][1], "confirm")

    def confirm(self) -> Confirmation:
        # Only what `confirm` asks of a search.
        return confirm.confirm(self.plan, self)  # type: ignore[arg-type]

    def name(self, gamma: float) -> str:
        return space.trial_name({**GIVEN, "loss.gamma": gamma}, 3)


def test_the_best_three_and_the_given_setting_are_trained_again_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aps = {2.0: (0.2, 0.2), 1.0: (0.3, 0.3), 0.0: (0.4, 0.1), 3.0: (0.25, 0.2), 4.0: (0.1, 0.9)}
    sweep = Sweep(tmp_path, monkeypatch, aps, (0.1, 0.05, 0.15))
    result = sweep.confirm()
    assert [one.get("loss.gamma") for one in sweep.started] == [0.0, 1.0, 3.0, None]
    assert all(one[SEED] == 1 for one in sweep.started)
    # The best of both trainings: gamma 0 was lucky once.
    assert result.winner == sweep.name(1.0)
    assert result.verdict == (
        f"{sweep.name(1.0)} against the given setting: better by 0.100 AP, 95 % 0.050 to 0.150"
    )
    # What is trained is not trained again, and the folder keeps the result.
    assert sweep.confirm() == result and len(sweep.started) == 4
    search = [one for one in sweep.records.values() if one.role == "search"]
    assert read_confirmation(sweep.plan, ranked(search)) == result
    better = TrialRecord("new", "/r/new", 9, GIVEN, 3, curve=(Point(8, 3, 0.9, 0.9),))
    other = [better, *ranked(search)]
    assert read_confirmation(sweep.plan, other) == result
    elsewhere = TrialRecord("new", "/r/new", 9, {"loss.gamma": 4.5}, 3, curve=better.curve)
    assert read_confirmation(sweep.plan, [elsewhere, *ranked(search)]) is None


def test_the_given_setting_wins_where_it_is_the_best_of_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aps = {2.0: (0.38, 0.39), 1.0: (0.38, 0.38)}
    result = Sweep(tmp_path, monkeypatch, aps, (-0.001, -0.011, 0.01)).confirm()
    assert result.winner == space.trial_name(GIVEN, 3)
    assert result.verdict.endswith(
        "not distinguishable (difference -0.001, 95 % -0.011 to 0.010); keep what you have"
    )


@pytest.mark.parametrize(
    ("aps", "images", "words"),
    [
        ({2.0: (0.3, 0.3)}, 9, "the given setting is the best of the search"),
        ({2.0: (0.3, 0.3), 1.0: (0.4, None)}, 9, "not compared, trial-.* has no result"),
        ({2.0: (0.3, 0.3), 1.0: (0.4, 0.4)}, 1, "not compared, data.val has a single image"),
    ],
)
def test_what_cannot_be_compared_is_said(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    aps: dict[float, tuple[float | None, float | None]],
    images: int,
    words: str,
) -> None:
    result = Sweep(tmp_path, monkeypatch, aps, images=images).confirm()
    assert result.difference is None and re.match(words, result.verdict)


def test_a_setting_with_several_seeds_is_confirmed_once_with_a_seed_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aps = {2.0: (0.2, 0.2), 1.0: (0.3, 0.3)}
    sweep = Sweep(tmp_path, monkeypatch, aps, searcher="grid", seeds=2)
    for gamma in aps:
        sweep.add({**GIVEN, "loss.gamma": gamma, SEED: 1}, 0.25, "search")
    result = sweep.confirm()
    assert [one[SEED] for one in sweep.started] == [2, 2]
    assert list(result.aps) == [sweep.name(1.0)] and result.seed == 2
