"""Train a detector on a shard set.

    python -m pipelines.train --config pipelines/recipes/small_r18.yaml --data.train runs/data/train
    --data.val runs/data/val --name cells

Repeating the command continues the run from its newest checkpoint, in the same MLflow run.
"""

from __future__ import annotations

from pydantic import Field

from cluster.compute.session import RayConfig
from cluster.runs.config import TrainConfig
from cluster.runs.evaluations import Evaluation
from cluster.tracking.config import TrackingConfig
from pipelines.command_line import run_verb


class TrainVerb(TrainConfig):
    """Train RetinaNet."""

    ray: RayConfig = Field(RayConfig(), description="where the work runs")
    tracking: TrackingConfig = Field(TrackingConfig(), description="where the run is recorded")


def main(config: TrainVerb) -> None:
    train(config, ray=config.ray, tracking=config.tracking)


def train(config: TrainConfig, *, ray: RayConfig, tracking: TrackingConfig) -> Evaluation:
    """Run the training under one MLflow run, print progress, and return the run's best.json."""
    from cluster.compute import resources, session
    from cluster.runs import run_folder
    from cluster.tracking.config import check_server, tracking_uri, ui_command
    from cluster.tracking.training_run import Tracker
    from cluster.training import launch, placement, preflight
    from cluster.training.console import Progress
    from cluster.training.event_channel import Guarded

    config = TrainConfig.model_validate(config.model_dump(include=set(TrainConfig.model_fields)))
    uri = tracking_uri(tracking.uri, config.storage)
    check_server(uri)
    checked = preflight.check(config)
    session.connect(ray.address, num_cpus=ray.num_cpus, logs=ray.logs, needs=["ray.train.torch"])
    training = config.training
    workers = (
        f"workers {training.workers}"
        if training.min_workers is None
        else f"min_workers {training.min_workers}"
    )
    what = (
        f"training.{workers} x (training.cpus_per_worker {training.cpus_per_worker:g} +"
        f" {launch.READ_CPUS:g} for reading)"
    )
    if training.evaluation == "beside":
        what += (
            f" and {training.evaluation_workers} x (evaluation_cpus {training.evaluation_cpus:g} +"
            f" {launch.READ_CPUS:g}) of training.evaluation"
        )
    resources.check_resources(placement.needs(config), what=what, autoscaling=ray.autoscaling)

    progress = Progress(config.name, interval=config.training.log_seconds)
    tracker = Tracker(
        uri=uri,
        experiment=tracking.experiment,
        storage=config.storage,
        run=config.run_uri,
        name=config.name,
        params=run_folder.flatten(checked.identity),
        config=config.model_dump_json(indent=1),
    )

    consumers = [Guarded(progress), Guarded(tracker)]

    def on_event(event: dict) -> None:
        for consumer in consumers:
            consumer(event)

    status = "FAILED"
    try:
        best = launch.launch(config, checked=checked, on_event=on_event)
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        tracker.finish(status)
    print(f"run      {config.run_uri}")
    print(
        f"best     AP {best.ap:.4f}, AP50 {best.metrics['AP50']:.4f} after {best.epoch} epochs,"
        f" {best.checkpoint}"
    )
    print(f"see it   {ui_command(uri)}")
    return best


if __name__ == "__main__":
    run_verb(
        TrainVerb,
        main,
        description=(
            "Train RetinaNet on a shard set; the same command continues an interrupted run."
        ),
    )
