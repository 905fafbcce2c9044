"""The gate says yes to a model that is not worse and no to one that may be, with the numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cluster.judging.gate import Loaded, Verdict, judge
from cluster.judging.gate_config import GateConfig
from tests.support.hits import scored

LOADED = Loaded(None, "4 pictures", 20.0, "CPU", 10.0)
LABELS = [number % 2 for number in range(400)]
NAMES = ("cell", "platelet")


def found(share: float, seed: int = 0) -> np.ndarray:
    """Which objects a model finds."""
    return np.random.default_rng(seed).random(len(LABELS)) < share


def verdict(
    candidate: Sequence[bool],
    champion: Sequence[bool] | None,
    loaded: Loaded = LOADED,
    **limits: Any,
) -> Verdict:
    before = None if champion is None else scored("models:/cells/1", champion, LABELS, NAMES)
    now = scored("models:/cells/2", candidate, LABELS, NAMES)
    return judge(now, before, loaded, GateConfig(**limits), data="/data", data_digest="abc")


def failed(verdict: Verdict) -> list[str]:
    return [check.name for check in verdict.checks if not check.passed]


def test_a_better_model_passes_and_a_worse_one_does_not() -> None:
    good, bad = found(0.9), found(0.5)
    better = verdict(good, bad)
    assert better.passed and better.comparison.startswith("better by 0.4")
    worse = verdict(bad, good)
    assert not worse.passed
    assert failed(worse) == [
        "difference of AP to the champion",
        "largest loss of a class",
        "largest loss of a size",
    ]
    assert "models:/cells/2 is not promoted: difference of AP to the champion: -0.4" in (
        worse.refusal()
    )
    assert worse.numbers["difference"] == pytest.approx(-better.numbers["difference"], abs=1e-9)


def test_a_model_of_equal_quality_passes_only_where_the_set_can_tell() -> None:
    one = found(0.8)
    other = np.roll(one, 2)
    assert failed(verdict(other, one, epsilon=0.01))[0] == "difference of AP to the champion"
    assert verdict(other, one, epsilon=0.01).comparison.startswith("not distinguishable")
    assert verdict(other, one, epsilon=0.1, class_drop=0.2).passed


def test_a_model_that_is_the_champion_again_passes() -> None:
    same = verdict(found(0.8), found(0.8))
    assert same.passed and same.numbers["difference"] == 0


def test_without_a_champion_the_floor_and_the_package_count() -> None:
    first = verdict(found(0.8), None)
    assert first.passed and first.comparison == "" and first.champion is None
    assert failed(verdict(found(0.8), None, min_ap=0.9)) == ["AP"]


def test_a_class_with_few_objects_is_not_judged() -> None:
    champion = found(0.9)
    # Nothing of the second class any more.
    candidate = champion & (np.array(LABELS) == 0)
    lost = verdict(candidate, champion, epsilon=0.9, size_drop=1)
    assert failed(lost) == ["largest loss of a class"]
    (check,) = [one for one in lost.checks if one.name == "largest loss of a class"]
    assert "platelet: 0.8" in check.found and check.found.endswith("-> 0.0000")
    few = verdict(candidate, champion, epsilon=0.9, size_drop=1, min_objects=201)
    assert few.passed


@pytest.mark.parametrize(
    ("loaded", "limits", "name"),
    [
        (replace(LOADED, error="does not load: no torch"), {}, "loads in a fresh process"),
        (LOADED, {"latency_ms": 19.9}, "time of an image"),
        (replace(LOADED, milliseconds=None), {"latency_ms": 1e9}, "time of an image"),
        (LOADED, {"megabytes": 9.9}, "size of the package"),
    ],
)
def test_a_package_that_does_not_load_or_is_too_slow_or_large_is_refused(
    loaded: Loaded, limits: dict[str, float], name: str
) -> None:
    assert failed(verdict(found(0.8), None, loaded, **limits)) == [name]
    kept = {"latency_ms": 20.0, "megabytes": 10.0}
    assert verdict(found(0.8), None, LOADED, **kept).passed


def test_the_verdict_is_json_and_a_table() -> None:
    said = verdict(found(0.9), found(0.5))
    stored = json.loads(json.dumps(said.to_json()))
    assert stored["passed"] is True and stored["limits"]["epsilon"] == 0.01
    assert {check["name"] for check in stored["checks"]} == {one.name for one in said.checks}
    lines = said.lines()
    assert lines[0] == "gate     models:/cells/2 against models:/cells/1 on /data"
    assert all(line.startswith("ok  ") for line in lines[2:-1])
