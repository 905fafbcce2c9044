"""The MLflow server or store that records runs and models."""

from __future__ import annotations

import os
import re
import shlex
import sys

from pydantic import BaseModel, ConfigDict, Field, field_validator


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

    @field_validator("experiment")
    @classmethod
    def _check_experiment(cls, name: str) -> str:
        if not name.isprintable() or name != name.strip():
            raise ValueError(
                f"{name!r} must be printable and must not begin or end with a blank, such as cells"
            )
        return name

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
