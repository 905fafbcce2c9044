"""Values of MLflow's variables that it cannot use are refused before it is imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cluster.errors import UsageError
from cluster.tracking.client import import_mlflow
from cluster.tracking.environment import check_variables
from cluster.tracking.preflight import check_server


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("MLFLOW_SQLALCHEMYSTORE_POOL_SIZE", "abc", "must be a whole number"),
        ("MLFLOW_HTTP_REQUEST_TIMEOUT", "abc", "must be a whole number"),
        ("MLFLOW_HTTP_REQUEST_TIMEOUT", "", "must be a whole number"),
        ("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "much", "must be a number"),
        ("MLFLOW_TRACKING_INSECURE_TLS", "yes", "must be true or false"),
        ("MLFLOW_HTTP_REQUEST_TIMEOUT", "0", "must be 1 or more"),
        ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "-1", "must be 0 or more"),
        ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "11", "must be 10 or less"),
        ("MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "abc", "must be one of AssertionPool, .*StaticPool"),
    ],
)
def test_a_value_that_mlflow_cannot_use_is_one_line(
    name: str, value: str, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=f"^{name} '{value}': {rule}; correct it or unset it$"):
        check_variables()
    # Every verb asks before it uses a machine, and MLflow is never imported without.
    with pytest.raises(UsageError, match=f"^{name} "):
        check_server("http://127.0.0.1:9")
    with pytest.raises(UsageError, match=f"^{name} "):
        import_mlflow()


def test_values_that_mlflow_takes_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("MLFLOW_SQLALCHEMYSTORE_POOL_SIZE", "5"),
        ("MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW", "-1"),
        ("MLFLOW_SQLALCHEMYSTORE_POOLCLASS", ""),
        ("MLFLOW_HTTP_REQUEST_TIMEOUT", "20"),
        ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "10"),
        ("MLFLOW_TRACKING_INSECURE_TLS", "True"),
        ("MLFLOW_TRACKING_TOKEN", "abc"),
        ("MLFLOW_OF_A_PLUGIN", "abc"),
    ):
        monkeypatch.setenv(name, value)
    check_variables()


def test_the_check_does_not_import_mlflow() -> None:
    script = (
        "import os, sys; os.environ['MLFLOW_TRACKING_TOKEN'] = 'a';"
        " from cluster.tracking.environment import _known, check_variables; check_variables();"
        " assert 'MLFLOW_TRACKING_TOKEN' in _known() and 'mlflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
