"""A model package on a shard set -> the COCO table, the curves and some pictures, in a local folder
and on the MLflow run.
"""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np

from cluster.runs.package import read_package
from cluster.scoring.detect import detect_set
from cluster.scoring.truths import read_truths
from cluster.shards.index import ShardSet
from cluster.shards.read import read_rows
from cluster.tracking.run import attach_run
from detector.decode import Detections
from detector.image import decode_image
from detector.metrics import CocoTable, coco_table
from detector.plots import overlay_figure, precision_recall_figure
from detector.predict import MODEL_FILE, read_json
from detector.voc_metrics import with_voc


def evaluate(
    package: str,
    shard_set: ShardSet,
    folder: str,
    *,
    scored: str,
    overlays: int,
    max_detections: int | None = None,
    **resources: Any,
) -> CocoTable:
    """Score every image of the set once and fill `folder`: metrics.json, table.txt,
    precision_recall.png, overlays/.

    `max_detections`: what the model gives an image, in place of what its package says, and what
    counts; unset, COCO's 100 of an image and class. `resources`: see `detect_set`.
    """
    limits = (1, 10, 100)
    if max_detections is not None:
        limits = (*(limit for limit in (1, 10) if limit < max_detections), max_detections)
        keep_detections(package, max_detections)
    found = detect_set(read_package(package), shard_set.uri, **resources)
    truths = read_truths(shard_set)
    table = coco_table(truths, found, shard_set.class_names, max_detections=limits)
    table = with_voc(table, truths, found, shard_set.class_names)
    os.makedirs(os.path.join(folder, "overlays"), exist_ok=True)
    with open(os.path.join(folder, "table.txt"), "w", encoding="utf-8") as file:
        file.write(table.as_text() + "\n")
    precision_recall_figure(table).savefig(os.path.join(folder, "precision_recall.png"), dpi=110)
    draw_overlays(shard_set, found, os.path.join(folder, "overlays"), count=overlays)
    with open(os.path.join(folder, "metrics.json"), "w", encoding="utf-8") as file:
        json.dump(
            {
                "model": scored,
                "data": shard_set.uri,
                "data_digest": shard_set.digest,
                **table.as_dict(),
            },
            file,
            indent=1,
        )
    return table


def keep_detections(package: str, most: int) -> None:
    """Let the model of a package in a local folder keep so many of the best detections of an image."""
    description = read_json(package, MODEL_FILE)
    description["decode"]["max_detections"] = most
    with open(os.path.join(package, MODEL_FILE), "w", encoding="utf-8") as file:
        json.dump(description, file, indent=1)


def draw_overlays(
    shard_set: ShardSet, found: dict[int, Detections], folder: str, *, count: int
) -> None:
    """The first `count` images in stored order, which is pseudo-random, with their truth dashed."""
    drawn = 0
    for group, held in enumerate(shard_set.rows_per_group):
        wanted = min(held, count - drawn)
        if wanted <= 0:
            return
        for row in read_rows(
            [shard_set.locate_group(group)], [(0, i) for i in range(wanted)]
        ).to_pylist():
            truth = np.asarray(row["boxes"], np.float32).reshape(-1, 4)
            figure = overlay_figure(
                decode_image(row["image"]),
                found[row["image_id"]],
                shard_set.class_names,
                truth_N4=truth,
                title=row["file_name"],
            )
            figure.savefig(os.path.join(folder, f"{row['image_id']}.png"), dpi=90)
        drawn += wanted


def record(recorded: dict[str, str], folder: str, *, step: int) -> None:
    """Put table and pictures on the MLflow run that tracking.json names; `step` is images seen."""
    run = attach_run(recorded["uri"], recorded["run_id"])
    with open(os.path.join(folder, "metrics.json"), encoding="utf-8") as file:
        metrics = json.load(file)
    run.log_metrics(
        {f"evaluation/{k}": v for k, v in metrics.items() if isinstance(v, float)}, step
    )
    for name in ("metrics.json", "table.txt", "precision_recall.png"):
        run.log_artifact(os.path.join(folder, name), "evaluation")
    for name in sorted(os.listdir(os.path.join(folder, "overlays"))):
        run.log_artifact(os.path.join(folder, "overlays", name), "evaluation/overlays")
    run.close()
