"""What `auto` means for a training: workers, GPUs and threads, decided from the cluster's nodes;
and its canvases, from the pictures, where none is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.compute.resources import (
    Resources,
    decoding_shares,
    detection_shares,
    total,
    unplaced,
)
from cluster.runs.config import Options
from cluster.runs.training_config import MOST_DECODE_THREADS, TrainingOptions
from cluster.shards.index import open_shard_set
from cluster.shards.read import read_columns
from cluster.storage.preflight import check_reachable
from detector.canvas_fit import fit_canvas

CPU_WORKERS = 2
"""Of a cluster without GPUs that has one node."""


@dataclass(frozen=True)
class Choice:
    """The values of a training's `auto` settings. A setting that was given keeps its value."""

    workers: int
    gpus_per_worker: int
    decode_threads: int
    reasons: tuple[str, ...]
    """A line for each value that was chosen, with its reason."""


def choose(training: TrainingOptions, nodes: Sequence[Resources]) -> Choice:
    """The values for `nodes`, each with all its CPUs and GPUs, also those that are in use."""
    reasons = list[str]()
    gpus = training.gpus_per_worker
    if gpus == "auto":
        gpus, reason = _gpus(training, nodes)
        reasons.append(_line("gpus_per_worker", gpus, reason))
    workers = training.workers
    if workers == "auto":
        workers, reason = _workers(training, nodes, gpus)
        reasons.insert(0, _line("workers", workers, reason))
    threads = training.decode_threads
    if threads == "auto":
        threads, reason = _decode_threads(nodes, gpus)
        reasons.append(_line("decode_threads", threads, reason))
    return Choice(workers, gpus, threads, tuple(reasons))


def _line(name: str, value: int, reason: str) -> str:
    return f"training.{name} {value}: {reason} (auto; --training.{name} changes it)"


def _gpus(training: TrainingOptions, nodes: Sequence[Resources]) -> tuple[int, str]:
    there = int(total(nodes)["GPU"])
    if not there:
        return 0, "the cluster has no GPUs"
    if training.workers != "auto" and not _fit(training, nodes, training.workers, 1):
        return 0, f"{training.workers} workers with a GPU each do not fit the cluster, GPUs {there}"
    return 1, f"the cluster has GPUs, {there} in all"


def _workers(training: TrainingOptions, nodes: Sequence[Resources], gpus: int) -> tuple[int, str]:
    """The largest number that divides the batch, has room, and is not above what is useful."""
    there, computing = int(total(nodes)["GPU"]), sum(bool(node.get("CPU")) for node in nodes)
    wanted = there if gpus else max(CPU_WORKERS, computing)
    possible = _divisors(training)
    fitting = [n for n in possible if n <= wanted and _fit(training, nodes, n, gpus)]
    chosen = max(fitting, default=min(possible))
    if chosen < wanted and _fit(training, nodes, chosen + 1, gpus):
        reason = f"it splits training.batch_size {training.batch_size} evenly"
        if gpus:
            reason += f" and uses {chosen} of {there} GPUs"
    elif chosen < wanted:
        reason = "the cluster has no room for more"
    elif gpus:
        reason = "one for each GPU"
    else:
        reason = "one for each node" if computing >= CPU_WORKERS else "they share the CPUs"
    return chosen, reason


def _divisors(training: TrainingOptions) -> list[int]:
    """Numbers of workers that get equal batches, of two images or more where that is possible, in
    equal parts; at least `min_workers`. Batch normalisation, and a GPU, do badly with one image.
    """
    batch, fewest = training.batch_size, training.min_workers or 1
    even = [
        n
        for n in range(fewest, batch + 1)
        if batch % n == 0 and batch // n % training.accumulate == 0
    ]
    return [n for n in even if batch // n > 1] or even or [fewest]


def _fit(training: TrainingOptions, nodes: Sequence[Resources], workers: int, gpus: int) -> bool:
    """Whether the idle cluster has room for so many workers, and for what was asked for beside
    them.
    """
    processes = detection_shares(
        workers=workers, cpus_per_worker=training.cpus_per_worker, gpus_per_worker=gpus
    )
    if training.evaluation == "beside":
        booked = training.evaluation_gpus
        processes += detection_shares(
            workers=training.evaluation_workers,
            cpus_per_worker=training.evaluation_cpus,
            gpus_per_worker=gpus if booked is None else booked,
        )
    if training.decode == "tasks":
        processes += decoding_shares()
    return not unplaced(processes, nodes)


def _decode_threads(nodes: Sequence[Resources], gpus: int) -> tuple[int, str]:
    if not gpus:
        return 1, "without a GPU the network needs the other cores"
    with_gpu = [node for node in nodes if node.get("GPU")]
    cpus = min((int(node.get("CPU", 0) // node["GPU"]) for node in with_gpu), default=1)
    threads = min(MOST_DECODE_THREADS, max(1, cpus - 1))
    return threads, f"a node has {cpus} CPUs for each GPU"


def fit_to_pictures(config: Options) -> tuple[Options, tuple[str, ...]]:
    """The training with canvases for the pictures of data.train, and a line that says so; the same
    training and no line where a canvas was given. The same set always gets the same canvases.
    """
    if config.canvas.is_given:
        return config, ()
    check_reachable(config.data.train)
    train_set = open_shard_set(config.data.train)
    if not train_set.num_rows:
        return config, ()
    sizes = read_columns(train_set, ["height", "width"])
    fitted = config.with_canvas(fit_canvas(sizes["height"].to_numpy(), sizes["width"].to_numpy()))
    shown = " and ".join(f"{height}x{width}" for height, width in fitted.canvas.canvases)
    return fitted, (
        f"canvas {shown}: fits the pictures of data.train (--canvas.height and --canvas.width, or"
        " --canvas.shapes, change it)",
    )
