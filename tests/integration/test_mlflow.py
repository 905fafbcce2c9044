"""A training recorded on a real MLflow server, and what a person sees of it in a browser."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cluster.compute.session import RayConfig
from cluster.runs import run_folder
from cluster.runs.config import TrainConfig
from cluster.tracking.config import TrackingConfig
from cluster.tracking.training_run import Tracker

pytestmark = pytest.mark.integration

TINY = {
    "model": {"backbone": "resnet18", "width": 64},
    "canvas": {"height": 96, "width": 128},
    "training": {
        "epochs": 2,
        "batch_size": 4,
        "workers": 2,
        "cpus_per_worker": 0.5,
        "log_steps": 1,
    },
}


class Server:
    """`mlflow server` on SQLite with proxied artifacts, in a process group of its own."""

    def __init__(self, folder: Path):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = listener.getsockname()[1]
        self.folder, self.uri = folder, f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        command = [
            str(Path(sys.executable).parent / "mlflow"),
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--workers",
            "1",
        ]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        command += ["--artifacts-destination", f"{self.folder}/artifacts", "--serve-artifacts"]
        quiet = {
            **os.environ,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        with open(self.folder / "server.log", "a") as log:
            self.process = subprocess.Popen(
                command, env=quiet, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def end(self, how: signal.Signals) -> None:
        os.killpg(self.process.pid, how)
        self.process.wait(timeout=60)

    def healthy(self) -> bool:
        try:
            with urllib.request.urlopen(self.uri + "/health", timeout=5) as answer:
                return answer.read() == b"OK"
        except (urllib.error.URLError, OSError):
            return False

    def wait_until_healthy(self) -> None:
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline and self.process.poll() is None:
            if self.healthy():
                return
            time.sleep(1)
        raise AssertionError(
            f"the server did not come up: {(self.folder / 'server.log').read_text()[-2000:]}"
        )


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    server.wait_until_healthy()
    yield server
    server.end(signal.SIGTERM)


@pytest.fixture(scope="module")
def server(mlflow_server: Server) -> str:
    return mlflow_server.uri


@pytest.fixture(scope="module")
def data(
    ray_cluster: str, small_coco: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """The small set's two splits as shard sets."""
    from pipelines import prepare

    folder = tmp_path_factory.mktemp("run")
    for split in ("train", "val"):
        annotations = f"{small_coco}/annotations/instances_{split}.json"
        prepare.main(
            prepare.PrepareConfig(
                annotations=annotations,
                images=f"{small_coco}/images/{split}",
                output=f"{folder}/{split}",
            )
        )
    return {"train": f"{folder}/train", "val": f"{folder}/val"}


def configured(data: dict[str, str], name: str, **training: int) -> TrainConfig:
    sections = {**TINY, "training": {**TINY["training"], **training}}
    return TrainConfig.model_validate(
        {**sections, "data": data, "storage": os.path.dirname(data["train"]), "name": name}
    )


@pytest.fixture(scope="module")
def recorded(server: str, data: dict[str, str]) -> dict[str, str]:
    """A run on the server: trained, evaluated, registered."""
    from pipelines import evaluate, register
    from pipelines.train import train

    config = configured(data, "seen")
    train(config, ray=RayConfig(), tracking=TrackingConfig(uri=server))
    evaluate.main(
        evaluate.EvaluateConfig(run=config.run_uri, data=data["val"], overlays=2, workers=1)
    )
    register.main(register.RegisterConfig(run=config.run_uri, name="seen-model"))
    return {"server": server, **run_folder.read(config.run_uri, run_folder.TRACKING)}


