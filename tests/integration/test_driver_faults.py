"""Two drivers of one run, and a killed driver, as commands that a user types."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest

from cluster.runs import run_folder
from tests.support.trainings import (
    ALONE,
    ROOT,
    Typed,
    configured,
    environment,
    last_weights,
    train_flags,
)

pytestmark = pytest.mark.integration


def test_a_second_driver_is_refused_and_no_image_is_lost_when_the_first_is_killed(
    small_sets: dict[str, str],
    undisturbed_alone: dict[str, bytes],
    ray_cluster: str,
    tmp_path: Path,
) -> None:
    """While a driver trains, a second one of the same run is refused. Killed, it is followed by the
    same command, typed as a script in another folder, whose driver sends the code to the cluster:
    it continues the run and its MLflow run. At the end MLflow has every step, also those that the
    killed driver had received and not sent.
    """
    flags = train_flags(small_sets, tmp_path, "killed", tmp_path, **ALONE)
    flags += ["--ray.address", ray_cluster]
    patch = (
        f"from tests.support import gates; gates.gate_launches({str(tmp_path / 'gate')!r}, steps=5)"
    )
    patch += "; from cluster.tracking import run; run.SEND_EVERY_S = 1e6"
    with Typed(flags, patch=patch, RAY_AUTH_MODE="disabled") as first:
        first.until(" checkpoint ", times=2)
        with Typed(flags, RAY_AUTH_MODE="disabled") as second:
            assert second.ends() == 2, second.text
        assert re.search(
            rf"error: .*runs/killed: \S+ \(pid {first.process.pid}\) has trained it since .* UTC;"
            r" wait for its end",
            second.text,
        )
        assert first.process.poll() is None
        first.process.kill()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = subprocess.run(
        [sys.executable, str(ROOT / "pipelines" / "train.py"), *flags],
        cwd=elsewhere,
        env=environment(RAY_AUTH_MODE="disabled"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "continuing from" in done.stdout and "best     AP" in done.stdout
    config = configured(small_sets, tmp_path, "killed", **ALONE)
    assert run_folder.read_finished(config.run_uri) == run_folder.Finished(48, 2)
    assert last_weights(config) == undisturbed_alone

    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs(
        [experiment.experiment_id for experiment in client.search_experiments()]
    )
    assert run.info.status == "FINISHED"
    assert run.info.run_id == run_folder.read_tracking(config.run_uri).run_id
    history = client.get_metric_history(run.info.run_id, "train/box")
    assert {metric.step for metric in history} == set(range(4, 49, 4))
