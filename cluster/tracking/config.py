"""The MLflow server or store that records runs and models, and its preflight check, which does not
import MLflow.
"""

from __future__ import annotations

import http.client
import os
import re
import shlex
import ssl
import sys
import urllib.error
import urllib.request

from pydantic import BaseModel, ConfigDict, Field, field_validator

from cluster.errors import PlainError, UsageError
from cluster.tracking import embedded

HEALTH_TIMEOUT_S = 4.0
EXPERIMENT = "retinaray"
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
        max_length=200,
        description=(
            "MLflow experiment that the runs belong to; unset: MLFLOW_EXPERIMENT_NAME, else"
            f" {EXPERIMENT}"
        ),
    )

    @field_validator("uri")
    @classmethod
    def _check_scheme(cls, uri: str | None) -> str | None:
        if uri is None:
            return None
        if (wrong := _wrong(uri)) is not None:
            raise ValueError(wrong)
        return uri.rstrip("/")


def _wrong(uri: str) -> str | None:
    """What is wrong with the URI of a store. It is printed and stored beside checkpoints, so it has
    no secrets; nor has this text.
    """
    if re.match(r"[^/]*//[^/]*@", uri):
        return (
            "must not carry credentials; give them as MLFLOW_TRACKING_USERNAME and"
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
    uri = given_uri(config_uri) or embedded.uri_of(f"{local_root(storage)}/{embedded.FILE}")
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
    """The configured experiment, else that of MLFLOW_EXPERIMENT_NAME, else `EXPERIMENT`."""
    return config_name or os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT


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


def check_server(uri: str, *, must_exist: bool = False) -> None:
    """Preflight: an MLflow server answers at `uri`, or its SQLite file is usable. Takes about four
    seconds at most. With `must_exist`, for what only reads, `UsageError` where there is no such
    file.

    `PlainError` when nothing answers, the server is unhealthy, or it is not MLflow. A server that
    asks for credentials passes.
    """
    if (path := embedded.path_of(uri)) is not None:
        if must_exist:
            embedded.refuse_missing(path)
        return _check_sqlite(path)
    remedy = "start the server, correct --tracking.uri, or leave it out for an SQLite file"
    try:
        with urllib.request.urlopen(
            uri + "/health", timeout=HEALTH_TIMEOUT_S, context=_certificates()
        ) as answer:
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


def _certificates() -> ssl.SSLContext:
    """Whom MLflow trusts: its client reads these variables in this order."""
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1"):
        return ssl._create_unverified_context()
    names = ("MLFLOW_TRACKING_SERVER_CERT_PATH", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
    name = next((name for name in names if os.environ.get(name)), None)
    if name is None:
        return ssl.create_default_context()
    path = os.environ[name]
    try:
        is_folder = os.path.isdir(path)
        return ssl.create_default_context(
            cafile=None if is_folder else path, capath=path if is_folder else None
        )
    except OSError as error:
        raise UsageError(
            f"{name} {path}: holds no certificates that can be read ({error.strerror}); correct the"
            " variable or unset it"
        ) from error


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
