"""What the number of workers in a group means for each of them: batch, learning rate, threads,
precision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import ray
import torch

from cluster.compute.resources import usable_cpus
from cluster.loading import epoch_plan
from cluster.runs.events import Started
from cluster.runs.training_config import TrainingConfig
from cluster.training.ranks import Ranks
from cluster.training.state import Progress
from detector.optimizer import batch_factor, learning_rate_factor
from detector.precision import autocast_dtype, computes_bfloat16
from detector.training_config import OptimizerConfig


def shared_batch(training: TrainingConfig, *, ranks: int) -> tuple[list[int], int]:
    """Images of every rank's batch, and the number of parts in which each rank runs its own: no
    part is larger than in a group of full size, or by one image at most. All ranks make equally
    many forward passes, for normalisation may exchange statistics in them.
    """
    batch, full_share = training.batch_size, training.batch_size // training.workers
    batches = (
        [full_share] * ranks
        if training.resized_batch == "scale"
        else epoch_plan.split_batch(batch, ranks=ranks)
    )
    full_part = full_share // training.accumulate
    return batches, min(-(-max(batches) // full_part), min(batches))


def learning_rate(
    chosen: OptimizerConfig, *, batch: int, configured: int, images_total: int
) -> Callable[[int], float]:
    """The learning rate as a function of images seen, for a global `batch` in place of the
    `configured` one.
    """
    peak = chosen.learning_rate * batch_factor(batch, configured, name=chosen.name)

    def rate(images_seen: int) -> float:
        return peak * learning_rate_factor(
            images_seen,
            images_total,
            schedule=chosen.schedule,
            warmup=chosen.warmup,
            milestones=chosen.milestones,
        )

    return rate


def threads_each(workers: int) -> int:
    """CPU threads of each of the `workers` on this node: as many as this process may use, but no
    more than Ray counts there, which in a container is its quota. More threads than cores wait for
    each other by spinning.
    """
    usable = usable_cpus()
    here = ray.get_runtime_context().get_node_id()
    counted = next(
        node["Resources"].get("CPU", usable) for node in ray.nodes() if node["NodeID"] == here
    )
    return max(1, int(min(usable, counted)) // workers)


def amp_dtype_of(ranks: Ranks, *, wanted: bool) -> torch.dtype | None:
    """One precision for all: if one node lacks bfloat16 that the others have, its gradients would
    differ.
    """
    return autocast_dtype(
        ranks.device, amp=wanted and ranks.everywhere(computes_bfloat16(ranks.device))
    )


def start_event(
    training: TrainingConfig,
    ranks: Ranks,
    batches: Sequence[int],
    *,
    parts: int,
    amp_dtype: torch.dtype | None,
    images_total: int,
) -> Callable[[Progress], Started]:
    """What to tell when training starts with this group at some progress."""
    precision = "float32, bfloat16 is not faster here" if training.amp else "float32"

    def started(progress: Progress) -> Started:
        return Started(
            ranks=ranks.size,
            workers=training.workers,
            batch_size=training.batch_size,
            batch=sum(batches),
            parts=parts,
            threads=torch.get_num_threads(),
            precision=precision if amp_dtype is None else "bfloat16",
            images_seen=progress.images_seen,
            images_total=images_total,
            epoch=progress.epoch,
        )

    return started
