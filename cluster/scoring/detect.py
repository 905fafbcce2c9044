"""The detections of a shard set, in shares: over the ranks of a training, or over Ray tasks."""

from __future__ import annotations

from collections.abc import Callable

import ray

from cluster.compute.resources import reading_worker, task_options
from cluster.compute.session import fetch
from cluster.loading.evaluation_batches import evaluation_batches
from cluster.loading.prefetch import ordered_map
from cluster.runs.package_files import PackageFiles, load_predictor
from cluster.shards.index import ShardSet, open_shard_set
from detector.batch import Batch
from detector.choices import WHOLE_PICTURE, ViewSettings
from detector.decode import Detections
from detector.predict import Predictor
from detector.tiling import View

BATCH = 8
"""Images that the network takes at once."""


def detect_set(
    package: PackageFiles,
    data: str,
    *,
    workers: int,
    cpus_per_worker: float,
    gpus_per_worker: float = 0,
    here: bool = False,
    settings: ViewSettings = WHOLE_PICTURE,
) -> dict[int, Detections]:
    """The detections of every image of a shard set, by image id, from `workers` Ray tasks. A caller
    that is such a task itself computes one of the shares `here`. `settings`: see `detect_share`.
    """
    package_ref = ray.put(package)
    threads, device = max(1, int(cpus_per_worker)), "cuda" if gpus_per_worker else "cpu"
    # No retries of a single task: the caller retries the whole evaluation.
    task = ray.remote(_detect_share).options(
        **task_options(reading_worker(cpus_per_worker, gpus_per_worker)), max_retries=0
    )
    shares = [
        task.remote(package_ref, data, rank, workers, threads, device, settings)
        for rank in range(int(here), workers)
    ]
    detections = {}
    if here:
        detections = _detect_share(package, data, 0, workers, threads, device, settings)
    for share in fetch(shares):
        detections |= share
    return detections


def _detect_share(
    package: PackageFiles,
    data: str,
    rank: int,
    ranks: int,
    threads: int,
    device: str,
    settings: ViewSettings,
) -> dict[int, Detections]:
    """The work of one task of `detect_set`. The threads run the network on CPUs, and decode images
    beside a GPU.
    """
    on_cpu = device == "cpu"
    return detect_share(
        load_predictor(package, device),
        open_shard_set(data),
        rank=rank,
        ranks=ranks,
        threads=threads if on_cpu else 1,
        decode_threads=1 if on_cpu else threads,
        settings=settings,
    )


def detect_share(
    predictor: Predictor,
    shard_set: ShardSet,
    *,
    rank: int = 0,
    ranks: int = 1,
    threads: int = 1,
    decode_threads: int = 1,
    progressed: Callable[[], None] = lambda: None,
    settings: ViewSettings = WHOLE_PICTURE,
) -> dict[int, Detections]:
    """The detections of one rank's share of a set, by image id; the same to the last bit for any
    number of ranks and threads of a machine. `progressed` is called after every batch. `settings`
    say which views of each image the network sees; by default the whole image once.

    The batches do not depend on the ranks. On CPUs one thread runs a whole batch, and several
    batches run side by side, because a float32 convolution on two threads rounds differently.
    """

    def detect(item: tuple[Batch, list[View]]) -> tuple[list[int], list[View], list[Detections]]:
        batch, views = item
        found = predictor.detect(batch, [view.size for view in views], flip=settings.flip)
        return batch.image_ids.tolist(), views, found

    predictor.model.eval()
    batches = evaluation_batches(
        shard_set,
        rank=rank,
        ranks=ranks,
        batch=BATCH,
        canvases=predictor.canvases,
        long_side=predictor.long_side,
        threads=decode_threads,
        settings=settings,
    )
    merger, detections = predictor.merger(), dict[int, Detections]()
    for image_ids, views, found in ordered_map(detect, batches, threads=threads):
        detections |= merger.add(image_ids, views, found)
        progressed()
    return detections
