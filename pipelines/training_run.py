"""A training under its MLflow run, with progress on the terminal. `train` and `run` share it."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.compute import resources, session
from cluster.compute.session import RayConfig
from cluster.preflight.cluster import refuse_unfit_nodes
from cluster.runs.config import TrainConfig, TrainOptions
from cluster.runs.evaluations import Evaluation
from cluster.runs.events import Event
from cluster.storage.flat_json import flatten
from cluster.storage.preflight import check_writable
from cluster.tracking.config import TrackingConfig, experiment_name, tracking_uri, ui_command
from cluster.tracking.preflight import check_experiment, check_server
from cluster.tracking.training_pictures import TrainingPictures
from cluster.tracking.training_run import Tracker
from cluster.training import automatic, launch, placement, preflight
from cluster.training.console import Console
from cluster.training.event_channel import Guarded


@dataclass(frozen=True)
class Trained:
    """A finished training: its folder, its best evaluation and the MLflow store of its run."""

    run: str
    best: Evaluation
    tracking_uri: str

    def lines(self) -> list[str]:
        """The result, for a terminal."""
        return [
            f"run      {self.run}",
            (
                f"best     AP {self.best.shown('AP')}, AP50 {self.best.shown('AP50')} after"
                f" {self.best.epoch} epochs, {self.best.checkpoint}"
            ),
            f"see it   {ui_command(self.tracking_uri)}",
        ]


def train(options: TrainOptions, *, ray: RayConfig, tracking: TrackingConfig) -> Trained:
    """Train, continue the training, or find it finished. Errors: see `preflight.check` and
    `launch.launch`.
    """
    options = options.with_absolute_uris()
    uri = tracking_uri(tracking.uri, options.storage)
    check_writable(options.storage)
    check_server(uri)
    check_experiment(uri, experiment_name(tracking.experiment))
    options, fitted = automatic.fit_to_pictures(options)
    checked = preflight.check(options)
    for note in (*fitted, *checked.notes):
        print(f"note: {note}")
    for warning in checked.warnings:
        print(f"warning: {warning}")
    session.connect(ray.address, num_cpus=ray.num_cpus, logs=ray.logs, needs=["ray.train.torch"])
    config = settle(options)
    resources.check_resources(
        placement.needs(config), what=_request(config), autoscaling=ray.autoscaling
    )
    refuse_unfit_nodes(config.storage, gpus=config.training.gpus_per_worker > 0)

    console = Console(config.name, interval=config.training.log_seconds)
    tracker = Tracker(
        uri=uri,
        experiment=experiment_name(tracking.experiment),
        run=config.run_uri,
        name=config.name,
        params=flatten(checked.identity),
        config=config.model_dump_json(indent=1),
        pictures=TrainingPictures(config.name, checked.train_set, config.data.val),
    )
    consumers = [Guarded(console), Guarded(tracker)]

    def on_event(event: Event) -> None:
        for consumer in consumers:
            consumer(event)

    status = "FAILED"
    try:
        best = launch.launch(config, checked=checked, on_event=on_event, pictures=True)
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        tracker.finish(status)
    return Trained(config.run_uri, best, uri)


def settle(options: TrainOptions) -> TrainConfig:
    """The training with a value for each `auto`, from the nodes of the cluster; each is said. Ray
    must be connected.
    """
    choice = automatic.choose(options.training, resources.node_resources())
    for reason in choice.reasons:
        print(f"note: {reason}")
    return options.settled(
        workers=choice.workers,
        gpus_per_worker=choice.gpus_per_worker,
        decode_threads=choice.decode_threads,
    )


def _request(config: TrainConfig) -> str:
    """What the training books, in the words of its options."""
    training = config.training
    workers = (
        f"workers {training.workers}"
        if training.min_workers is None
        else f"min_workers {training.min_workers}"
    )
    request = (
        f"training.{workers} x (training.cpus_per_worker {training.cpus_per_worker:g} +"
        f" {resources.READ_CPUS:g} for reading)"
    )
    if training.evaluation == "beside":
        request += (
            f" and {training.evaluation_workers} x (evaluation_cpus {training.evaluation_cpus:g} +"
            f" {resources.READ_CPUS:g}) of training.evaluation"
        )
    return request
