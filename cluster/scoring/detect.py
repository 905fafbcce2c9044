"""A model over images -> detections, spread over the cluster: over files by Ray Data (`predict`),
over a shard set by shares (evaluation).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import ray

from cluster.compute.resources import READ_CPUS
from cluster.compute.session import fetch
from cluster.loading.evaluation_batches import evaluation_batches
from cluster.loading.prefetch import ordered_map
from cluster.runs.package_files import load_predictor
from cluster.shards.index import ShardSet, open_shard_set
from detector.decode import Detections
from detector.predict import Predictor

BATCH = 8
"""Images a network takes at once."""


def detect_set(
    package: dict[str, bytes],
    data: str,
    *,
    workers: int,
    cpus_per_worker: float,
    gpus_per_worker: float = 0,
    here: bool = False,
) -> dict[int, Detections]:
    """The detections of every image of a shard set, from `workers` Ray tasks; one share is made
    `here`, by a caller that is such a task itself.
    """
    package_ref = ray.put(package)
    threads, device = max(1, int(cpus_per_worker)), "cuda" if gpus_per_worker else "cpu"
    # A task that failed is tried again by whoever asked for the whole.
    task = ray.remote(detect_share).options(
        num_cpus=cpus_per_worker + READ_CPUS, num_gpus=gpus_per_worker or None, max_retries=0
    )
    parts = [
        task.remote(package_ref, data, rank, workers, threads, device)
        for rank in range(int(here), workers)
    ]
    found = detect_share(package, data, 0, workers, threads, device) if here else {}
    for part in fetch(parts):
        found |= part
    return found


def detect_share(
    package: dict[str, bytes], data: str, rank: int, ranks: int, threads: int, device: str
) -> dict[int, Detections]:
    """What `detect_set` runs in each task. Threads are for the network on CPUs, for the decoder
    beside a GPU.
    """
    apart = {"threads": threads} if device == "cpu" else {"decode_threads": threads}
    return detections(
        load_predictor(package, device), open_shard_set(data), rank=rank, ranks=ranks, **apart
    )


def detections(
    predictor: Predictor,
    shard_set: ShardSet,
    *,
    rank: int = 0,
    ranks: int = 1,
    threads: int = 1,
    decode_threads: int = 1,
    progressed: Callable[[], None] = lambda: None,
) -> dict[int, Detections]:
    """The detections of one rank's share of a set, by image id: the same to the last bit for any
    number of ranks and threads of a machine. `progressed` is called after every batch.

    The batches do not depend on the ranks, and on CPUs each is one thread's, several batches side
    by side: in float32 two threads to a convolution round otherwise than one.
    """
    predictor.model.eval()
    frame = dict(canvases=predictor.canvases, long_side=predictor.long_side)
    batches = evaluation_batches(
        shard_set, rank=rank, ranks=ranks, batch=BATCH, threads=decode_threads, **frame
    )
    found: dict[int, Detections] = {}
    for ids, of_images in ordered_map(
        lambda pair: (pair[0].image_ids.tolist(), predictor.detect(*pair)), batches, threads=threads
    ):
        found.update(zip(ids, of_images, strict=True))
        progressed()
    return found


def detections_of(row: dict[str, Any]) -> Detections:
    return Detections(
        np.asarray(row["boxes"], np.float32).reshape(-1, 4),
        np.asarray(row["scores"], np.float32),
        np.asarray(row["labels"], np.int64),
    )
