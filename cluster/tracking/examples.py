"""Pictures, with the detections that a package gave for them when it was registered. They are part
of the logged model, so that whoever loads it elsewhere sees whether it still gives them.

examples/0.jpg ...          the bytes of pictures of the validation set
examples/detections.json    a list: file, boxes (XYXY px), scores, labels
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.shards.index import open_shard_set
from cluster.shards.read import read_rows
from detector.decode import Detections
from detector.image import open_image
from detector.predict import Predictor

FOLDER, FILE = "examples", "detections.json"
COUNT = 4
BOX_PX, SCORE = 0.1, 0.001
"""Differences that another processor may make."""


@dataclass(frozen=True)
class Example:
    path: str
    """A local file."""
    detections: Detections


def write_examples(package: str, data: str, folder: str) -> int:
    """Fill the new local `folder` from the first images of a shard set with what the package in a
    local folder detects; return how many they are.
    """
    shard_set = open_shard_set(data)
    count = min(COUNT, shard_set.rows_per_group[0])
    rows = read_rows([shard_set.locate_group(0)], [(0, row) for row in range(count)]).to_pylist()
    found = Predictor.load(package)([open_image(row["image"]) for row in rows])
    os.makedirs(folder)
    entries = []
    for number, (row, detections) in enumerate(zip(rows, found, strict=True)):
        name = f"{number}{os.path.splitext(row['file_name'])[1]}"
        with open(os.path.join(folder, name), "wb") as file:
            file.write(row["image"])
        entries.append({"file": name, **as_lists(detections)})
    with open(os.path.join(folder, FILE), "w", encoding="utf-8") as file:
        json.dump(entries, file)
    return count


def read_examples(folder: str) -> list[Example]:
    """Those of a local folder; none where there is no such folder."""
    path = os.path.join(folder, FILE)
    if not os.path.exists(path):
        return []
    with open(path, encoding="utf-8") as file:
        return [
            Example(os.path.join(folder, os.path.basename(entry["file"])), as_detections(entry))
            for entry in json.load(file)
        ]


def as_lists(detections: Detections) -> dict[str, list[Any]]:
    return {
        "boxes": detections.boxes_N4.tolist(),
        "scores": detections.scores_N.tolist(),
        "labels": detections.labels_N.tolist(),
    }


def as_detections(found: Mapping[str, Sequence[Any]]) -> Detections:
    return Detections(
        np.asarray(found["boxes"], np.float32).reshape(-1, 4),
        np.asarray(found["scores"], np.float32),
        np.asarray(found["labels"], np.int64),
    )


def difference(expected: Detections, found: Detections) -> str | None:
    """What differs, in words; None where nothing does but rounding."""
    if len(expected.scores_N) != len(found.scores_N):
        return f"{len(found.scores_N)} detections instead of {len(expected.scores_N)}"
    if not np.array_equal(expected.labels_N, found.labels_N):
        return "other classes"
    box = float(np.abs(expected.boxes_N4 - found.boxes_N4).max(initial=0))
    score = float(np.abs(expected.scores_N - found.scores_N).max(initial=0))
    if box > BOX_PX or score > SCORE:
        return f"boxes that differ by up to {box:.3g} px, scores by up to {score:.3g}"
    return None
