"""What an evaluation found, as files for people and programs: report.html, thresholds.json and
suspects.json.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cluster.reports.evaluation_report import Source, evaluation_page
from cluster.scoring.slices import slices_of
from cluster.shards.classes import ClassMatch
from cluster.shards.index import ShardSet
from cluster.shards.read import read_columns
from detector.judgement import Judgement
from detector.label_suspects import as_coco, label_suspects
from detector.metrics import CocoTable

REPORT, THRESHOLDS, SUSPECTS = "report.html", "thresholds.json", "suspects.json"
REPORT_FILES = (REPORT, THRESHOLDS, SUSPECTS)


def write_report_files(
    judged: Judgement,
    table: CocoTable,
    shard_set: ShardSet,
    classes: ClassMatch,
    folder: str,
    *,
    source: Source,
    columns: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> None:
    """Fill the local `folder`. `columns`: see `slices_of`; `notes` are sentences for the reader.
    `DataError` where a shard cannot be read.
    """
    suspects_S = label_suspects(judged.pairing, judged.errors, judged.kept_D)
    images = _images(shard_set, judged.pairing.image_ids[judged.pairing.image_D[suspects_S]])
    suspects = as_coco(
        judged.pairing,
        judged.errors,
        suspects_S,
        images=images,
        category_ids=_category_ids(shard_set, classes),
    )
    _write_json(folder, SUSPECTS, suspects)
    _write_json(folder, THRESHOLDS, judged.thresholds.to_json())
    page = evaluation_page(
        judged,
        table,
        shard_set,
        source=source,
        suspects_S=suspects_S,
        file_names={id_: image["file_name"] for id_, image in images.items()},
        slices=list(slices_of(judged.matches, shard_set, columns)),
        notes=notes,
    )
    with open(os.path.join(folder, REPORT), "wb") as file:
        file.write(page.encode("utf-8", "replace"))


def _images(shard_set: ShardSet, ids: np.ndarray) -> dict[int, dict[str, Any]]:
    """file_name, height and width of these images."""
    wanted = set(ids.tolist())
    table = read_columns(shard_set, ["image_id", "file_name", "height", "width"])
    return {row.pop("image_id"): row for row in table.to_pylist() if row["image_id"] in wanted}


def _category_ids(shard_set: ShardSet, classes: ClassMatch) -> list[int]:
    """The set's id of each class of the model; a class that the set lacks has one of its own."""
    ids = {
        label: category.id
        for category, label in zip(shard_set.categories, classes.labels, strict=True)
        if label >= 0
    }
    free = max((category.id for category in shard_set.categories), default=0) + 1
    return [ids.get(label, free + label) for label in range(len(classes.names))]


def _write_json(folder: str, name: str, content: Mapping[str, Any]) -> None:
    with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
