"""An MLflow store in an SQLite file, and a package logged there."""

from __future__ import annotations

import shutil

import pytest

from cluster.runs.package_files import write_thresholds
from cluster.tracking.config import tracking_uri
from cluster.tracking.logged_package import log_package
from cluster.tracking.run import open_run
from detector.operating_points import OperatingPoint, Thresholds


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("storage"))


@pytest.fixture(scope="session")
def tracking(root: str) -> str:
    return tracking_uri(None, root)


THRESHOLD = 0.50019
"""Of the first class; the second has none."""


@pytest.fixture(scope="session")
def logged(
    root: str, tracking: str, package: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, str]:
    """(URI of the logged model, id of its MLflow run); a package with thresholds."""
    folder = str(tmp_path_factory.mktemp("with-thresholds") / "package")
    shutil.copytree(package, folder)
    point = OperatingPoint(THRESHOLD, 0.5, 0.5, 0.5)
    write_thresholds(folder, Thresholds(None, 0.5, {"cell": point, "platelet": None}))
    run = open_run(tracking, experiment="tests", name="trained")
    run.log_metrics({"AP": 0.5}, 300)
    model_uri = log_package(run, folder, step=300)
    run.finish("FINISHED")
    return model_uri, run.run_id
