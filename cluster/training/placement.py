"""What a training books, and where it decodes and evaluates."""

from __future__ import annotations

from typing import Any

from cluster.compute.resources import detection_shares, reading_worker, unplaced
from cluster.runs.config import TrainConfig
from cluster.storage.uris import absolute
from cluster.training.background_evaluation import Evaluator


def evaluator_of(config: TrainConfig, board: Any) -> Evaluator:
    def tell(kind: str, **values: Any) -> None:
        if board is not None:
            board.put.remote({"kind": kind, **values})

    weights = "ema" if config.optimizer.ema_images else "model"
    return Evaluator(
        config.run_uri,
        absolute(config.data.val),
        weights=weights,
        share=config.evaluation_share,
        tell=tell,
    )


def workers_share(config: TrainConfig) -> dict[str, Any]:
    return config.training.model_dump(include={"workers", "cpus_per_worker", "gpus_per_worker"})


def evaluation_place(config: TrainConfig) -> str:
    """`beside` or `between`, see `TrainingConfig.evaluation`; Ray must be connected."""
    from ray._private.state import available_resources_per_node

    if config.training.evaluation != "auto":
        return config.training.evaluation
    # All workers: one that comes later would find an evaluation in its place.
    asked = needs(config, workers=config.training.workers, evaluation="beside")
    return "between" if unplaced(asked, list(available_resources_per_node().values())) else "beside"


def decode_place(choice: str, *, gpus_per_worker: float) -> str:
    """`threads` or `tasks`, see `TrainingConfig.decode`; Ray must be connected."""
    import ray

    if choice != "auto":
        return choice
    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return (
        "tasks"
        if gpus_per_worker and any(held.get("CPU") and not held.get("GPU") for held in resources)
        else "threads"
    )


def needs(
    config: TrainConfig, *, workers: int | None = None, evaluation: str | None = None
) -> list[dict[str, float]]:
    """The processes of a training with the CPUs and GPUs that each books: with so many `workers`,
    unset as few as it may have, and with an evaluation beside it where that is `beside`; a task
    that decodes needs a core, and a share to read, of its own.
    """
    number = {"workers": workers or config.training.min_workers or config.training.workers}
    beside = (evaluation or config.training.evaluation) == "beside"
    shares = [workers_share(config) | number, *([config.evaluation_share] if beside else [])]
    return [
        *(process for share in shares for process in detection_shares(**share)),
        *([reading_worker(1, 0)] if config.training.decode == "tasks" else []),
    ]


def wanted(config: TrainConfig) -> str:
    """The fewest workers in words, with what each books."""
    training = config.training
    gpus = f" and {training.gpus_per_worker:g} GPUs" if training.gpus_per_worker else ""
    return (
        f"{training.min_workers or training.workers} workers of {training.cpus_per_worker:g}"
        f" CPUs{gpus}"
    )
