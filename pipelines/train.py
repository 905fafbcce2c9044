"""Train a detector on a shard set.

    retinaray train --config small_r18 --name cells \
        --data.train runs/data/train --data.val runs/data/val

Repeating the command continues the run from its newest checkpoint, in the same MLflow run.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from cluster.compute.session import RayConfig
from cluster.runs.config import TrainOptions
from cluster.tracking.config import TrackingConfig
from pipelines.command_line import run_verb
from pipelines.terminal import next_command


class TrainVerb(TrainOptions):
    """Train RetinaNet."""

    FIRST: ClassVar[tuple[str, ...]] = (
        *("data.train", "data.val", "name", "pretrained", "model.backbone"),
        *("canvas.height", "canvas.width", "training.epochs", "training.batch_size"),
        *("training.workers", "training.gpus_per_worker", "optimizer.learning_rate"),
    )
    ray: RayConfig = Field(default=RayConfig(), description="where the work runs")
    tracking: TrackingConfig = Field(
        default=TrackingConfig(), description="where the run is recorded"
    )
    plan: bool = Field(
        default=False,
        description="say what would be read, booked and written; start nothing",
    )


def main(config: TrainVerb) -> None:
    from cluster.storage.uris import refuse_job_folder
    from pipelines.training_plan import plan_lines
    from pipelines.training_run import train

    refuse_job_folder("--storage", config.storage)
    training = TrainOptions.model_validate(
        config.model_dump(include=set(TrainOptions.model_fields))
    )
    if config.plan:
        print("\n".join(plan_lines(training, tracking=config.tracking)))
        return
    trained = train(training, ray=config.ray, tracking=config.tracking)
    print("\n".join(trained.lines()))
    uri = config.tracking.uri
    print(next_command("evaluate", run=trained.run, data=config.data.val, tracking__uri=uri))


def run() -> None:
    """The verb, with what was typed."""
    run_verb(
        TrainVerb,
        main,
        description=__doc__,
    )


if __name__ == "__main__":
    run()
