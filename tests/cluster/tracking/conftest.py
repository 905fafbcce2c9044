"""An MLflow store in an SQLite file, and a package logged there."""

from __future__ import annotations

import pytest

from cluster.tracking.config import tracking_uri
from cluster.tracking.logged_package import log_package
from cluster.tracking.run import open_run


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("storage"))


@pytest.fixture(scope="session")
def tracking(root: str) -> str:
    return tracking_uri(None, root)


@pytest.fixture(scope="session")
def logged(root: str, tracking: str, package: str) -> tuple[str, str]:
    """(URI of the logged model, id of its MLflow run)"""
    run = open_run(tracking, experiment="tests", name="trained")
    run.log_metrics({"AP": 0.5}, 300)
    model_uri = log_package(run, package, step=300)
    run.finish("FINISHED")
    return model_uri, run.run_id
