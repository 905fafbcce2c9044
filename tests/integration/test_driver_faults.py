"""Two drivers of one run, and a killed driver, as commands that a user types."""

from __future__ import annotations

import re
from pathlib import Path

import mlflow
import pytest

from cluster.runs import run_folder
from tests.support.trainings import (
    ENDLESS,
    Typed,
    configured,
    last_weights,
    train_flags,
)

pytestmark = pytest.mark.integration


def test_a_second_driver_of_the_same_run_is_refused(
    small_sets: dict[str, str], ray_cluster: str, tmp_path: Path
) -> None:
    flags = train_flags(small_sets, tmp_path, "held", tmp_path, **ENDLESS)
    flags += ["--ray.address", ray_cluster]
    patch = (
        f"from tests.support import gates; gates.gate_launches({str(tmp_path / 'gate')!r}, steps=4)"
    )
    with Typed(flags, patch=patch, RAY_AUTH_MODE="disabled") as first:
        first.until("img/s")
        with Typed(flags, RAY_AUTH_MODE="disabled") as second:
            assert second.ends() == 2, second.text
        assert re.search(
            rf"error: .*runs/held: \S+ \(pid {first.process.pid}\) has trained it since .* UTC;"
            r" wait for its end",
            second.text,
        )
        assert first.process.poll() is None
        first.interrupt()
    # Its end frees the run.
    assert run_folder.read(f"{tmp_path}/runs/held", "driver.json") is None


def test_no_image_is_lost_when_the_driver_is_killed(
    small_sets: dict[str, str], undisturbed: dict[str, bytes], ray_cluster: str, tmp_path: Path
) -> None:
    """The same command continues the run and its MLflow run. At the end MLflow has every step, also
    those that the killed driver had received and not sent.
    """
    flags = train_flags(small_sets, tmp_path, "killed", tmp_path)
    flags += ["--ray.address", ray_cluster]
    patch = (
        f"from tests.support import gates; gates.gate_launches({str(tmp_path / 'gate')!r}, steps=5)"
    )
    patch += "; from cluster.tracking import run; run.SEND_EVERY_S = 1e6"
    with Typed(flags, patch=patch, RAY_AUTH_MODE="disabled") as driver:
        driver.until(" checkpoint ", times=2)
        driver.process.kill()
    with Typed(flags, RAY_AUTH_MODE="disabled") as driver:
        assert driver.ends() == 0, driver.text
    assert "continuing from" in driver.text
    config = configured(small_sets, tmp_path, "killed")
    assert last_weights(config) == undisturbed

    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs(
        [experiment.experiment_id for experiment in client.search_experiments()]
    )
    assert run.info.status == "FINISHED"
    assert run.info.run_id == run_folder.read_tracking(config.run_uri).run_id
    history = client.get_metric_history(run.info.run_id, "train/box")
    assert {metric.step for metric in history} == set(range(4, 49, 4))
