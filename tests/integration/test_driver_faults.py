"""Two drivers of one run, and a driver that is lost with its whole cluster, as commands that a user
types.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest

from cluster.runs import run_folder
from tests.support.ray_nodes import Nodes
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


def test_a_second_driver_is_refused_and_no_image_is_lost_when_the_first_dies_with_its_cluster(
    small_sets: dict[str, str],
    undisturbed_alone: dict[str, bytes],
    tmp_path: Path,
) -> None:
    """While a driver trains, a second one of the same run is refused. Then driver, head and node
    are killed at once. On a new cluster the same command, typed as a script in another folder,
    whose driver sends the code to the cluster, continues the run and its MLflow run. At the end
    MLflow has every step, also those that the killed driver had received and not sent.
    """
    flags = train_flags(small_sets, tmp_path, "killed", tmp_path, **ALONE)
    with Nodes(environment(RAY_AUTH_MODE="disabled")) as cluster:
        cluster.add("only", cpus=4)
        _train_until_all_is_lost([*flags, "--ray.address", cluster.address], cluster, tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with Nodes(environment(RAY_AUTH_MODE="disabled")) as cluster:
        cluster.add("only", cpus=4)
        script = str(ROOT / "pipelines" / "train.py")
        done = subprocess.run(
            [sys.executable, script, *flags, "--ray.address", cluster.address],
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


def _train_until_all_is_lost(flags: list[str], cluster: Nodes, folder: Path) -> None:
    """Train up to the second checkpoint, be refused a second time meanwhile, and lose driver, head
    and node.
    """
    gate = str(folder / "gate")
    patch = f"from tests.support import gates; gates.gate_launches({gate!r}, steps=5)"
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
        cluster.kill_all(cluster.processes)
        first.process.kill()
