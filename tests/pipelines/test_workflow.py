"""The stages of `run` without their work: what identifies each, in which order they run, and what a
second run reuses.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import DataError, UsageError
from cluster.runs import run_folder
from cluster.runs.run_folder import TrackingRecord
from cluster.shards.format import Category
from cluster.shards.index import Index, write_index
from cluster.tracking import embedded
from cluster.workflow.graph import run_stages
from cluster.workflow.stages import Finished, Results, Stage
from pipelines.run import main
from pipelines.run_config import RunConfig
from pipelines.workflow import check, stages_of

# What the version at commit f9e6e3b computed for `configuration` below.
FINGERPRINTS = {
    "prepare-train": "58c98bc12c7c5e37f486d4905c425d248d57ba4ab9937cff731042451b4dfb8a",
    "prepare-val": "c71e91f257f9d15fc3fd4085c4e9ddd359770393c53427c139ce897ddf2f6d3c",
    "train": "b1f1a029dc30da5f0a8e3d20e8ce5321776ac0506b955b28c96ee28059b11167",
    "evaluate": "111a50aeb85efb8e137214ec8bf39e586e00af5357351dfb03b8a994034f6ee4",
    "register": "dda1f72f80fa083b1767a1c808a3fab908a3e8d7c909ec0ec600fe83ed3f5f61",
    "predict": "3c48d1761b337158e14812d46ded233bb8d0cea70034e6872e2170d49142e441",
}
TUNED = {
    "prepare-train": FINGERPRINTS["prepare-train"],
    "prepare-val": FINGERPRINTS["prepare-val"],
    "sweep": "cb44ad97bab886baa3c13256446e4c164f7f8b942890436e84cc285c6f04319f",
    "train": "7cdd80e31597198e60745cc0fb9f9af15767f0f04536dd882e8aef9043497a39",
    "evaluate": "a84e4c8ded15dc50ffc99753e2827b5ce5d0681847d6dbcf4339a1d9989dcc0e",
    "register": "97bca2a5d3d81189be31436bed261bbce2161ebe29ea3bad24468e6daaed1917",
    "predict": "61dc730886c3b5c05f70a1e77a868aa8b707ee28f8a3fa02605f50611e46e83f",
}


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two COCO sources in data/, which is the working directory."""
    folder = tmp_path / "data"
    (folder / "annotations").mkdir(parents=True)
    for split, content in (("train", b"12345"), ("val", b"123")):
        (folder / "images" / split).mkdir(parents=True)
        (folder / "images" / split / "1.jpg").write_bytes(content)
        listed = json.dumps({"images": [], "split": split})
        (folder / "annotations" / f"{split}.json").write_text(listed)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def configuration(**changes: Any) -> RunConfig:
    sections = {
        "name": "tiny",
        "storage": "out",
        "data": {
            split: {
                "annotations": f"data/annotations/{split}.json",
                "images": f"data/images/{split}",
            }
            for split in ("train", "val")
        },
        "model": {"backbone": "resnet18", "width": 64},
        "canvas": {"height": 64, "width": 96},
        "training": {"epochs": 3, "batch_size": 8, "workers": 1},
        "sweep": {"trials": 3},
    }
    return RunConfig.model_validate({**sections, **changes})


STORE = Path("out/mlflow.db")
TABLES = (
    "runs (run_uuid PRIMARY KEY, lifecycle_stage)",
    "model_versions (name PRIMARY KEY, version INTEGER, current_stage)",
)


def in_store(change: str) -> None:
    """Change what MLflow's SQLite file would hold, of which the stages read these tables."""
    with closing(sqlite3.connect(STORE)) as store, store:
        for table in TABLES:
            store.execute(f"CREATE TABLE IF NOT EXISTS {table}")
        store.execute(change)


def leave_outputs(stage: Stage, calls: list[str]) -> Callable[[str, Results], Mapping[str, Any]]:
    """In place of a stage's work: note its name and write its outputs."""

    def call(folder: str, results: Results) -> Mapping[str, Any]:
        calls.append(stage.name)
        Path(folder).mkdir(parents=True, exist_ok=True)
        if stage.name in ("prepare-train", "prepare-val"):
            names = ["cat"] if stage.name == "prepare-train" else ["cat", "dog"]
            categories = [Category(label, label + 1, name) for label, name in enumerate(names)]
            write_index(folder, Index(tuple(categories)))
        else:
            for output in stage.outputs:
                (Path(folder) / output).touch()
        if stage.name == "train":
            uri = embedded.uri_of(f"{STORE.absolute()}")
            run_folder.write_tracking(folder, TrackingRecord(uri, "cells", "a1"))
            in_store("REPLACE INTO runs VALUES ('a1', 'active')")
        if stage.name == "register":
            in_store("REPLACE INTO model_versions VALUES ('tiny', 1, 'None')")
        return {
            "sweep": {"best": "b", "records": [{"sample": {"gamma": 3.5}}]},
            "register": {"version": "models:/tiny/1"},
        }.get(stage.name, {})

    return call


def run(config: RunConfig) -> tuple[dict[str, Finished], list[str]]:
    """The finished stages, and the names of those whose work was done."""
    checked = check(config)
    calls: list[str] = []
    stages = [replace(stage, call=leave_outputs(stage, calls)) for stage in stages_of(checked)]
    finished = run_stages(stages, root=checked.root, name=config.name, say=lambda line: None)
    return finished, calls


