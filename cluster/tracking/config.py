"""The MLflow server or store that records runs and models."""

from __future__ import annotations

import os
import re
import shlex
import sys

from pydantic import BaseModel, ConfigDict, Field, field_validator

from cluster.errors import UsageError
from cluster.tracking import embedded

EXPERIMENT = "retinaray"
MOST_OF_A_NAME = 200
NAME_RULE = "must be printable and must not begin or end with a blank"
_RELATIVE_FILE = re.compile(r"sqlite:///(?!/)(?=[^?])")


class TrackingConfig(BaseModel):
    """Where runs and models are recorded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: str | None = Field(
        default=None,
        description=(
            "MLflow server, http(s)://host:port; unset: MLFLOW_TRACKING_URI, else an SQLite file in"
            " the storage root, for one machine"
        ),
    )
    experiment: str | None = Field(
        default=None,
        min_length=1,
        max_length=MOST_OF_A_NAME,
        description=(
            "MLflow experiment that the runs belong to; unset: MLFLOW_EXPERIMENT_NAME, else"
            f" {EXPERIMENT}"
        ),
    )

    @field_validator("experiment")
    @classmethod
    def _check_experiment(cls, name: str | None) -> str | None:
        if name is not None and not _is_clear(name):
            raise ValueError(f"{name!r} {NAME_RULE}, such as cells")
        return name

    @field_validator("uri")
    @classmethod
    def _check_scheme(cls, uri: str | None) -> str | None:
        if uri is None:
            return None
        if (wrong := _wrong(uri)) is not None:
            raise ValueError(wrong)
        return uri.rstrip("/")


def _is_clear(name: str) -> bool:
    return name.isprintable() and name == name.strip()


def _wrong(uri: str) -> str | None:
    """What is wrong with the URI of a store. It is printed and stored beside checkpoints, so it has
    no secrets; nor has this text.
    """
    # A password may have a slash, and a token may stand behind the path.
    if re.match(r"https?:.*[@?]|[^/]*//[^/]*@", uri, re.IGNORECASE):
        return (
            "must not carry credentials or a query; give them as MLFLOW_TRACKING_USERNAME and"
            " MLFLOW_TRACKING_PASSWORD, or as MLFLOW_TRACKING_TOKEN"
        )
    if uri != uri.strip() or not re.match(r"https?://[^/]+|sqlite(\+pysqlite)?:////.", uri):
        return (
            f"must be http(s)://host:port or sqlite:////path.db, is {uri!r}; leave it out for"
            " an SQLite file in the storage root"
        )
    return None


def local_root(storage: str) -> str:
    """SQLite needs a local disk: the storage root, or ./runs when that is in a bucket."""
    # Imported here: it loads pyarrow, which `--help` does not need.
    from cluster.storage import uris

    root = uris.absolute(storage)
    return os.path.abspath("runs") if uris.is_remote(root) else root


def tracking_uri(config_uri: str | None, storage: str) -> str:
    """The one store of a command, as MLflow takes it: the configured server, else that of
    MLFLOW_TRACKING_URI, else the SQLite file of this storage root. `UsageError` where the
    environment names another place for runs or models too.
    """
    uri = given_uri(config_uri)
    if uri is None:
        from cluster.storage.uris import refuse_job_folder

        root = local_root(storage)
        # In a job both are one: the folder that goes with it.
        refuse_job_folder("--tracking.uri is not given, and the file of MLflow below", root)
        uri = embedded.uri_of(f"{root}/{embedded.FILE}")
    refuse_second_store(uri)
    return uri


def given_uri(config_uri: str | None) -> str | None:
    """The configured store, else that of MLFLOW_TRACKING_URI; None for the SQLite file of the
    storage root.
    """
    if config_uri is not None:
        return config_uri
    uri = _absolute(os.environ.get("MLFLOW_TRACKING_URI", ""))
    if not uri:
        return None
    if (wrong := _wrong(uri)) is not None:
        raise UsageError(f"MLFLOW_TRACKING_URI {wrong}")
    return uri.rstrip("/")


def _absolute(uri: str) -> str:
    """MLflow's own commands take the URI of an SQLite file relative to the working directory."""
    path = embedded.path_of(uri) if _RELATIVE_FILE.match(uri) else None
    return uri if path is None else embedded.uri_of(os.path.abspath(path))


def refuse_second_store(uri: str) -> None:
    """`UsageError` where the environment names another registry than the store at `uri`, or a run
    or an experiment that a command of ours would pass over without a word.
    """
    registry = _absolute(os.environ.get("MLFLOW_REGISTRY_URI", ""))
    if registry and not embedded.same(registry, uri):
        raise UsageError(
            f"MLFLOW_REGISTRY_URI names another store than {uri}, but runs and models are kept in"
            " one; unset it, or give that store as --tracking.uri"
        )
    for name, remedy in (
        ("MLFLOW_RUN_ID", "every training has an MLflow run of its own; unset it"),
        ("MLFLOW_EXPERIMENT_ID", "give the name, as --tracking.experiment, and unset it"),
    ):
        if os.environ.get(name):
            raise UsageError(f"{name} {os.environ[name]!r} would not be heeded: {remedy}")


def experiment_name(config_name: str | None) -> str:
    """The configured experiment, else that of MLFLOW_EXPERIMENT_NAME, else `EXPERIMENT`.
    `UsageError` where MLflow would refuse the name, or nobody could see it.
    """
    name = config_name or os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    if not _is_clear(name) or len(name) > MOST_OF_A_NAME:
        raise UsageError(
            f"MLFLOW_EXPERIMENT_NAME {name[:60]!r}: {NAME_RULE}, and may have"
            f" {MOST_OF_A_NAME} characters at most; correct the variable or unset it"
        )
    return name


def ui_command(uri: str) -> str:
    """The command to type, or the address to open, to see the runs."""
    if embedded.path_of(uri) is None:
        return uri
    mlflow = os.path.relpath(os.path.join(os.path.dirname(sys.executable), "mlflow"))
    mlflow = os.path.abspath(mlflow) if mlflow.startswith("..") else mlflow
    # The job backend doubles the server's start time and memory, and viewing runs does not use it.
    return (
        f"MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false {shlex.quote(mlflow)} ui --backend-store-uri"
        f" {shlex.quote(uri)}"
    )
