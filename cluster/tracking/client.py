"""MLflow runs: one per training run, also across retries and resubmissions; a tracking failure
never stops training.

`import mlflow` costs 4 s and 180 MB, so it happens inside functions only; the training workers
never come here.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cluster.errors import PlainError

if TYPE_CHECKING:
    from mlflow import MlflowClient


# Answers that stay the same however often the call is repeated; everything else may pass.
REFUSED = (
    "INVALID_PARAMETER_VALUE",
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
    "PERMISSION_DENIED",
)
MLFLOW_DEFAULTS = {
    # MLflow's own patience with a dead server is 7 tries and 120 s each.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # Otherwise a uv.lock in the working directory replaces the requirements that we give.
    "MLFLOW_UV_AUTO_DETECT": "false",
}


def import_mlflow() -> Any:
    """`import mlflow`, patient for seconds and not minutes, and quiet: its INFO lines and SQL
    tracebacks bury our one plain line.
    """
    for name, value in MLFLOW_DEFAULTS.items():
        os.environ.setdefault(name, value)
    import mlflow

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("mlflow.store.db.utils", "mlflow.utils.environment"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return mlflow


@contextmanager
def plain_mlflow_errors(uri: str) -> Iterator[None]:
    """A store that fails before anything was spent ends in one plain line."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise PlainError(
            f"MLflow at {uri} failed: {brief(error)}; check the store and run the command again"
        ) from error


def brief(error: BaseException) -> str:
    """The first line of an MLflow error; with SQLAlchemy that is the one which says what happened."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def connect(uri: str) -> MlflowClient:
    """A client of the store; a new SQLite file is created (3 s)."""
    import_mlflow()
    from mlflow import MlflowClient

    with plain_mlflow_errors(uri):
        return MlflowClient(tracking_uri=uri, registry_uri=uri)
