"""A detector that `evaluate` scores: the best checkpoint of a training run, one of its checkpoints,
or a registered version; its package, and the MLflow run that gets the results.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass

from cluster.errors import PlainError, on_one_line
from cluster.runs import evaluations, run_folder
from cluster.runs.evaluations import Evaluation
from cluster.runs.package_files import WEIGHT_FILES, build_package
from cluster.storage import files, preflight, uris
from cluster.tracking.config import TrackingConfig
from cluster.tracking.environment import check_variables
from cluster.tracking.evaluation import NAME, Subject
from cluster.tracking.logged_package import download_package
from cluster.tracking.preflight import check_server, has_run
from cluster.tracking.registry import Version, source_of
from cluster.tracking.run import read_record
from pipelines.scoring_inputs import find_model


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of the training run in the folder `run`."""

    run: str
    chosen: Evaluation
    checkpoint: str
    """Its name, where it was given and not its run; else empty."""
    models = ()
    store = None

    @property
    def name(self) -> str:
        return self.chosen.checkpoint

    def package(self, folder: str) -> str:
        """Its package, made below a local folder."""
        package = f"{folder}/package"
        build_package(self.chosen.checkpoint, package, weights=self.chosen.weights)
        return package


@dataclass(frozen=True)
class Registered:
    """A version of a model in the MLflow store `store`."""

    version: Version
    store: str
    run = None
    checkpoint = ""

    @property
    def name(self) -> str:
        return str(self.version)

    @property
    def models(self) -> tuple[str, ...]:
        return (self.name,)

    def package(self, folder: str) -> str:
        """Its package, downloaded below a local folder."""
        return download_package(self.version, tracking=self.store, folder=folder)


Detector = Checkpoint | Registered


@dataclass(frozen=True)
class MlflowRun:
    """Where results are logged. `step` is the images seen of the detector."""

    store: str
    run_id: str
    step: int


def find_detector(given: str, tracking: TrackingConfig, storage: str) -> Detector:
    """A registered model, models:/..., or what `find_checkpoint` finds."""
    if given.startswith("models:"):
        return find_registered(given, tracking, storage)
    return find_checkpoint(given)


def find_registered(given: str, tracking: TrackingConfig, storage: str) -> Registered:
    """See `find_model`."""
    return Registered(*find_model(given, tracking, storage))


def find_checkpoint(given: str) -> Checkpoint:
    """The best checkpoint of the training run in the folder `given`, or the checkpoint that it is.
    `UsageError` where it is not there.
    """
    uri = uris.absolute(given)
    preflight.check_reachable(uri)
    folder, name = os.path.split(uri)
    if not run_folder.is_checkpoint_name(name):
        return Checkpoint(uri, evaluations.best_checkpoint(uri), "")
    run_folder.refuse_no_checkpoint(uri, option="run")
    averaged = files.exists(uris.join(uri, WEIGHT_FILES["ema"]))
    images_seen = int(name.removeprefix("images-"))
    chosen = Evaluation(uri, images_seen, 0, weights="ema" if averaged else "model")
    return Checkpoint(os.path.dirname(folder), chosen, name)


def mlflow_run(detector: Detector, given: str | None) -> MlflowRun | None:
    """The MLflow run of the training, at the store `given` where it has moved. None, with a line
    that says so, where there is none, or the store does not work: the table is still wanted.
    """
    if isinstance(detector, Registered):
        source = source_of(detector.version, tracking=detector.store)
        place = None if source is None else MlflowRun(detector.store, *source)
    else:
        recorded = read_record(detector.run)
        place = recorded and MlflowRun(
            given or recorded.uri, recorded.run_id, detector.chosen.images_seen
        )
    if place is None:
        return None
    check_variables()
    try:
        check_server(place.store, must_exist=True)
        if has_run(place.store, place.run_id):
            return place
        why = (
            f"MLflow at {place.store} has no run {place.run_id!r}, or has it in its trash;"
            f" MLFLOW_TRACKING_URI={shlex.quote(place.store)} mlflow runs restore --run-id"
            f" {place.run_id} brings it back"
        )
    except PlainError as error:
        why = str(error)
    print(f"note: the evaluation is not recorded: {why}")
    return None


def record(
    log: Callable[..., None], place: MlflowRun, folder: str, subject: Subject, name: str
) -> list[str]:
    """Log the results in a local folder with `log`, a function of `cluster.tracking.evaluation`,
    and return what to say about it. They are written and must be shown, whatever MLflow does.
    """
    try:
        log(place.store, place.run_id, folder, subject=subject, name=name, step=place.step)
    except Exception as error:
        return [f"not in MLflow ({place.store}): {on_one_line(str(error))[:300]}"]
    return [] if name == NAME else [f"named {name} in MLflow; its tag says what that is"]
