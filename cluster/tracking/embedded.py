"""The MLflow store of one machine: an SQLite file, and beside it the folder with the artifacts.

MLflow stores absolute locations of artifacts. A store that was moved or copied is corrected when it
is opened, so that its artifacts are those beside it.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any
from urllib.request import pathname2url, url2pathname

from cluster.errors import PlainError, UsageError

TIMEOUT_S = 4.0
FILE, ARTIFACTS = "mlflow.db", "mlartifacts"
# Tables of MLflow with the column that has a location.
_LOCATIONS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
)


def uri_of(path: str) -> str:
    """The URI of the SQLite file at an absolute path, as MLflow and SQLAlchemy take it."""
    if not set(path) & set("%?"):
        return f"sqlite:///{path}"
    # SQLAlchemy decodes the path. MLflow makes the folder of a sqlite:/// URI without decoding it,
    # `50%25` beside `50%`; it leaves a URI that names the driver alone.
    return f"sqlite+pysqlite:///{pathname2url(path)}"


def path_of(uri: str) -> str | None:
    """The path of the SQLite file; None for a server."""
    scheme, _, rest = uri.partition(":///")
    if scheme not in ("sqlite", "sqlite+pysqlite"):
        return None
    return url2pathname(rest.partition("?")[0])


def same(one: str, other: str) -> bool:
    """Whether two URIs name the same store."""
    path = path_of(one)
    return one.rstrip("/") == other.rstrip("/") if path is None else path == path_of(other)


def artifact_location(path: str) -> str:
    """Where the artifacts of the store at `path` are, as MLflow takes it."""
    return pathname2url(os.path.join(os.path.dirname(path), ARTIFACTS))


def refuse_missing(path: str) -> None:
    """`UsageError` where there is no store: who only looks something up must not make one."""
    if not os.path.exists(path):
        raise UsageError(
            f"there is no MLflow store at {path}; check --storage, or name the store that has the"
            " run or model with --tracking.uri or MLFLOW_TRACKING_URI"
        )


@contextmanager
def alone(path: str) -> Iterator[None]:
    """No other process of this machine opens the store meanwhile. Two first users would both make
    its tables: the second one finds a schema that is half made.
    """
    folder = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


@contextmanager
def opening(path: str, *, creates: bool) -> Iterator[None]:
    """For a client that opens the store meanwhile, `alone`. `UsageError` where there is none and
    the caller `creates` none.
    """
    if not creates:
        refuse_missing(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with alone(path):
        follow_move(path)
        yield


def select(path: str, sql: str, *values: str) -> tuple[Any, ...] | None:
    """The first row of the store at `path`; None without one. Reads the file alone; nothing is
    created. `sqlite3.Error` where it cannot be read.
    """
    address = f"file:{pathname2url(path)}?mode=ro"
    with closing(sqlite3.connect(address, uri=True, timeout=TIMEOUT_S)) as store:
        return store.execute(sql, values).fetchone()


def _has_run(path: str, run_id: str) -> bool:
    try:
        return select(path, "SELECT 1 FROM runs WHERE run_uuid = ?", run_id) is not None
    except sqlite3.Error:
        return False


def store_of_run(recorded: str, run_id: str, folder: str) -> str:
    """The URI of the store of a run whose folder is `folder`: `recorded`, or the one that lies
    above the folder and has the run, because both were moved or copied together.
    """
    if path_of(recorded) is None:
        return recorded
    while (above := os.path.dirname(folder)) != folder:
        folder = above
        path = os.path.join(folder, FILE)
        if os.path.isfile(path) and _has_run(path, run_id):
            return uri_of(path)
    return recorded


def follow_move(path: str) -> None:
    """Correct the locations of artifacts after the store was moved or copied to `path`, with a line
    that says so. `PlainError` where the store cannot be written.
    """
    if not os.path.isfile(path):
        return
    here = artifact_location(path)
    try:
        with closing(sqlite3.connect(path)) as store, store:
            changed = {
                (table, column, old): new
                for table, column in _LOCATIONS
                for old, new in _moved(store, table, column, here)
            }
            for (table, column, old), new in changed.items():
                store.execute(f"UPDATE {table} SET {column} = ? WHERE {column} = ?", (new, old))
    except sqlite3.Error as error:
        raise PlainError(
            f"the MLflow store {path} was moved, and the places of its artifacts in it cannot be"
            f" corrected ({error}); make it writable for this user"
        ) from error
    if changed:
        print(
            f"note: the MLflow store {path} was moved or copied; {len(changed)} places of artifacts"
            " in it are corrected",
            file=sys.stderr,
        )


def _moved(
    store: sqlite3.Connection, table: str, column: str, here: str
) -> Iterator[tuple[str, str]]:
    """(location, location below `here`) of what is no longer where the table says, or also here."""
    columns = [row[1] for row in store.execute(f"PRAGMA table_info({table})")]
    if column not in columns:
        return
    for (old,) in store.execute(f"SELECT DISTINCT {column} FROM {table}").fetchall():
        root, found, name = (old or "").rpartition(f"/{ARTIFACTS}")
        new = here + name
        if not found or name[:1] not in ("", "/") or not root.startswith(("/", "file:/")):
            continue
        if old == new:
            continue
        if os.path.exists(_path(new)) or not os.path.exists(_path(old)):
            yield old, new


def _path(location: str) -> str:
    return url2pathname(location.removeprefix("file://"))
