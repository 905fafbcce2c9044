"""What exported files detect in a shard set, and the time that they take for it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.loading.sampler import naming_image
from cluster.scoring import evaluate
from cluster.scoring.truths import read_frequencies, read_truths
from cluster.shards.classes import ClassMatch
from cluster.shards.index import ShardSet
from cluster.shards.read import read_rows
from detector.batch import Batch, Sample, collate_by_canvas
from detector.decode import Detections
from detector.image import open_image
from detector.metrics import CocoTable
from detector.predict import Predictor

BATCH = 8
"""Images that a file gets at once."""


@dataclass(frozen=True)
class Measured:
    table: CocoTable
    ms: float
    """An image, from the pixels on the canvas to detections."""


def measure(
    predictors: Mapping[str, Predictor], shard_set: ShardSet, classes: ClassMatch
) -> dict[str, Measured]:
    """The AP of each predictor on the whole set, and its time. The predictors take turns at every
    batch, each a different one first, so that a busy moment of the machine meets all of them; the
    first batch runs once more, before the clock.
    """
    seconds = dict.fromkeys(predictors, 0.0)
    found: dict[str, dict[int, Detections]] = {name: {} for name in predictors}
    order, images = list(predictors), 0
    for batch, sizes in batches_of(next(iter(predictors.values())), shard_set):
        if not images:
            for predictor in predictors.values():
                predictor.detect(batch, sizes)
        for name in order:
            start = time.perf_counter()
            detections = predictors[name].detect(batch, sizes)
            seconds[name] += time.perf_counter() - start
            found[name] |= zip(batch.image_ids.tolist(), detections, strict=True)
        images += len(sizes)
        order = [*order[1:], order[0]]
    truths = read_truths(shard_set, classes)
    metrics = evaluate.metrics_of(read_frequencies(shard_set, classes))
    return {
        name: Measured(
            evaluate.evaluate_detections(found[name], truths, classes.names, metrics),
            1000 * seconds[name] / images,
        )
        for name in predictors
    }


def batches_of(
    predictor: Predictor, shard_set: ShardSet, *, images: int | None = None
) -> Iterator[tuple[Batch, list[tuple[int, int]]]]:
    """The first `images` of a shard set, or all, in batches on the canvases of a predictor, each
    with the original (height, width) px of its pictures. `DataError` names a damaged picture.
    """
    return collate_by_canvas(
        samples_of(predictor, itertools.islice(rows_of(shard_set), images)), BATCH
    )


def rows_of(shard_set: ShardSet) -> Iterator[dict[str, Any]]:
    """In stored order, which is pseudo-random; one row group is in memory at a time."""
    for group, count in enumerate(shard_set.rows_per_group):
        rows = [(0, row) for row in range(count)]
        yield from read_rows([shard_set.locate_group(group)], rows).to_pylist()


def samples_of(
    predictor: Predictor, rows: Iterable[Mapping[str, Any]]
) -> Iterator[tuple[Sample, tuple[int, int]]]:
    """The picture of each row on its canvas, and its original (height, width) px. Of a row are
    needed `image` (bytes), `image_id` and `file_name`.
    """
    for row in rows:
        with naming_image(row):
            yield predictor.sample(open_image(row["image"]), row["image_id"])
