"""The MLflow server or store that records runs and models, and its preflight check, which does not
import MLflow.
"""

from __future__ import annotations

import http.client
import os
import re
import shlex
import sys
import urllib.error
import urllib.request

from pydantic import BaseModel, ConfigDict, Field, field_validator

from cluster.errors import PlainError

HEALTH_TIMEOUT_S = 4.0


class TrackingConfig(BaseModel):
    """Where runs and models are recorded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: str | None = Field(
        default=None,
        description=(
            "MLflow server, http(s)://host:port; unset: an SQLite file in the storage root, for one"
            " machine"
        ),
    )
    experiment: str = Field(
        default="retinaray",
        min_length=1,
        max_length=200,
        description="MLflow experiment that the runs belong to",
    )

    @field_validator("uri")
    @classmethod
    def _check_scheme(cls, uri: str | None) -> str | None:
        if uri is None:
            return None
        if re.match(r"[^/]*//[^/]*@", uri):
            # The URI is printed and stored beside checkpoints; this message does not repeat it
            # either.
            raise ValueError(
                "must not carry credentials; give them as MLFLOW_TRACKING_USERNAME and"
                " MLFLOW_TRACKING_PASSWORD, or as MLFLOW_TRACKING_TOKEN"
            )
        if not re.match(r"https?://[^/]+|sqlite:////.", uri):
            raise ValueError(
                f"must be http(s)://host:port or sqlite:////path.db, is {uri!r}; leave it out for"
                " an SQLite file in the storage root"
            )
        return uri.rstrip("/")


def local_root(storage: str) -> str:
    """SQLite needs a local disk: the storage root, or ./runs when that is in a bucket."""
    # Imported here: it loads pyarrow, which `--help` does not need.
    from cluster.storage import uris

    return os.path.abspath("runs" if uris.is_remote(storage) else storage)


def tracking_uri(config_uri: str | None, storage: str) -> str:
    """The URI that MLflow understands: the configured server, or the SQLite file of this storage
    root.
    """
    return config_uri or f"sqlite:///{local_root(storage)}/mlflow.db"


def ui_command(uri: str) -> str:
    """The command to type, or the address to open, to see the runs."""
    if not uri.startswith("sqlite:"):
        return uri
    mlflow = os.path.relpath(os.path.join(os.path.dirname(sys.executable), "mlflow"))
    mlflow = os.path.abspath(mlflow) if mlflow.startswith("..") else mlflow
    # The job backend doubles the server's start time and memory, and viewing runs does not use it.
    return (
        f"MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false {shlex.quote(mlflow)} ui --backend-store-uri"
        f" {shlex.quote(uri)}"
    )


def check_server(uri: str) -> None:
    """Preflight: an MLflow server answers at `uri`, or its SQLite file is usable. Takes about four
    seconds at most.

    `PlainError` when nothing answers, the server is unhealthy, or it is not MLflow. A server that
    asks for credentials passes.
    """
    if uri.startswith("sqlite:"):
        return _check_sqlite(uri.removeprefix("sqlite:///"))
    remedy = "start the server, correct --tracking.uri, or leave it out for an SQLite file"
    try:
        with urllib.request.urlopen(uri + "/health", timeout=HEALTH_TIMEOUT_S) as answer:
            healthy = answer.read(16).strip() == b"OK"
    except urllib.error.HTTPError as error:
        error.close()
        if error.code >= 500:
            raise PlainError(
                f"the MLflow server at {uri} is unhealthy: /health returned {error.code}; {remedy}"
            ) from error
        healthy = error.code in (401, 403)
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise PlainError(f"no MLflow server answers at {uri} ({reason}); {remedy}") from error
    if not healthy:
        raise PlainError(
            f"the server at {uri} is not an MLflow server (its /health did not return OK); {remedy}"
        )


def _check_sqlite(path: str) -> None:
    """MLflow itself retries a file that is not a database for 11 s."""
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "rb") as file:
            head = file.read(16)
    except FileNotFoundError:
        head = b""
    except OSError as error:
        raise PlainError(
            f"the MLflow store {path} cannot be used ({error.strerror}); check its folder or give"
            " another storage root"
        ) from error
    if head and head != b"SQLite format 3\0":
        raise PlainError(
            f"{path} is not an SQLite file, so it cannot be the MLflow store; move it away or give"
            " another storage root"
        )
    if not os.access(path if head else os.path.dirname(path), os.W_OK):
        raise PlainError(
            f"the MLflow store {path} is not writable for this user; change its permissions or give"
            " another storage root"
        )
