"""A plan says what a run would do, and nothing is done by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.errors import UsageError
from cluster.workflow.graph import Selection, run_stages
from cluster.workflow.planned import Planned, changed_fields, plan_stages
from cluster.workflow.stages import Results, Stage


def chain(root: Path, **training: Any) -> tuple[Stage, ...]:
    """prepare -> train -> evaluate. The identity of `train` reads what `prepare` wrote, as that of
    the real stage reads the index of its set.
    """

    def prepare(folder: str, results: Results) -> dict[str, Any]:
        return {"digest": "d1"}

    return (
        Stage("prepare", "data", (), lambda _: {"seed": 0}, (), prepare),
        Stage(
            "train",
            "runs",
            ("prepare",),
            lambda results: {"data": results["prepare"].values["digest"], "training": training},
            (),
            lambda folder, results: {"ap": 0.5},
        ),
        Stage("evaluate", "scores", ("train",), lambda _: {"overlays": 8}, (), lambda *_: {}),
    )


def run(root: Path, stages: tuple[Stage, ...], selection: Selection = Selection()) -> list[str]:  # noqa: B008
    finished = run_stages(
        stages, root=str(root), name="cells", selection=selection, say=lambda line: None
    )
    return [name for name, done in finished.items() if not done.reused]


def plan(root: Path, stages: tuple[Stage, ...]) -> list[Planned]:
    return plan_stages(stages, root=str(root), name="cells")


def test_before_the_first_run_a_stage_whose_identity_waits_for_another_says_so(
    tmp_path: Path,
) -> None:
    prepare, train, evaluate = plan(tmp_path, chain(tmp_path))
    assert prepare.why == ("no earlier run of this name has finished it",) and prepare.folder
    assert train.folder is None and "after prepare, " in train.why[0]
    assert evaluate.folder is None and "after train, " in evaluate.why[0]
    assert not list(tmp_path.iterdir()), "nothing is written"


def test_a_plan_says_what_a_run_then_does(tmp_path: Path) -> None:
    """For each change of options: the stages that the plan would run are those that run."""
    for training in ({"lr": 0.1}, {"lr": 0.1}, {"lr": 0.2}, {"lr": 0.2, "epochs": 3}, {"lr": 0.1}):
        stages = chain(tmp_path, **training)
        planned = [one.stage for one in plan(tmp_path, stages) if not one.reused]
        assert planned == run(tmp_path, stages), training


def test_the_field_that_changed_is_named_with_both_values(tmp_path: Path) -> None:
    run(tmp_path, chain(tmp_path, lr=0.1, epochs=9))
    run(tmp_path, chain(tmp_path, lr=0.5, epochs=1))
    _, train, evaluate = plan(tmp_path, chain(tmp_path, lr=0.2, epochs=9))
    # The first of both runs is more like it: one change and not two.
    assert train.why[1:] == ("  training.lr: 0.1 -> 0.2",)
    assert str(tmp_path / "runs/cells-") in train.why[0]
    assert train.seconds is not None and "took 0 s before" in train.lines()[0]
    assert evaluate.why[-1] == "  train has changed"


def test_a_result_that_was_deleted_is_named(tmp_path: Path) -> None:
    def call(folder: str, results: Results) -> None:
        Path(folder).mkdir(parents=True)
        (Path(folder) / "index.json").touch()

    stages = (Stage("prepare", "data", (), lambda _: {}, ("index.json",), call),)
    run(tmp_path, stages)
    (done,) = plan(tmp_path, stages)
    assert done.reused
    Path(done.folder or "", "index.json").unlink()
    (planned,) = plan(tmp_path, stages)
    assert not planned.reused and planned.why[0].endswith("index.json is gone")


def test_fields_are_compared_as_they_are_stored() -> None:
    assert changed_fields({"a": {"b": [1, 2]}}, {"a": {"b": (1, 2)}}) == ()
    assert changed_fields({"a": 1}, {"b": None}) == ("a: 1 -> unset", "b: unset -> None")


def test_stages_until_one_run_and_the_rest_from_there_on(tmp_path: Path) -> None:
    stages = chain(tmp_path, lr=1)
    with pytest.raises(UsageError, match=r"from_stage train: prepare, .*has not finished"):
        run(tmp_path, stages, Selection(first="train"))
    assert run(tmp_path, stages, Selection(last="prepare")) == ["prepare"]
    assert run(tmp_path, stages, Selection("train", "train")) == ["train"]
    assert run(tmp_path, stages, Selection(first="evaluate")) == ["evaluate"]
    with pytest.raises(UsageError, match=r"until_stage fly: is no stage of this run; it has prep"):
        run(tmp_path, stages, Selection(last="fly"))
    with pytest.raises(UsageError, match=r"from_stage evaluate: comes after until_stage train"):
        run(tmp_path, stages, Selection("evaluate", "train"))
