"""A small shard set for the tests of this room."""

from __future__ import annotations

import numpy as np

from cluster.shards import write
from cluster.shards.format import Category, Row, shard_name
from cluster.shards.index import Counts, Index, ShardSet, write_index

CATEGORIES = (Category(0, 3, "cat"), Category(1, 18, "dog"))


def row(image_id: int, boxes: int) -> Row:
    return Row(
        image_id=image_id,
        file_name=f"{image_id}.jpg",
        image=bytes([image_id]) * 10,
        height=20,
        width=30,
        boxes_N4=np.arange(4 * boxes, dtype=np.float32).reshape(boxes, 4) + image_id,
        labels_N=[number % 2 for number in range(boxes)],
        crowd_N=[number == 1 for number in range(boxes)],
        area_N=[2.5] * boxes,
        source=image_id % 2,
        sha256=bytes([image_id]) * 32,
    )


def write_set(
    uri: str,
    shards: list[list[Row]],
    *,
    row_group_rows: int = 2,
    categories: tuple[Category, ...] = CATEGORIES,
) -> ShardSet:
    """One shard for each list of rows."""
    written = [
        write.write_shard(uri, shard_name(n, len(shards)), rows, row_group_rows=row_group_rows)
        for n, rows in enumerate(shards)
    ]
    counts = Counts(images=sum(len(rows) for rows in shards))
    return write_index(uri, Index(categories, tuple(written), counts, source_digest="0" * 64))