@pytest.mark.parametrize(("tune", "expected"), [(False, FINGERPRINTS), (True, TUNED)])
def test_fingerprints_are_those_of_the_version_before(
    sources: Path, tune: bool, expected: dict[str, str]
) -> None:
    """Where this fails, the finished stages of every user run again: keep the fingerprint, or say
    so in CHANGELOG.md.
    """
    finished, _ = run(configuration(tune=tune))
    assert {name: stage.fingerprint for name, stage in finished.items()} == expected
    assert finished["train"].folder == f"{sources}/out/runs/tiny-{expected['train'][:8]}"
    assert list(finished) == list(expected)


def test_a_second_run_calls_no_stage(sources: Path) -> None:
    first, calls = run(configuration())
    assert calls == list(FINGERPRINTS)
    again, calls = run(configuration())
    assert calls == [] and all(stage.reused for stage in again.values())
    assert {name: stage.folder for name, stage in again.items()} == {
        name: stage.folder for name, stage in first.items()
    }


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ("UPDATE model_versions SET current_stage = 'Deleted_Internal'", ["register"]),
        ("DELETE FROM model_versions", ["register"]),
        ("UPDATE runs SET lifecycle_stage = 'deleted'", ["train"]),
        (None, ["train", "register"]),
    ],
)
def test_what_mlflow_has_no_more_is_made_again(
    sources: Path, change: str | None, again: list[str]
) -> None:
    run(configuration())
    STORE.unlink() if change is None else in_store(change)
    _, calls = run(configuration())
    assert calls == again
    _, calls = run(configuration())
    assert calls == []


def test_other_images_to_predict_on_and_more_workers_run_the_last_stage_alone(
    sources: Path,
) -> None:
    run(configuration())
    training = {"epochs": 3, "batch_size": 8, "workers": 2}
    _, calls = run(configuration(pictures="data/images/train", training=training))
    assert calls == ["predict"]


def test_the_best_sample_of_the_sweep_is_trained(sources: Path) -> None:
    seen: list[float] = []

    def note(config: Any, **_: Any) -> Any:
        seen.append(config.loss.gamma)
        raise UsageError("not trained here")

    checked = check(configuration(tune=True))
    calls: list[str] = []
    stages = [
        stage if stage.name == "train" else replace(stage, call=leave_outputs(stage, calls))
        for stage in stages_of(checked)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.training_run.train", note)
        with pytest.raises(UsageError, match="not trained here"):
            run_stages(stages, root=checked.root, name="tiny", say=lambda line: None)
    assert seen == [3.5] and calls == ["prepare-train", "prepare-val", "sweep"]


def test_a_path_that_is_not_there_is_found_before_any_stage(sources: Path) -> None:
    data = configuration().model_dump(mode="json")["data"]
    data["val"]["images"] = "data/images/none"
    with pytest.raises(UsageError, match="images/none: there is no such file or folder"):
        check(configuration(data=data))


def test_pictures_that_are_none_are_refused_before_any_stage(sources: Path) -> None:
    (sources / "notes").mkdir()
    (sources / "notes/a.txt").write_text("no picture")
    with pytest.raises(DataError, match=r"notes: no picture below it \(1 x a .txt file\)"):
        check(configuration(pictures="notes"))


def test_a_sweep_of_a_model_without_the_focal_loss_is_refused_before_any_stage(
    sources: Path,
) -> None:
    with pytest.raises(UsageError, match="loss.gamma: model.architecture is fcos, not retinanet"):
        check(configuration(tune=True, model={"architecture": "fcos"}))


def plan(config: RunConfig, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """What `run --plan true` prints of each stage, without its name."""
    capsys.readouterr()
    main(config.model_copy(update={"plan": True}))
    parts = re.split(r"^\[([\w-]+)\] ", capsys.readouterr().out, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_a_plan_says_what_the_run_then_does_and_which_option_changed(
    sources: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = plan(configuration(), capsys)
    assert list(first) == list(FINGERPRINTS)
    assert "no earlier run of this name" in first["prepare-val"]
    assert "after prepare-train, prepare-val, whose output" in first["train"]
    assert not (sources / "out" / "data").exists()

    run(configuration())
    assert all(
        said.startswith("would be reused: ") for said in plan(configuration(), capsys).values()
    )

    training = {"epochs": 4, "batch_size": 8, "workers": 1}
    changed = plan(configuration(training=training), capsys)
    assert changed["prepare-val"].startswith("would be reused")
    assert "training.training.epochs: 3 -> 4\n" in changed["train"]
    assert "train has changed" in changed["register"]
    _, calls = run(configuration(training=training))
    assert calls == [name for name, said in changed.items() if said.startswith("would run")]


def test_stages_are_selected_by_their_names(
    sources: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(plan(configuration(until_stage="train"), capsys)) == list(FINGERPRINTS)[:3]
    with pytest.raises(UsageError, match="from_stage evaluate: prepare-train, .*has not finished"):
        main(configuration(only_stage="evaluate"))
    with pytest.raises(ValueError, match="only_stage is given together with from_stage"):
        configuration(only_stage="train", from_stage="train")
    with pytest.raises(ValueError, match="the stage sweep is only in a run with --tune true"):
        configuration(from_stage="sweep")
