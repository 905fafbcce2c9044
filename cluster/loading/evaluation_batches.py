"""The batches of an evaluation: every row of a set exactly once over all ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from cluster.loading import epoch_plan
from cluster.loading.datasets import iterate, planned_rows
from cluster.loading.prefetch import WHOLE_BATCHES_AHEAD, Ahead, ordered_map
from cluster.loading.sampler import naming_image
from cluster.shards.index import ShardSet
from cluster.shards.read import read_columns
from detector.batch import Batch, Sample, collate_by_canvas
from detector.image import open_image
from detector.placement import evaluation_sample, preferred_canvas


def preferred_canvases(
    shard_set: ShardSet, canvases: Sequence[tuple[int, int]], *, long_side: int | None
) -> np.ndarray:
    """int64 (N,): the number of the canvas that each row prefers. With one canvas no height and
    width is read.
    """
    if len(canvases) == 1:
        return np.zeros(shard_set.num_rows, np.int64)
    sizes = read_columns(shard_set, ["height", "width"])
    pairs = zip(sizes["height"].to_pylist(), sizes["width"].to_pylist(), strict=True)
    return np.array(
        [preferred_canvas(height, width, canvases, long_side=long_side) for height, width in pairs],
        np.int64,
    )


def evaluation_batches(
    shard_set: ShardSet,
    *,
    rank: int,
    ranks: int,
    batch: int,
    canvases: Sequence[tuple[int, int]],
    long_side: int | None = None,
    threads: int = 1,
) -> Iterator[tuple[Batch, list[tuple[int, int]]]]:
    """The batches of this rank, with the original (height, width) px of each image. Over all ranks
    every row comes exactly once.

    A batch has images of one preferred canvas, in stored order; the last batch of a canvas may be
    short. The batches are the same for any number of ranks, because a convolution of 3 images in
    float32 rounds differently from one of 8.
    """
    preferred = preferred_canvases(shard_set, canvases, long_side=long_side)
    share = epoch_plan.evaluation_share(preferred, rank=rank, ranks=ranks, batch=batch)
    if not len(share):
        return

    def load(row: dict[str, Any]) -> tuple[Sample, tuple[int, int]]:
        with naming_image(row):
            image = open_image(row["image"])
            return evaluation_sample(
                image, row["image_id"], canvases=canvases, long_side=long_side
            ), image.shape[:2]

    rows = iterate(planned_rows(shard_set, epoch_plan.units(share, shard_set.rows_per_group)))
    with Ahead(
        collate_by_canvas(ordered_map(load, rows, threads=threads), batch),
        depth=WHOLE_BATCHES_AHEAD,
    ) as batches:
        yield from batches
