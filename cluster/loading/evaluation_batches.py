"""The batches of an evaluation: every row of a set exactly once over all ranks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from cluster.loading import epoch_plan
from cluster.loading.datasets import iterate, planned_rows
from cluster.loading.prefetch import WHOLE_BATCHES_AHEAD, Ahead, ordered_map
from cluster.loading.sampler import naming_image
from cluster.shards.index import ShardSet
from cluster.shards.read import read_columns
from detector.batch import Batch, Sample, collate_pictures
from detector.choices import WHOLE_PICTURE, ViewSettings
from detector.placement import preferred_canvas
from detector.tiling import Picture, View, view_sample, views_of


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
    settings: ViewSettings = WHOLE_PICTURE,
) -> Iterator[tuple[Batch, list[View]]]:
    """The batches of this rank, with the view that each of its images is: the whole picture, or
    what `settings` say. Over all ranks every view of every row comes exactly once; a rank has all
    views of its rows.

    A batch has images of one preferred canvas, in stored order; the last batch of a canvas may be
    short. The views of as many pictures as a batch has images share batches. The batches are the
    same for any number of ranks, because a convolution of 3 images in float32 rounds differently
    from one of 8.
    """
    preferred = preferred_canvases(shard_set, canvases, long_side=long_side)
    share = epoch_plan.evaluation_share(preferred, rank=rank, ranks=ranks, batch=batch)
    if not len(share):
        return

    def load(item: tuple[dict[str, Any], Picture, View]) -> tuple[Sample, View]:
        row, picture, view = item
        with naming_image(row):
            return view_sample(
                picture, row["image_id"], view, canvases=canvases, long_side=long_side
            )

    rows = iterate(planned_rows(shard_set, epoch_plan.units(share, shard_set.rows_per_group)))
    loaded = ordered_map(load, _views(rows, settings), threads=threads)
    # Views of a picture follow each other.
    pictures = itertools.groupby(loaded, key=lambda pair: pair[0].image_id)
    with Ahead(
        collate_pictures((views for _, views in pictures), batch), depth=WHOLE_BATCHES_AHEAD
    ) as batches:
        yield from batches


def _views(
    rows: Iterator[dict[str, Any]], settings: ViewSettings
) -> Iterator[tuple[dict[str, Any], Picture, View]]:
    """The views of each row; one picture is decoded while few views of it wait."""
    for row in rows:
        picture = Picture(row["image"])
        for view in views_of(row["height"], row["width"], settings):
            yield row, picture, view
