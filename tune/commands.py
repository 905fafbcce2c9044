"""The command lines that use the result of a sweep."""

from __future__ import annotations

import shlex

from cluster.storage.uris import join
from cluster.tracking.config import tracking_uri
from tune.plan import Plan

BEST, TABLE = "best.yaml", "results.csv"
"""In the folder of the sweep: the best configuration, and the table of all trials."""


def train_best(plan: Plan, mlflow_uri: str) -> str:
    """Trains with the best setting."""
    config = plan.config
    words = ["retinaray", "train", "--config", join(plan.uri, BEST)]
    words += ["--data.train", config.data.train, "--data.val", config.data.val]
    words += ["--storage", config.storage, "--name", f"{config.name}-best"]
    if mlflow_uri != tracking_uri(None, config.storage):
        words += ["--tracking.uri", mlflow_uri]
    return shlex.join(words)


def register_best(plan: Plan) -> str:
    """Registers the best checkpoint of the best trial."""
    words = ["--sweep", plan.uri, "--name", plan.config.name]
    return f"retinaray register {shlex.join(words)}"
