from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cluster.workflow.graph import run_stages
from cluster.workflow.stages import Results, Stage


def stage(name: str, *inputs: str, reads: tuple[str, ...] = (), **identity: Any) -> Stage:
    """A stage whose value is its name and those of the stages it sees."""

    def call(folder: str, results: Results) -> Mapping[str, Any]:
        return {"seen": [name, *(results[other].values["seen"][0] for other in results)]}

    return Stage(
        name,
        folder=f"{name}s",
        inputs=inputs,
        identity=lambda results: identity,
        outputs=(),
        call=call,
        reads=reads,
    )


def run(folder: Path, *stages: Stage) -> dict[str, Any]:
    return dict(run_stages(stages, root=str(folder), name="x", say=lambda line: None))


def test_stages_run_in_order_and_see_what_they_name(tmp_path: Path) -> None:
    finished = run(
        tmp_path, stage("a"), stage("b", "a"), stage("c", "b", reads=("a",)), stage("d", "a")
    )
    assert {name: done.values["seen"] for name, done in finished.items()} == {
        "a": ["a"],
        "b": ["b", "a"],
        "c": ["c", "b", "a"],
        "d": ["d", "a"],
    }


def test_a_stage_cannot_use_a_result_that_it_does_not_name(tmp_path: Path) -> None:
    def identity(results: Results) -> Mapping[str, Any]:
        return {"from": results["a"].fingerprint}

    hidden = Stage("b", folder="b", inputs=(), identity=identity, outputs=(), call=lambda *_: {})
    with pytest.raises(KeyError, match="a"):
        run(tmp_path, stage("a"), hidden)


def test_an_input_that_changed_runs_what_builds_on_it_and_nothing_else(tmp_path: Path) -> None:
    def reused(rate: int) -> list[bool]:
        stages = (stage("a", rate=rate), stage("b", "a"), stage("c"), stage("d", reads=("a",)))
        return [done.reused for done in run(tmp_path, *stages).values()]

    assert reused(rate=1) == [False, False, False, False]
    assert reused(rate=1) == [True, True, True, True]
    # What is only read is not part of the fingerprint.
    assert reused(rate=2) == [False, False, True, True]


def test_ray_is_not_started_for_stages_that_are_reused(tmp_path: Path) -> None:
    started: list[str] = []
    for _ in range(2):
        run_stages(
            [stage("a"), stage("b", "a")],
            root=str(tmp_path),
            name="x",
            before_call=lambda: started.append("ray"),
            say=lambda line: None,
        )
    assert started == ["ray", "ray"]


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ([stage("a"), stage("a")], "two stages are named 'a'"),
        ([stage("b", "a"), stage("a")], "stage 'b' needs 'a', which does not run before it"),
        ([stage("b", reads=("z",))], "stage 'b' needs 'z'"),
        ([stage("a", "a")], "stage 'a' needs 'a'"),
    ],
)
def test_a_wrong_order_is_found_before_the_first_stage_runs(
    tmp_path: Path, stages: list[Stage], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        run(tmp_path, *stages)
    assert not list(tmp_path.iterdir())
