"""MLflow's own variables of the environment: values that it cannot use, before it is imported.

MLflow reads a variable where it needs it, and a wrong value then ends in a `ValueError` after work
is done. Its list of variables is one file that imports nothing of MLflow.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from functools import cache
from pathlib import Path
from typing import Any

from cluster.errors import UsageError

_RULES: dict[type, str] = {
    int: "must be a whole number",
    float: "must be a number",
    bool: "must be true or false",
}
_LIMITS: dict[str, tuple[int, int | None]] = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": (1, None),
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": (0, 10),
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": (0, None),
    "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": (0, None),
    # -1: no limit.
    "MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW": (-1, None),
}
"""Smallest and largest value that MLflow or SQLAlchemy takes."""
_POOLS = (
    "AssertionPool",
    "AsyncAdaptedQueuePool",
    "NullPool",
    "QueuePool",
    "SingletonThreadPool",
    "StaticPool",
)
_CHOICES = {"MLFLOW_SQLALCHEMYSTORE_POOLCLASS": ("", *_POOLS)}


def check_variables() -> None:
    """`UsageError` for the first variable that has a value which MLflow cannot use."""
    given = sorted(name for name in os.environ if name.startswith("MLFLOW_"))
    known = _known() if given else {}
    for name in given:
        rule = _broken_rule(name, known[name]) if name in known else None
        if rule is not None:
            raise UsageError(f"{name} {os.environ[name]!r}: {rule}; correct it or unset it")


def _broken_rule(name: str, variable: Any) -> str | None:
    try:
        with warnings.catch_warnings(action="ignore"):
            value = variable.get()
    except ValueError as error:
        return _RULES.get(variable.type, f"cannot be used ({error})")
    if name in _CHOICES and value not in _CHOICES[name]:
        return f"must be one of {', '.join(_CHOICES[name][1:])}"
    least, most = _LIMITS.get(name, (None, None))
    if least is not None and value < least:
        return f"must be {least} or more"
    return f"must be {most} or less" if most is not None and value > most else None


@cache
def _known() -> dict[str, Any]:
    """MLflow's variables by name; none where this MLflow has no such list."""
    package = importlib.util.find_spec("mlflow")
    for folder in (package and package.submodule_search_locations) or ():
        file = Path(folder, "environment_variables.py")
        spec = importlib.util.spec_from_file_location("mlflow_variables", file)
        if spec is None or spec.loader is None or not file.exists():
            continue
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return {
            name: variable
            for name, variable in vars(module).items()
            if name.startswith("MLFLOW_") and hasattr(variable, "type")
        }
    return {}
