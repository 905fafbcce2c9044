"""The annotated objects of a shard set, as the metrics take them."""

from __future__ import annotations

from typing import Any

import numpy as np

from cluster.shards.classes import ClassMatch
from cluster.shards.index import ShardSet
from cluster.shards.read import read_annotations
from detector.metrics import Truth


def read_truths(shard_set: ShardSet, classes: ClassMatch | None = None) -> list[Truth]:
    """The annotated objects of every image of a set, with its own labels or with those of the model
    that `classes` matches it with. Images are not decoded.
    """
    truths = []
    for row in read_annotations(shard_set).to_pylist():
        labels_N = np.asarray(row["labels"], np.int64)
        if classes is not None:
            labels_N = classes.relabel(labels_N)
        kept_N = labels_N >= 0
        searched, incomplete = _federated(row, labels_N[kept_N], classes)
        truths.append(
            Truth(
                image_id=row["image_id"],
                height=row["height"],
                width=row["width"],
                boxes_N4=np.asarray(row["boxes"], np.float32).reshape(-1, 4)[kept_N],
                labels_N=labels_N[kept_N],
                crowd_N=np.asarray(row["crowd"], bool)[kept_N],
                area_N=np.asarray(row["area"], np.float64)[kept_N],
                searched=searched,
                incomplete=incomplete,
            )
        )
    return truths


def read_frequencies(shard_set: ShardSet, classes: ClassMatch) -> dict[str, str]:
    """LVIS's frequency by class of the model, for those whose class in the set has one."""
    return {
        classes.names[label]: category.frequency
        for category, label in zip(shard_set.categories, classes.labels, strict=True)
        if label >= 0 and category.frequency is not None
    }


def _federated(
    row: dict[str, Any], annotated_N: np.ndarray, classes: ClassMatch | None
) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
    """The labels that an image was searched for, and those that may have more objects than are
    annotated. (None, None) for an image that was searched for all.
    """
    if row["absent"] is None:
        return None, None
    absent, incomplete = (np.asarray(row[name], np.int64) for name in ("absent", "incomplete"))
    if classes is not None:
        absent, incomplete = classes.relabel(absent), classes.relabel(incomplete)
    searched = np.union1d(annotated_N, absent)
    return searched[searched >= 0], incomplete[incomplete >= 0]
