"""The connection to MLflow, with short timeouts and plain errors.

`import mlflow` costs 4 s and 180 MB, so it happens inside functions only; the training workers
never call them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import ModuleType
from typing import TYPE_CHECKING

from cluster.errors import UsageError
from cluster.storage import aws
from cluster.tracking import embedded, schema
from cluster.tracking.environment import check_variables

if TYPE_CHECKING:
    from mlflow import MlflowClient


UPLOAD_TIMEOUT_S = 600
# Error codes that a retry cannot change; every other error may be temporary.
PERMANENT = (
    "INVALID_PARAMETER_VALUE",
    # A database refuses a value, such as a text with a NUL in PostgreSQL.
    "BAD_REQUEST",
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
    "PERMISSION_DENIED",
)
_MLFLOW_DEFAULTS = {
    # MLflow's own defaults for a server that does not answer are 7 retries of 120 s each.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # Otherwise a uv.lock in the working directory replaces the requirements that we give.
    "MLFLOW_UV_AUTO_DETECT": "false",
}


def import_mlflow() -> ModuleType:
    """`import mlflow` with timeouts of seconds and without its INFO lines and SQL tracebacks, which
    would hide our one-line errors. `UsageError` where a variable has a value that it cannot use.
    """
    check_variables()
    for name, value in _MLFLOW_DEFAULTS.items():
        os.environ.setdefault(name, value)
    # MLflow reads and writes artifacts in S3 with boto3, which reads the environment otherwise.
    aws.surroundings()
    import mlflow

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("mlflow.store.db.utils", "mlflow.utils.environment"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return mlflow


@contextmanager
def plain_mlflow_errors(uri: str) -> Iterator[None]:
    """An error of the store becomes a `PlainError`; for calls before any machine time is spent."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except ModuleNotFoundError as error:
        # Such as the signatures that MLFLOW_TRACKING_AWS_SIGV4 asks for.
        raise UsageError(
            f"MLflow at {uri} needs the Python package {error.name}, because the environment asks"
            " for it; install it, or unset the MLFLOW_... variable"
        ) from error
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise schema.failed(uri, first_line(error)) from error


def first_line(error: BaseException) -> str:
    """Of an MLflow error; SQLAlchemy's other lines do not say what happened."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def connect(uri: str, *, creates: bool = False) -> MlflowClient:
    """A client of the store. With `creates`, a new SQLite file is created (3 s); else `UsageError`
    where there is none.
    """
    import_mlflow()
    from mlflow import MlflowClient

    path = embedded.path_of(uri)
    first = nullcontext() if path is None else embedded.opening(path, creates=creates)
    with plain_mlflow_errors(uri), first:
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def connected(uri: str) -> Iterator[MlflowClient]:
    """A client of `uri`, with MLflow's process-wide tracking URI set to it for as long: logging and
    downloading a model has no parameter for it. Errors are plain, see `plain_mlflow_errors`.
    """
    mlflow = import_mlflow()
    client = connect(uri)
    # mlflow.set_tracking_uri writes this variable too; the caller's environment must not change,
    # Ray inherits it.
    before = {
        name: os.environ.get(name)
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_HTTP_REQUEST_TIMEOUT")
    }
    # The server answers an upload when it has stored the whole file.
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(UPLOAD_TIMEOUT_S)
    mlflow.set_tracking_uri(uri)
    try:
        with plain_mlflow_errors(uri):
            yield client
    finally:
        mlflow.set_tracking_uri(before["MLFLOW_TRACKING_URI"])
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
