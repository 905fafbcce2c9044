"""A sweep on the shared Ray cluster: two trials at a time, one that fails, and the same command
again.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import save_file

from cluster.compute.session import RayConfig
from cluster.errors import UsageError
from cluster.prepare.plan import prepare
from cluster.runs import run_folder
from cluster.runs.config import TrainConfig
from cluster.storage import files
from cluster.tracking.client import connect
from cluster.tracking.config import TrackingConfig, tracking_uri
from detector.config import CanvasConfig
from detector.model import RetinaNet
from pipelines import sweep as verb
from pipelines.command_line import parse, run_verb
from pipelines.train import TrainVerb
from tune import search, space
from tune.space import SpaceConfig, SweepConfig

TINY = {
    "model": {"backbone": "resnet18", "width": 64, "anchors": {"base_sizes": (8, 16, 32, 64, 128)}},
    "canvas": {"height": 64, "width": 96},
    "optimizer": {"name": "adamw", "learning_rate": 0.001},
    "training": {"epochs": 1, "batch_size": 8},
}


@pytest.fixture(scope="module")
def data(
    small_coco: Path, ray_cluster: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    root = tmp_path_factory.mktemp("shards")
    for split in ("train", "val"):
        places = {
            "annotations": f"{small_coco}/annotations/instances_{split}.json",
            "images": f"{small_coco}/images/{split}",
        }
        prepare(**places, output=str(root / split), row_group_rows=4, say=lambda _: None)
    return {split: str(root / split) for split in ("train", "val")}


def tiny(storage_root: Path, data: dict[str, str]) -> TrainConfig:
    return TrainConfig.model_validate(
        {"name": "tiny", "storage": str(storage_root), "data": data, **TINY}
    )


def test_two_trials_at_a_time_and_the_best_configuration(
    data: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    weights = tmp_path / "elsewhere/model.safetensors"
    weights.parent.mkdir()
    start = RetinaNet(classes=1, backbone="resnet18", width=64)
    save_file(
        {name: value.contiguous() for name, value in start.state_dict().items()}, str(weights)
    )
    config = tiny(tmp_path / "store", data).model_copy(update={"pretrained": str(weights)})
    tmp_path, budget = tmp_path / "store", SweepConfig(trials=2, concurrent=2)
    found = verb.sweep(
        config, budget, ray=RayConfig(), tracking=TrackingConfig(experiment="sweeps")
    )
    said = capsys.readouterr().out
    uri = f"{tmp_path}/sweeps/tiny"
    assert found["best"] == f"{uri}/best.yaml" and "trials   2, of which 0 failed" in said
    records = found["records"]
    assert [record["status"] for record in records] == ["done", "done"] and records[0][
        "AP"
    ] >= records[1]["AP"]
    # The first trial is the configuration as given: the paper's gamma 2, alpha 0.25.
    assert {"gamma": 2.0, "alpha": 0.25} in [record["sample"] for record in records]
    for record in records:
        run = json.loads((Path(record["run"]) / "config.json").read_text())["config"]
        assert (
            record["run"] == f"{uri}/runs/{record['trial']}"
            and {name: run["loss"][name] for name in ("gamma", "alpha")} == record["sample"]
        )
        assert run["training"]["workers"] == 1 and (Path(record["run"]) / "finished.json").exists()
        # Trials start from the sweep's copy of the weight file, one for all.
        assert (
            Path(run["pretrained"]).parent == Path(uri, "pretrained")
            and Path(run["pretrained"]).read_bytes() == weights.read_bytes()
        )
        assert not (Path(record["run"]) / "pretrained").exists()

    best = parse(
        TrainVerb,
        [
            "--config",
            found["best"],
            "--data.train",
            data["train"],
            "--data.val",
            data["val"],
            "--name",
            "tiny",
            "--storage",
            str(tmp_path),
        ],
    )
    assert TrainConfig.model_validate(
        best.model_dump(include=set(TrainConfig.model_fields))
    ) == space.apply(config, records[0]["sample"])
    rows = list(csv.DictReader(io.StringIO(Path(uri, "results.csv").read_text())))
    assert [row["trial"] for row in rows] == [record["trial"] for record in records] and float(
        rows[0]["gamma"]
    ) == records[0]["sample"]["gamma"]

    client = connect(tracking_uri(None, str(tmp_path)))
    runs = client.search_runs([client.get_experiment_by_name("sweeps").experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if run is not parent]
    assert {run.info.run_name for run in children} == {record["trial"] for record in records}
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id} and {
        run.info.status for run in runs
    } == {"FINISHED"}
    assert parent.data.params["best.gamma"] == str(records[0]["sample"]["gamma"])
    assert {run.info.run_name: run.data.metrics["val/AP"] for run in children} == {
        record["trial"]: pytest.approx(record["AP"]) for record in records
    }

    again = verb.sweep(
        config, budget, ray=RayConfig(), tracking=TrackingConfig(experiment="sweeps")
    )
    assert (
        again["records"] == records
        and "this sweep is finished; nothing was tried again" in capsys.readouterr().out
    )
    with pytest.raises(UsageError, match="another configuration .canvas.width was 96, is 128"):
        search.check(
            config.model_copy(update={"canvas": CanvasConfig(height=64, width=128)}), budget, uri
        )


def test_a_failing_trial_costs_that_trial_and_an_interrupted_sweep_goes_on(
    data: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config, budget = tiny(tmp_path, data), SweepConfig(trials=3, concurrent=2)
    uri = search.sweep_uri(str(tmp_path), "tiny")
    # What a killed driver leaves: one trial over, and one under way whose run folder cannot be
    # used.
    over, broken = {"gamma": 3.0, "alpha": 0.5}, {"gamma": 4.0, "alpha": 0.6}
    for sample, status, ap in ((over, "done", 0.125), (broken, "running", None)):
        run = search.trial_config(config, budget, uri, sample).run_uri
        record = {
            "trial": Path(run).name,
            "status": status,
            "AP": ap,
            "AP50": ap,
            "epochs": 1,
            "sample": sample,
            "proposed": sample,
            "run": run,
            "reason": "",
        }
        files.write_json(f"{run}/trial.json", record)
    files.write_json(f"{run}/config.json", {"identity": {"seed": "another one"}, "config": {}})
    files.write_json(
        f"{run_folder.checkpoint_uri(run, 8)}/state.json", {}
    )  # a name is taken by its first checkpoint
    found = verb.sweep(
        config, budget, ray=RayConfig(), tracking=TrackingConfig(experiment="sweeps")
    )
    said = capsys.readouterr().out
    assert (
        "1 of 3 trials are there from a sweep that did not finish; kept" in said
        and "trials   3, of which 1 failed" in said
    )
    by_status = {record["status"]: record for record in found["records"]}
    assert by_status["failed"]["sample"] == broken and by_status["failed"]["AP"] is None
    assert (
        "was started with another configuration" in by_status["failed"]["reason"]
        and f"{by_status['failed']['trial']} failed" in said
    )
    assert over in [record["sample"] for record in found["records"]] and len(found["records"]) == 3
    assert "Traceback" not in said


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


def test_concurrency_is_what_the_cluster_holds() -> None:
    two = SweepConfig(concurrent=2)
    # A trial books 0.01 + 1 x (0.5 + 0.25) = 0.76 CPUs: two fit into 2 CPUs, one into 1.5, none
    # into 0.75.
    assert [search.fitting(two, [{"CPU": cpus}]) for cpus in (64, 2, 1.52, 1.5, 0.76, 0.75)] == [
        2,
        2,
        2,
        1,
        1,
        0,
    ]
    # Two workers with a GPU each: 3 GPUs hold one trial.
    wide = SweepConfig(concurrent=4, workers=2, cpus_per_worker=1, gpus_per_worker=1)
    assert [search.fitting(wide, [{"CPU": 64, "GPU": gpus}]) for gpus in (1, 3, 4, 100)] == [
        0,
        1,
        2,
        4,
    ]
    # Nodes with one each hold half a trial each, and what has three CPUs in all may hold none.
    assert (
        search.fitting(wide, [{"CPU": 2, "GPU": 1}] * 5) == 2
        and search.fitting(two, [{"CPU": 0.5}] * 6) == 0
    )


def test_too_few_machines_are_said_in_one_line(
    ray_cluster: str, capsys: pytest.CaptureFixture
) -> None:
    # The cluster of the tests has 4 CPUs; a trial of 2 workers books 0.01 + 2 x (1.5 + 0.25) =
    # 3.51.
    assert (
        verb.trials_at_once(
            SweepConfig(concurrent=2, workers=2, cpus_per_worker=1.5), autoscaling=False
        )
        == 1
    )
    assert (
        "1 trials at a time instead of sweep.concurrent 2: each needs 3.51 CPUs"
        in capsys.readouterr().out
    )
    assert (
        verb.trials_at_once(
            SweepConfig(concurrent=9, workers=2, cpus_per_worker=1.5), autoscaling=True
        )
        == 9
    )


def wrong(capsys: pytest.CaptureFixture, *argv: str) -> tuple[Any, str]:
    with pytest.raises(SystemExit) as end:
        run_verb(verb.SweepVerb, verb.main, description="test", argv=list(argv))
    # Ray may print what a process of an earlier test says just now: "(PlacementGroupCleaner
    # pid=...) ...".
    return end.value.code, "".join(
        line for line in capsys.readouterr().err.splitlines(keepends=True) if " pid=" not in line
    )


def test_wrong_input_is_one_line_and_code_2(
    ray_cluster: str, data: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    places = ("--data.train", data["train"], "--data.val", data["val"], "--storage", str(tmp_path))
    code, err = wrong(capsys, *places, "--sweep.space.gamma", "3,1")
    assert code == 2 and "LOW < HIGH" in err and err.count("\n") == 1
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
        data["val"],
        "--storage",
        str(tmp_path),
    )
    assert code == 2 and "none" in err and err.count("\n") == 1


def test_ranges_reach_the_searcher() -> None:
    proposed = search.searcher(
        SweepConfig(space=SpaceConfig(gamma=(1.0, 1.5), learning_rate=(0.001, 0.002))),
        [],
        first={"gamma": 1.0, "alpha": 0.5, "learning_rate": 0.001},
    )
    samples = [proposed.suggest(str(number)) for number in range(12)]
    assert samples[0] == {"gamma": 1.0, "alpha": 0.5, "learning_rate": 0.001}
    assert all(
        1.0 <= s["gamma"] <= 1.5
        and 0.1 <= s["alpha"] <= 0.9
        and 0.001 <= s["learning_rate"] <= 0.002
        for s in samples
    )
    assert len({s["gamma"] for s in samples}) == 12
    same = search.searcher(
        SweepConfig(space=SpaceConfig(gamma=(1.0, 1.5), learning_rate=(0.001, 0.002))),
        [],
        first=samples[0],
    )
    assert [same.suggest(str(number)) for number in range(12)] == samples


def test_a_trial_that_is_stopped_early_keeps_its_result(tmp_path: Path) -> None:
    lines: list[str] = []
    config, budget = tiny(tmp_path, {"train": "/t", "val": "/v"}), SweepConfig(epochs=4)
    uri = search.sweep_uri(str(tmp_path), "tiny")
    recorder = search.Recorder(config, budget, uri, None, "sweeps", lines.append)
    last = {"epoch": 2, "AP": 0.25, "AP50": 0.5, "images_seen": 48}
    trial = SimpleNamespace(
        trial_id="1", config={"gamma": 2.00004, "alpha": 0.25}, last_result=last
    )
    recorder.on_trial_result(1, [trial], trial, last)
    recorder.on_trial_complete(1, [trial], trial)
    (record,) = search.read_records(uri)
    assert (record["status"], record["AP"], record["epochs"], record["sample"]) == (
        "stopped early",
        0.25,
        2,
        {"gamma": 2.0, "alpha": 0.25},
    )
    assert lines == [
        f"{record['trial']} epoch 2 of 4: AP 0.2500  AP50 0.5000",
        f"{record['trial']} stopped early after 2 epochs: AP 0.2500",
    ]
    trial.last_result = {**last, "epoch": 4}
    recorder.on_trial_complete(1, [trial], trial)
    assert search.read_records(uri)[0]["status"] == "done"


def test_a_trial_is_evaluated_when_it_may_be_stopped_and_finds_its_files_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = {"evaluate_every": 7, "evaluation_workers": 2}
    config = TrainConfig.model_validate(
        {**TINY, "data": {"train": "a", "val": "b"}, "pretrained": "w.pth", "training": training}
    )
    monkeypatch.chdir(tmp_path)
    trial = search.trial_config(
        config, SweepConfig(epochs=4, grace_epochs=2), str(tmp_path), {"gamma": 2.0, "alpha": 0.25}
    )
    assert (trial.training.evaluate_every, trial.training.evaluation) == (2, "between")
    assert (trial.pretrained, trial.data.train) == (str(tmp_path / "w.pth"), str(tmp_path / "a"))
