"""The files of the verb `evaluate` on the MLflow run of a training run."""

from __future__ import annotations

import json
import os

from cluster.tracking.run import attach_run

FOLDER = "evaluation"
"""Of the artifacts; the metrics are named evaluation/<name>."""


def log_evaluation(uri: str, run_id: str, folder: str, *, step: int) -> None:
    """Log the metrics, the table and the pictures in a local `folder`, which
    `scoring.evaluate_package` has filled. `step` is images seen.
    """
    run = attach_run(uri, run_id)
    with open(os.path.join(folder, "metrics.json"), encoding="utf-8") as file:
        metrics = json.load(file)
    run.log_metrics(
        {f"{FOLDER}/{name}": value for name, value in metrics.items() if isinstance(value, float)},
        step,
    )
    for name in ("metrics.json", "table.txt", "precision_recall.png"):
        run.log_artifact(os.path.join(folder, name), FOLDER)
    for name in sorted(os.listdir(os.path.join(folder, "overlays"))):
        run.log_artifact(os.path.join(folder, "overlays", name), f"{FOLDER}/overlays")
    run.close()
