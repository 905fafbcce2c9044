"""Sample pictures of a set with their annotations drawn."""

from __future__ import annotations

import io

import numpy as np

from cluster.reports.data_report import decode
from cluster.shards.index import ShardSet
from cluster.shards.statistics import read, read_samples
from cluster.storage import files
from cluster.storage.uris import join


def draw_samples(shard_set: ShardSet, folder: str, *, count: int) -> int:
    """Publish up to `count` pictures with their boxes and class names as <image id>.png in the
    folder; returns how many there were.

    `DataError` as for `write_report`.
    """
    from detector.plots import (
        annotation_figure,
    )  # matplotlib is not for those who only want the lines

    drawn = 0
    for row in read_samples(shard_set, read(shard_set), count=count):
        boxes_N4 = np.asarray(row["boxes"], np.float32).reshape(-1, 4)
        figure = annotation_figure(
            decode(row),
            boxes_N4,
            row["labels"],
            row["crowd"],
            shard_set.class_names,
            title=row["file_name"],
        )
        sink = io.BytesIO()
        figure.savefig(sink, format="png", dpi=110)
        files.write_bytes(join(folder, f"{row['image_id']}.png"), sink.getvalue())
        drawn += 1
    return drawn
