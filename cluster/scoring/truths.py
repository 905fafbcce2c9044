"""The annotated objects of a shard set, as the metrics take them."""

from __future__ import annotations

import numpy as np

from cluster.shards.index import ShardSet
from cluster.shards.read import read_annotations
from detector.metrics import Truth


def read_truths(shard_set: ShardSet) -> list[Truth]:
    """The annotated objects of every image of a set. Images are not decoded."""
    return [
        Truth(
            image_id=row["image_id"],
            height=row["height"],
            width=row["width"],
            boxes_N4=np.asarray(row["boxes"], np.float32).reshape(-1, 4),
            labels_N=np.asarray(row["labels"], np.int64),
            crowd_N=np.asarray(row["crowd"], bool),
            area_N=np.asarray(row["area"], np.float64),
        )
        for row in read_annotations(shard_set).to_pylist()
    ]
