"""The detections of a part in COCO's form are those of its rows."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from cluster.prediction import results
from cluster.prediction.part import schema_of

CATEGORIES = [7, None, 0]
"""The user has no id for the second class."""


def part(counts: list[int | None]) -> pa.Table:
    """Images with so many detections; one without an id has None."""
    random = np.random.default_rng(0)
    rows = []
    for number, given in enumerate(counts):
        count = 3 if given is None else given
        boxes = random.random((count, 4), np.float32) * 1000
        rows.append(
            {
                "image_id": None if given is None else number - 2,
                "boxes": boxes.tolist(),
                "scores": random.random(count, np.float32).tolist(),
                "labels": [n % 3 for n in range(count)],
            }
        )
    return pa.Table.from_pylist(rows, schema=schema_of(pa.schema([])))


@pytest.mark.parametrize("counts", [[2, 0, None, 5, 1], [0], [None], [1, 100, 3]])
def test_coco_results_are_the_detections_of_the_rows(counts: list[int | None]) -> None:
    table = part(counts)
    wanted = [
        {
            "image_id": row["image_id"],
            "category_id": CATEGORIES[label],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": score,
        }
        for row in table.to_pylist()
        if row["image_id"] is not None
        for (x1, y1, x2, y2), score, label in zip(
            row["boxes"], row["scores"], row["labels"], strict=True
        )
        if CATEGORIES[label] is not None
    ]
    # A part of a larger table begins in the middle of its columns.
    for one in (table, pa.concat_tables([part([4]), table]).combine_chunks().slice(1)):
        text, count = results._coco_results(one, CATEGORIES)
        assert json.loads(f"[{text}]") == wanted and count == len(wanted)