def test_a_killed_server_misses_nothing(
    mlflow_server: Server,
    data: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """SIGKILL of the server after the third step, a new one on the same store six steps later: the
    training goes on, one run has every step.
    """
    import mlflow

    from pipelines.train import train

    events = []
    told = Tracker.__call__

    def watched(tracker: Tracker, event: dict[str, Any]) -> None:
        told(tracker, event)
        events.append(event)
        steps = sum(event["kind"] == "step" for event in events)
        if event["kind"] == "step" and steps == 3:
            mlflow_server.end(signal.SIGKILL)
        if event["kind"] == "step" and steps == 9:
            assert not mlflow_server.healthy()
            mlflow_server.start()

    monkeypatch.setattr(Tracker, "__call__", watched)
    # 24 images in steps of 4: six an epoch.
    config = configured(data, "outlived", epochs=3, evaluate_every=3)
    try:
        train(config, ray=RayConfig(), tracking=TrackingConfig(uri=mlflow_server.uri))
    finally:
        mlflow_server.wait_until_healthy()
    client = mlflow.MlflowClient(mlflow_server.uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    (run,) = client.search_runs(experiments, filter_string="attributes.run_name = 'outlived'")
    assert run.info.status == "FINISHED"
    steps = [event["images_seen"] for event in events if event["kind"] == "step"]
    assert steps == list(range(4, 73, 4))
    for name in ("classification", "box", "images_per_second", "data_share"):
        history = client.get_metric_history(run.info.run_id, f"train/{name}")
        sent = [event[name] for event in events if event["kind"] == "step"]
        assert sorted((metric.step, metric.value) for metric in history) == list(
            zip(steps, sent, strict=True)
        )
    assert {"val/AP"} <= run.data.metrics.keys() and run.data.params["model.width"] == "64"
    assert any(
        name.startswith("system/") and name.endswith("/cpu_utilization_percentage")
        for name in run.data.metrics
    )
    # None at the end, that something is missing.
    (warning,) = re.findall("warning: .*", capsys.readouterr().err)
    assert "takes nothing now" in warning


def test_the_server_has_metrics_pictures_and_model(recorded: dict[str, str]) -> None:
    import mlflow

    client = mlflow.MlflowClient(recorded["server"], registry_uri=recorded["server"])
    run = client.get_run(recorded["run_id"])
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(recorded["run_id"], "train/classification")
    # 24 images an epoch in steps of 4, two epochs: after 4, 8, ..., 48 images.
    assert [m.step for m in history] == list(range(4, 49, 4))
    assert {a.path for a in client.list_artifacts(recorded["run_id"], "evaluation")} >= {
        "evaluation/precision_recall.png",
        "evaluation/metrics.json",
    }
    assert client.get_model_version_by_alias("seen-model", "champion").run_id == recorded["run_id"]


@pytest.mark.parametrize("page", ["run", "pictures", "model"])
def test_the_pages_show_it(recorded: dict[str, str], page: str, tmp_path: Path) -> None:
    browser = shutil.which("chromium")
    assert browser, "these tests need Chromium: apt-get install chromium"
    import mlflow

    experiment = (
        mlflow.MlflowClient(recorded["server"]).get_run(recorded["run_id"]).info.experiment_id
    )
    run = f"{recorded['server']}/#/experiments/{experiment}/runs/{recorded['run_id']}"
    address, expected = {
        "run": (f"{run}/model-metrics", ["seen (train/classification)", "seen (val/AP50)"]),
        "pictures": (f"{run}/artifacts/evaluation/precision_recall.png", ["precision_recall.png"]),
        "model": (f"{recorded['server']}/#/models/seen-model", ["seen-model", "champion"]),
    }[page]
    picture = Path(os.environ.get("SCREENSHOTS", tmp_path)) / f"{page}.png"
    options = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
    ]
    options += [f"--user-data-dir={tmp_path}/profile", "--virtual-time-budget=60000"]
    subprocess.run(
        [browser, *options, "--window-size=1500,1100", f"--screenshot={picture}", address],
        capture_output=True,
        timeout=300,
    )
    # MLflow draws the charts that are in sight, so this window is high enough for all of them. On a
    # busy machine the page's own requests may outlast the browser's patience: then it is opened
    # again.
    for _ in range(4):
        dumped = subprocess.run(
            [browser, *options, "--window-size=1500,5000", "--dump-dom", address],
            capture_output=True,
            text=True,
            timeout=300,
        )
        words = re.sub(r"<[^>]*>", " ", dumped.stdout)
        missing = [text for text in expected if text not in words]
        if not missing:
            break
    assert not missing, words
    pixels = np.asarray(Image.open(picture).convert("L"))
    assert pixels.shape == (1100, 1500)
    # A page that did not render is one colour.
    assert len(np.unique(pixels)) > 50
