"""A training recorded on a real MLflow server, and what a person sees of it in a browser.

The network is a baseline, through all verbs as RetinaNet in tests/pipelines/test_train.py: two
workers -> checkpoint -> evaluation -> registry -> predictions. The other baseline differs in its
network alone, which tests/detector/test_baselines.py looks at.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cluster.compute.session import RayConfig
from cluster.runs import run_folder
from cluster.runs.config import TrainConfig
from cluster.runs.events import Event, StepsDone
from cluster.tracking import training_run
from cluster.tracking.config import TrackingConfig
from cluster.tracking.training_run import Tracker
from cluster.training import launch
from tests.support.browser import WINDOW, Browser
from tests.support.gates import Gate
from tests.support.mlflow_server import Server
from tests.support.trainings import LIMIT_S

pytestmark = pytest.mark.integration

TINY = {
    "model": {"architecture": "faster_rcnn", "backbone": "resnet18", "width": 64},
    "canvas": {"height": 96, "width": 128},
    # Untrained detectors are sure of nothing; without a threshold they find something.
    "decode": {"score_threshold": 0.0},
    "optimizer": {"name": "adamw", "learning_rate": 0.001},
    "training": {
        "epochs": 2,
        "batch_size": 4,
        "workers": 2,
        "cpus_per_worker": 0.5,
        "log_steps": 1,
        "evaluate_every": 2,
        "evaluation": "between",
    },
}


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    server.wait_until_healthy()
    yield server
    server.end(signal.SIGTERM)


@pytest.fixture(scope="module")
def outlived(
    mlflow_server: Server, small_sets: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """A training whose server was killed after its third step and came back, on the same store,
    when the training had noticed: its configuration, best evaluation, events, and what was printed
    on stderr.
    """
    from pipelines.training_run import train

    folder = tmp_path_factory.mktemp("run")
    gate = Gate(folder / "gate", steps=9)
    sections = {**TINY, "data": small_sets, "storage": str(folder)}
    config = TrainConfig.model_validate({**sections, "name": "outlived"})
    events: list[Event] = []
    hear = Tracker.__call__
    errors = io.StringIO()

    def watched(tracker: Tracker, event: Event) -> None:
        hear(tracker, event)
        events.append(event)
        steps = sum(isinstance(event, StepsDone) for event in events)
        if isinstance(event, StepsDone) and steps == 3:
            mlflow_server.end(signal.SIGKILL)
        if isinstance(event, StepsDone) and steps == 9:
            until = time.monotonic() + LIMIT_S
            while "is unavailable" not in errors.getvalue():
                assert time.monotonic() < until, errors.getvalue()
                time.sleep(0.1)
            mlflow_server.start()
            gate.open()

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(errors):
        patch.setattr(Tracker, "__call__", watched)
        gated = partial(launch.launch, callbacks=[gate.callback()])
        patch.setattr(launch, "launch", gated)
        # As long as the server takes to come back.
        patch.setattr(training_run, "FINISH_SECONDS", LIMIT_S)
        tracking = TrackingConfig(uri=mlflow_server.uri)
        best = train(config, ray=RayConfig(), tracking=tracking).best
    mlflow_server.wait_until_healthy()
    return {"config": config, "best": best, "events": events, "errors": errors.getvalue()}


@pytest.fixture(scope="module")
def recorded(
    mlflow_server: Server, outlived: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """The same run, evaluated and registered."""
    from pipelines import evaluate, register

    config, output = outlived["config"], str(tmp_path_factory.mktemp("evaluation"))
    options = {"data": config.data.val, "output": output, "overlays": 2, "workers": 1}
    evaluate.main(evaluate.EvaluateConfig(run=config.run_uri, **options))
    register.main(register.RegisterConfig(run=config.run_uri, name="seen-model"))
    return {
        "server": mlflow_server.uri,
        "evaluation": output,
        "run_id": run_folder.read_tracking(config.run_uri).run_id,
    }


def test_the_mlflow_run_is_complete_after_its_server_was_killed(
    mlflow_server: Server, outlived: dict[str, Any]
) -> None:
    """The training goes on, one run has every step."""
    client = mlflow.MlflowClient(mlflow_server.uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    (run,) = client.search_runs(experiments, filter_string="attributes.run_name = 'outlived'")
    assert run.info.status == "FINISHED"
    sent = [event for event in outlived["events"] if isinstance(event, StepsDone)]
    # 24 images an epoch in steps of 4, two epochs.
    assert [event.images_seen for event in sent] == list(range(4, 49, 4))
    for name in ("classification", "box", "images_per_second", "data_share"):
        history = client.get_metric_history(run.info.run_id, f"train/{name}")
        assert sorted((metric.step, metric.value) for metric in history) == [
            (event.images_seen, getattr(event, name)) for event in sent
        ]
    assert {"val/AP"} <= run.data.metrics.keys() and run.data.params["model.width"] == "64"
    assert any(
        name.startswith("system/") and name.endswith("/cpu_utilization_percentage")
        for name in run.data.metrics
    )
    # None at the end, that something is missing.
    (warning,) = re.findall("warning: .*", outlived["errors"])
    assert "is unavailable" in warning


def test_the_server_has_pictures_and_model(recorded: dict[str, str]) -> None:
    client = mlflow.MlflowClient(recorded["server"], registry_uri=recorded["server"])
    assert {a.path for a in client.list_artifacts(recorded["run_id"], "evaluation")} >= {
        "evaluation/precision_recall.png",
        "evaluation/metrics.json",
    }
    assert client.get_model_version_by_alias("seen-model", "champion").run_id == recorded["run_id"]


def test_a_baseline_has_one_ap_in_training_evaluation_and_predictions(
    outlived: dict[str, Any], recorded: dict[str, str], small_coco: Path, tmp_path: Path
) -> None:
    from pipelines import predict

    best = outlived["best"]
    assert best.images_seen == 48 and best.weights == "model"
    table = json.loads(Path(recorded["evaluation"], "metrics.json").read_text())
    assert table["images"] == 8 and table["AP"] == pytest.approx(best.ap, abs=1e-3)
    annotations = f"{small_coco}/annotations/instances_val.json"
    predict.main(
        predict.PredictConfig(
            model="models:/seen-model@champion",
            images=f"{small_coco}/images/val",
            annotations=annotations,
            output=str(tmp_path / "predictions"),
            overlays=1,
            tracking=TrackingConfig(uri=recorded["server"]),
            workers=1,
            cpus_per_worker=1.0,
        )
    )
    rows = pq.read_table(tmp_path / "predictions" / "predictions.parquet").to_pylist()
    assert len(rows) == 8 and {row["status"] for row in rows} == {"ok"}
    assert any(row["boxes"] for row in rows)
    truth = COCO(annotations)
    results = json.loads((tmp_path / "predictions" / "coco_results.json").read_text())
    scored = COCOeval(truth, truth.loadRes(results), "bbox")
    scored.evaluate()
    scored.accumulate()
    scored.summarize()
    assert scored.stats[0] == pytest.approx(table["AP"], abs=1e-6)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.mark.parametrize("name", ["run", "pictures", "model"])
def test_the_pages_of_mlflow_show_the_run(
    recorded: dict[str, str], browser: Browser, name: str, tmp_path: Path
) -> None:
    client = mlflow.MlflowClient(recorded["server"])
    experiment = client.get_run(recorded["run_id"]).info.experiment_id
    run = f"{recorded['server']}/#/experiments/{experiment}/runs/{recorded['run_id']}"
    address, expected = {
        "run": (
            f"{run}/model-metrics",
            ["outlived (train/classification)", "outlived (val/AP50)"],
        ),
        "pictures": (f"{run}/artifacts/evaluation/precision_recall.png", ["precision_recall.png"]),
        "model": (f"{recorded['server']}/#/models/seen-model", ["seen-model", "champion"]),
    }[name]
    picture = Path(os.environ.get("SCREENSHOTS", tmp_path)) / f"{name}.png"
    with browser.open(address) as page:
        page.wait_for(*expected)
        page.screenshot(picture)
    pixels = np.asarray(Image.open(picture).convert("L"))
    assert pixels.shape == (WINDOW[1], WINDOW[0])
    # A page that did not render is one colour.
    assert len(np.unique(pixels)) > 50
