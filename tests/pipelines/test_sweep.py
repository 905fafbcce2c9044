"""A sweep on the shared Ray cluster: two trials at a time, one that fails, and the same command
again.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from cluster.compute.session import RayConfig
from cluster.errors import UsageError
from cluster.runs import run_folder
from cluster.runs.config import TrainConfig
from cluster.storage import files
from cluster.tracking.client import connect
from cluster.tracking.config import TrackingConfig, tracking_uri
from detector.image_config import CanvasConfig
from detector.model import RetinaNet
from pipelines import sweep as verb
from pipelines.command_line import parse, run_verb
from pipelines.train import TrainVerb
from tune import plan, results, space, sweep, trials
from tune.config import SweepConfig
from tune.proposals import Sampler

TINY = {
    "model": {"backbone": "resnet18", "width": 64, "anchors": {"base_sizes": (8, 16, 32, 64, 128)}},
    "canvas": {"height": 64, "width": 96},
    "optimizer": {"name": "adamw", "learning_rate": 0.001},
    "training": {"epochs": 1, "batch_size": 8},
}


def tiny(storage_root: str, data: dict[str, str]) -> TrainConfig:
    return TrainConfig.model_validate(
        {"name": "tiny", "storage": storage_root, "data": data, **TINY}
    )


@pytest.fixture(scope="module")
def swept(
    small_sets: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Any]]:
    """A sweep of three trials, of which the second cannot use the folder of its run: its
    configuration, what it returned and what it printed. All paths are relative, as one types them.
    """
    root = tmp_path_factory.mktemp("sweep")
    (root / "data").mkdir()
    for split, folder in small_sets.items():
        (root / "data" / split).symlink_to(folder)
    weights = root / "elsewhere/model.safetensors"
    weights.parent.mkdir()
    start = RetinaNet(classes=1, backbone="resnet18", width=64)
    save_file(
        {name: value.contiguous() for name, value in start.state_dict().items()}, str(weights)
    )
    relative = {"train": "data/train", "val": "data/val"}
    typed = tiny("store", relative).model_copy(update={"pretrained": "elsewhere/model.safetensors"})
    budget = SweepConfig(trials=3, concurrent=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        config = typed.with_absolute_uris()
        uri = sweep.sweep_uri(config.storage, "tiny")
        planned = plan.plan_of(config, budget, uri)
        sampler = Sampler(
            planned.space, config, searcher="tpe", trials=3, seed=budget.seed, before=[]
        )
        sampler.knows(*planned.first)
        second = sampler.draw("second")
        assert second is not None
        broken = trials.trial_config(config, budget, uri, second)
        # A run's name is taken by its first checkpoint.
        files.write_json(f"{run_folder.checkpoint_uri(broken.run_uri, 8)}/state.json", {})
        files.write_json(
            f"{broken.run_uri}/config.json", {"identity": {"seed": "another one"}, "config": {}}
        )
        with contextlib.redirect_stdout(io.StringIO()) as said:
            returned = run_sweep(typed, budget)
            print("\n".join(returned.lines()))
    yield {
        "config": config,
        "budget": budget,
        "uri": uri,
        "weights": weights.read_bytes(),
        "broken": broken.name,
        "said": said.getvalue(),
        "records": returned.records,
        "best": returned.best,
    }


def run_sweep(config: TrainConfig, budget: SweepConfig) -> sweep.Swept:
    return sweep.sweep(
        config, budget, ray=RayConfig(), tracking=TrackingConfig(experiment="sweeps")
    )


@pytest.mark.integration
def test_two_trials_at_a_time_and_the_best_configuration(swept: dict[str, Any]) -> None:
    config, uri = swept["config"], swept["uri"]
    assert swept["best"] == f"{uri}/best.yaml"
    best, second, _ = swept["records"]
    assert [record.status for record in (best, second)] == ["done", "done"]
    assert best.ap >= second.ap
    # The first trial is the configuration as given: the paper's gamma 2, alpha 0.25.
    assert {"loss.gamma": 2.0, "loss.alpha": 0.25} in (best.sample, second.sample)
    for record in (best, second):
        run = json.loads((Path(record.run) / "config.json").read_text())["config"]
        assert record.run == f"{uri}/runs/{record.trial}"
        assert {f"loss.{name}": run["loss"][name] for name in ("gamma", "alpha")} == record.sample
        assert run["training"]["workers"] == 1
        assert (Path(record.run) / "finished.json").exists()
        # Trials start from the sweep's copy of the weight file, one for all.
        assert Path(run["pretrained"]).parent == Path(uri, "pretrained")
        assert Path(run["pretrained"]).read_bytes() == swept["weights"]
        assert not (Path(record.run) / "pretrained").exists()

    data = ["--data.train", config.data.train, "--data.val", config.data.val]
    run_flags = ["--name", "tiny", "--storage", config.storage]
    typed = parse(TrainVerb, ["--config", swept["best"], *data, *run_flags])
    fields = typed.model_dump(include=set(TrainConfig.model_fields))
    # Those of the machines on which it will train.
    machine = ("workers", "gpus_per_worker", "decode_threads")
    assert [fields["training"][name] for name in machine] == ["auto"] * 3
    fields["training"] |= {name: getattr(config.training, name) for name in machine}
    assert TrainConfig.model_validate(fields) == space.apply(config, best.sample)
    rows = list(csv.DictReader(io.StringIO(Path(uri, "results.csv").read_text())))
    assert [row["trial"] for row in rows] == [record.trial for record in swept["records"]]
    assert float(rows[0]["loss.gamma"]) == best.sample["loss.gamma"]
    # The workers measure how long an image takes.
    assert float(rows[0]["ms_per_image"]) > 0
    page = Path(uri, "sweep.html").read_text(encoding="utf-8")
    assert all(record.trial in page for record in swept["records"])

    client = connect(tracking_uri(None, config.storage))
    runs = client.search_runs([client.get_experiment_by_name("sweeps").experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if run is not parent]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert parent.info.status == "FINISHED"
    assert {run.info.run_name: run.info.status for run in children} == {
        best.trial: "FINISHED",
        second.trial: "FINISHED",
        swept["broken"]: "FAILED",
    }
    assert parent.data.tags["best_trial"] == best.trial
    artifacts = [each.path for each in client.list_artifacts(parent.info.run_id)]
    assert {"best.yaml", "results.csv", "sweep.html"} <= set(artifacts)
    assert {
        run.info.run_name: run.data.metrics["val/AP"]
        for run in children
        if run.info.run_name != swept["broken"]
    } == {record.trial: pytest.approx(record.ap) for record in (best, second)}
    # The run of a trial has no pictures: their cost would be that of every trial.
    of_trials = [client.list_artifacts(run.info.run_id) for run in children]
    assert {each.path for artifacts in of_trials for each in artifacts} == {
        "config.json",
        "pretrained.json",
    }


@pytest.mark.integration
def test_a_failing_trial_costs_that_trial(swept: dict[str, Any]) -> None:
    failed = swept["records"][2]
    assert (failed.trial, failed.status, failed.ap) == (swept["broken"], "failed", None)
    assert "was started with another configuration" in failed.reason
    assert f"{swept['broken']} failed" in swept["said"]
    assert "trials   3, of which 1 failed" in swept["said"]
    assert "Traceback" not in swept["said"]


@pytest.mark.integration
def test_the_same_command_finds_the_sweep_finished_and_another_one_is_refused(
    swept: dict[str, Any], capsys: pytest.CaptureFixture
) -> None:
    config, budget = swept["config"], swept["budget"]
    assert run_sweep(config, budget).records == swept["records"]
    assert "this sweep is finished; nothing was tried again" in capsys.readouterr().out
    with pytest.raises(UsageError, match="another configuration .canvas.width was 96, is 128"):
        plan.plan_of(
            config.model_copy(update={"canvas": CanvasConfig(height=64, width=128)}),
            budget,
            swept["uri"],
        )


@pytest.mark.integration
def test_an_interrupted_sweep_goes_on_and_a_larger_one_keeps_what_it_has(
    swept: dict[str, Any], capsys: pytest.CaptureFixture
) -> None:
    """The driver was killed between the end of a training and the record of it: nothing is trained
    twice. One trial more is one training more.
    """
    best = swept["records"][0]
    files.delete_file(f"{swept['uri']}/{results.RESULTS}")
    trials.write_record(replace(best, status="running", curve=()))
    again = run_sweep(swept["config"], swept["budget"].model_copy(update={"trials": 4}))
    said = capsys.readouterr().out
    assert "2 of 4 trials have ended in earlier commands" in said
    names = {record.trial for record in swept["records"]}
    (new,) = [record for record in again.records if record.trial not in names]
    assert (new.number, new.status) == (3, "done")
    assert [record for record in again.records if record is not new] == swept["records"]
    assert f"{new.trial} started" in said and f"{swept['broken']} started" not in said


def test_too_few_machines_are_said_in_one_line(
    ray_cluster: str, capsys: pytest.CaptureFixture
) -> None:
    # The cluster of the tests has 4 CPUs; a trial of 2 workers books 0.01 + 2 x (1.5 + 0.25) =
    # 3.51.
    assert (
        sweep.trials_at_once(
            SweepConfig(concurrent=2, workers=2, cpus_per_worker=1.5), autoscaling=False, say=print
        )
        == 1
    )
    assert (
        "1 trials at a time instead of sweep.concurrent 2: each needs 3.51 CPUs"
        in capsys.readouterr().out
    )
    assert (
        sweep.trials_at_once(
            SweepConfig(concurrent=9, workers=2, cpus_per_worker=1.5), autoscaling=True, say=print
        )
        == 9
    )


def wrong(capsys: pytest.CaptureFixture, *argv: str) -> tuple[Any, str]:
    with pytest.raises(SystemExit) as end:
        run_verb(verb.SweepVerb, verb.main, description="test", argv=list(argv))
    return end.value.code, capsys.readouterr().err


def test_wrong_input_is_one_line_and_code_2(
    small_sets: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    data = ("--data.train", small_sets["train"], "--data.val", small_sets["val"])
    places = (*data, "--storage", str(tmp_path))
    code, err = wrong(capsys, *places, "--sweep.space.loss.gamma", "3..1")
    assert code == 2 and "LOW must be below HIGH" in err and err.count("\n") == 1
    code, err = wrong(capsys, *places, "--sweep.workers", "40", "--training.batch_size", "40")
    assert code == 2 and "one trial (sweep.workers 40" in err and "the cluster has 4" in err
    code, err = wrong(capsys, *places, "--sweep.workers", "3", "--training.batch_size", "4")
    assert (
        code == 2
        and "batch_size 4: must be a multiple of training.workers 3" in err
        and "sweep.workers" in err
        and err.count("\n") == 1
    )
    code, err = wrong(capsys, *places, "--model.norm", "sync", "--training.gpus_per_worker", "1")
    assert (
        code == 2
        and "model.norm sync: needs training.gpus_per_worker 1" in err
        and "sweep.gpus_per_worker" in err
        and err.count("\n") == 1
    )
    code, err = wrong(
        capsys,
        "--data.train",
        str(tmp_path / "none"),
        "--data.val",
        small_sets["val"],
        "--storage",
        str(tmp_path),
    )
    assert code == 2 and "none" in err and err.count("\n") == 1
