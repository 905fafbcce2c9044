"""Sets of boxes without pictures, for the tests and the benchmark of the anchor search."""

from __future__ import annotations

import numpy as np

from cluster.shards.format import Row
from cluster.shards.index import ShardSet
from cluster.shards.statistics import Annotations
from tests.support.shard_sets import write_set


def annotations(
    boxes_N4: np.ndarray, *, height: int = 480, width: int = 640, per_image: int = 20
) -> Annotations:
    """Pictures of one size with so many boxes each, all of one class, no crowds."""
    boxes_N4 = np.asarray(boxes_N4, np.float32).reshape(-1, 4)
    count, images = len(boxes_N4), -(-len(boxes_N4) // per_image)
    sides_N2 = boxes_N4[:, 2:] - boxes_N4[:, :2]
    return Annotations(
        heights_I=np.full(images, height),
        widths_I=np.full(images, width),
        image_N=np.arange(count) // per_image,
        boxes_N4=boxes_N4,
        labels_N=np.zeros(count, np.int64),
        crowd_N=np.zeros(count, bool),
        area_N=sides_N2.prod(axis=1),
    )


def write_annotations(uri: str, objects: Annotations, *, shards: int = 1) -> ShardSet:
    """The shard set of the annotations. Its pictures are one byte each: it cannot be trained on."""
    ends = np.searchsorted(objects.image_N, np.arange(len(objects.heights_I) + 1))
    rows = [
        Row(
            image_id=i,
            file_name=f"{i}.jpg",
            image=b"-",
            height=int(objects.heights_I[i]),
            width=int(objects.widths_I[i]),
            boxes_N4=objects.boxes_N4[ends[i] : ends[i + 1]],
            labels_N=objects.labels_N[ends[i] : ends[i + 1]].tolist(),
            crowd_N=objects.crowd_N[ends[i] : ends[i + 1]].tolist(),
            area_N=objects.area_N[ends[i] : ends[i + 1]].tolist(),
            source=0,
            sha256=bytes(32),
        )
        for i in range(len(objects.heights_I))
    ]
    share = -(-len(rows) // shards)
    parts = [rows[start : start + share] for start in range(0, len(rows), share)]
    return write_set(uri, parts, row_group_rows=1000)


def centred(centres_N2: np.ndarray, width: float, height: float) -> np.ndarray:
    """(N, 4): boxes of one shape around their centres."""
    half = np.array([width, height]) / 2
    return np.concatenate([centres_N2 - half, centres_N2 + half], axis=1)


def coco_like(count: int, *, seed: int = 0) -> np.ndarray:
    """(N, 4): boxes in pictures of 640 x 480 px with sides and ratios like those of COCO: about
    41 % small, 34 % medium, 24 % large (COCO 2017), most of them higher than wide.
    """
    generator = np.random.default_rng(seed)
    side = np.exp(generator.normal(np.log(42), 1.1, count))
    root = np.sqrt(np.exp(generator.normal(0.15, 0.65, count)))
    sides = np.clip(np.stack([side / root, side * root], axis=1), 2, [640, 480])
    corner = generator.random((count, 2)) * ([640, 480] - sides)
    return np.concatenate([corner, corner + sides], axis=1)
