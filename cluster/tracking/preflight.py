"""Checks, before a machine is used, that MLflow will take what a verb is going to write.

They do not import MLflow, which costs 4 s: a server is asked over HTTP, an SQLite file with SQL.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import shlex
import sqlite3
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any

from cluster.errors import PlainError, UsageError
from cluster.preflight.finding import Finding, parted
from cluster.tracking import embedded, schema
from cluster.tracking.environment import check_variables

TIMEOUT_S = 4.0
_SERVER_REMEDY = "start the server, correct --tracking.uri, or leave it out for an SQLite file"
_IS_PROMPT = "mlflow.prompt.is_prompt"


def check_server(uri: str, *, must_exist: bool = False) -> None:
    """Preflight: an MLflow server answers at `uri`, or its SQLite file is usable. Takes about four
    seconds at most. With `must_exist`, for what only reads, `UsageError` where there is no such
    file.

    `PlainError` when nothing answers, the server is unhealthy, or it is not MLflow. A server that
    asks for credentials passes. `UsageError` where a variable has a value that MLflow cannot use.
    """
    check_variables()
    if (path := embedded.path_of(uri)) is not None:
        if must_exist:
            embedded.refuse_missing(path)
        return _check_sqlite(uri, path)
    try:
        with urllib.request.urlopen(
            uri + "/health", timeout=TIMEOUT_S, context=_certificates()
        ) as answer:
            healthy = answer.read(16).strip() == b"OK"
    except urllib.error.HTTPError as error:
        error.close()
        if error.code >= 500:
            raise PlainError(
                f"the MLflow server at {uri} is unhealthy: /health returned {error.code};"
                f" {_SERVER_REMEDY}"
            ) from error
        healthy = error.code in (401, 403)
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise PlainError(
            f"no MLflow server answers at {uri} ({reason}); {_SERVER_REMEDY}"
        ) from error
    if not healthy:
        raise PlainError(
            f"the server at {uri} is not an MLflow server (its /health did not return OK);"
            f" {_SERVER_REMEDY}"
        )


def look_at_tracker(uri: str, experiment: str) -> Finding:
    """Both checks as a line of the preflight, with the time that the tracker takes to answer."""
    start = time.perf_counter()
    try:
        check_server(uri)
        check_experiment(uri, experiment)
    except PlainError as error:
        return Finding("fail", "tracker", *parted(str(error)))
    took = (time.perf_counter() - start) * 1e3
    return Finding("ok", "tracker", f"{uri} takes runs of {experiment!r}, in {took:.0f} ms")


def _check_sqlite(uri: str, path: str) -> None:
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
    version = _select(path, "SELECT version_num FROM alembic_version")
    if version is not None:
        schema.check(uri, version[0])


def check_experiment(uri: str, name: str) -> None:
    """Preflight: runs can be added to the experiment, or it is new. `UsageError` where it is in
    MLflow's trash.
    """
    if (path := embedded.path_of(uri)) is not None:
        sql = "SELECT experiment_id, lifecycle_stage FROM experiments WHERE name = ?"
        row = _select(path, sql, name)
        number, stage = row or ("", "active")
    else:
        answer = _ask(uri, "experiments/get-by-name", {"experiment_name": name}) or {}
        experiment = answer.get("experiment", {})
        number = experiment.get("experiment_id", "")
        stage = experiment.get("lifecycle_stage", "active")
    if stage == "deleted":
        raise deleted_experiment(uri, name, str(number))


def deleted_experiment(uri: str, name: str, number: str) -> UsageError:
    """The error for an experiment in MLflow's trash."""
    return UsageError(
        f"tracking.experiment {name!r}: is deleted in MLflow at {uri}; restore it with"
        f" MLFLOW_TRACKING_URI={shlex.quote(uri)} mlflow experiments restore --experiment-id"
        f" {shlex.quote(number)}, or choose another --tracking.experiment"
    )


