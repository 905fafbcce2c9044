"""What exported files detect in a shard set, and the time that they take for it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass

from cluster.loading.evaluation_batches import evaluation_batches
from cluster.scoring import evaluate
from cluster.scoring.detect import BATCH
from cluster.scoring.truths import read_frequencies, read_truths
from cluster.shards.classes import ClassMatch
from cluster.shards.index import ShardSet
from detector.batch import Batch
from detector.decode import Detections
from detector.metrics import CocoTable
from detector.predict import Predictor
from detector.tiling import View


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
    for batch, views in batches_of(next(iter(predictors.values())), shard_set):
        sizes = [view.size for view in views]
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
) -> itertools.islice[tuple[Batch, list[View]]]:
    """The batches of a shard set on the canvases of a predictor, so many that they hold `images`,
    or all.
    """
    batches = evaluation_batches(
        shard_set,
        rank=0,
        ranks=1,
        batch=BATCH,
        canvases=predictor.canvases,
        long_side=predictor.long_side,
    )
    return itertools.islice(batches, None if images is None else -(-images // BATCH))
