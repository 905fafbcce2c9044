"""Which resources a training books, and where it decodes and evaluates."""

from __future__ import annotations

from typing import Literal

from cluster.compute.resources import decoding_shares, detection_shares, node_resources, unplaced
from cluster.runs.config import DetectionShare, TrainConfig


def workers_share(config: TrainConfig) -> DetectionShare:
    """What the workers book, in the form of `detect_set`'s keywords."""
    training = config.training
    return {
        "workers": training.workers,
        "cpus_per_worker": training.cpus_per_worker,
        "gpus_per_worker": training.gpus_per_worker,
    }


def evaluation_place(config: TrainConfig) -> Literal["beside", "between"]:
    """Where checkpoints are evaluated, see `TrainingConfig.evaluation`; Ray must be connected."""
    if config.training.evaluation != "auto":
        return config.training.evaluation
    # Imported here: it imports Ray Train, which takes seconds.
    from cluster.training import ray_internals

    # Room for all workers: one that joins later would find an evaluation in its place.
    wanted = needs(config, workers=config.training.workers, evaluation="beside")
    fits = not unplaced(wanted, ray_internals.free_resources_of_nodes())
    return "beside" if fits else "between"


def decode_place(
    choice: Literal["auto", "threads", "tasks"], *, gpus_per_worker: float
) -> Literal["threads", "tasks"]:
    """Where images are decoded, see `TrainingConfig.decode`; Ray must be connected."""
    if choice != "auto":
        return choice
    nodes = node_resources()
    has_cpu_nodes = any(node.get("CPU") and not node.get("GPU") for node in nodes)
    return "tasks" if gpus_per_worker and has_cpu_nodes else "threads"


def needs(
    config: TrainConfig,
    *,
    workers: int | None = None,
    evaluation: Literal["auto", "beside", "between"] | None = None,
) -> list[dict[str, float]]:
    """The processes of a training, each with the CPUs and GPUs that it books: with this number of
    `workers`, by default the fewest allowed, with those of an `evaluation` beside it, and with the
    tasks that decode.
    """
    number = workers or config.training.min_workers or config.training.workers
    shares: list[DetectionShare] = [{**workers_share(config), "workers": number}]
    if (evaluation or config.training.evaluation) == "beside":
        shares.append(config.evaluation_share)
    processes = [process for share in shares for process in detection_shares(**share)]
    if config.training.decode == "tasks":
        processes += decoding_shares()
    return processes


def describe_workers(config: TrainConfig) -> str:
    """The fewest workers with which training starts, and what each books, in words."""
    training = config.training
    gpus = f" and {training.gpus_per_worker:g} GPUs" if training.gpus_per_worker else ""
    return (
        f"{training.min_workers or training.workers} workers of {training.cpus_per_worker:g}"
        f" CPUs{gpus}"
    )
