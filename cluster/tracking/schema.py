"""The schema of an MLflow store: which one the installed MLflow has, and what to do about another.

Each version of MLflow brings its migrations as files of Alembic; the newest is the schema that it
works with.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import shlex
from pathlib import Path

from cluster.errors import PlainError

_OTHER_SCHEMA = "out-of-date database schema"


def check(uri: str, version: str) -> None:
    """`PlainError` where the installed MLflow cannot work with an SQLite store that has the schema
    `version`.
    """
    known, newest = _revisions()
    if newest is None or version == newest:
        return
    if version not in known:
        raise PlainError(
            f"the MLflow store {uri} has the schema {version} of a newer MLflow than the installed"
            f" {importlib.metadata.version('mlflow')}; install the MLflow that wrote it, or give"
            " another storage root"
        )
    # MLflow brings some older stores up to date by itself, so it is asked.
    from cluster.tracking.client import connect

    connect(uri)


def failed(uri: str, message: str) -> PlainError:
    """The error for a store that answers `message`."""
    if _OTHER_SCHEMA in message:
        database = shlex.quote(uri) if uri.startswith("sqlite") else "DATABASE_URI, on its machine"
        return PlainError(
            f"the MLflow store at {uri} has the schema of another MLflow version; back it up, then"
            f" run: mlflow db upgrade {database}"
        )
    return PlainError(
        f"MLflow at {uri} failed: {message[:200]}; check the store and run the command again"
    )


def _revisions() -> tuple[set[str], str | None]:
    """All schemas that the installed MLflow knows, and the newest; None where that is unclear."""
    spec = importlib.util.find_spec("mlflow")
    known: set[str] = set()
    older: set[str] = set()
    for folder in (spec and spec.submodule_search_locations) or ():
        for file in Path(folder, "store", "db_migrations", "versions").glob("*.py"):
            for name, value in re.findall(
                r"^(revision|down_revision)\b[^=\n]*=(.*)$", file.read_text("utf-8"), re.MULTILINE
            ):
                (known if name == "revision" else older).update(re.findall(r"[\'\"](\w+)", value))
    newest = known - older
    return known, newest.pop() if len(newest) == 1 else None