def check_model_name(uri: str, name: str, *, option: str) -> None:
    """Preflight: versions can be added to the registered model, or it is new. `UsageError` where a
    prompt of MLflow has the name: the registry keeps both in one list.
    """
    if (path := embedded.path_of(uri)) is not None:
        sql = "SELECT value FROM registered_model_tags WHERE name = ? AND key = ?"
        value = (_select(path, sql, name, _IS_PROMPT) or ("",))[0]
    else:
        answer = _ask(uri, "registered-models/get", {"name": name}) or {}
        tags = {
            tag.get("key"): tag.get("value")
            for tag in answer.get("registered_model", {}).get("tags", [])
        }
        value = tags.get(_IS_PROMPT, "")
    if str(value).lower() == "true":
        raise UsageError(
            f"{option} {name}: is the name of a prompt in MLflow at {uri}, and a model cannot have"
            " it too; choose another name"
        )


def has_run(uri: str, run_id: str) -> bool:
    """Whether MLflow has the run, outside its trash. A server that asks for credentials which are
    not in the environment counts as having it.
    """
    if (path := embedded.path_of(uri)) is not None:
        row = _select(path, "SELECT lifecycle_stage FROM runs WHERE run_uuid = ?", run_id)
        return row is not None and row[0] == "active"
    answer = _ask(uri, "runs/get", {"run_id": run_id})
    if answer is None:
        return True
    return answer.get("run", {}).get("info", {}).get("lifecycle_stage") == "active"


def has_version(uri: str, name: str, number: str) -> bool:
    """Whether the registry has this version of the model. A server that asks for credentials which
    are not in the environment counts as having it.
    """
    if (path := embedded.path_of(uri)) is not None:
        sql = "SELECT current_stage FROM model_versions WHERE name = ? AND version = ?"
        row = _select(path, sql, name, number)
        # MLflow keeps the rows of deleted versions, so that their numbers are not used again.
        return row is not None and row[0] != "Deleted_Internal"
    answer = _ask(uri, "model-versions/get", {"name": name, "version": number})
    return answer is None or "model_version" in answer


def _select(path: str, sql: str, *values: str) -> tuple[Any, ...] | None:
    """The first row; None without one, and where the file or the table is not there yet."""
    if not os.path.exists(path):
        return None
    try:
        return embedded.select(path, sql, *values)
    except sqlite3.Error as error:
        if "no such table" in str(error):
            return None
        raise PlainError(
            f"the MLflow store {path} cannot be read ({error}); repair it, move it away, or give"
            " another storage root"
        ) from error


def _ask(uri: str, method: str, query: Mapping[str, str]) -> dict[str, Any] | None:
    """The answer of the REST API, empty where there is no such thing; None where the server wants
    other credentials than those of the environment, and so cannot be asked here.
    """
    request = urllib.request.Request(
        f"{uri}/api/2.0/mlflow/{method}?{urllib.parse.urlencode(query)}", headers=_credentials()
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S, context=_certificates()) as answer:
            found = json.load(answer)
            return found if isinstance(found, dict) else {}
    except urllib.error.HTTPError as error:
        with error:
            text = error.read(10_000).decode("utf-8", "replace")
        if error.code in (401, 403):
            return None
        if error.code == 404:
            return {}
        try:
            message = str(json.loads(text)["message"]).splitlines()[0]
        except (ValueError, TypeError, KeyError, IndexError):
            message = f"it returned {error.code}"
        raise schema.failed(uri, message) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise PlainError(
            f"the MLflow server at {uri} did not answer ({reason}); {_SERVER_REMEDY}"
        ) from error


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


def _credentials() -> dict[str, str]:
    """As MLflow's own client takes them from the environment."""
    user, password = (
        os.environ.get(f"MLFLOW_TRACKING_{name}") for name in ("USERNAME", "PASSWORD")
    )
    if user and password:
        text = base64.b64encode(f"{user}:{password}".encode()).decode()
        return {"Authorization": f"Basic {text}"}
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    return {"Authorization": f"Bearer {token}"} if token else {}
