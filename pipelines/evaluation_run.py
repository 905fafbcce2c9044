"""A detector over a shard set: `evaluate` and `run` share it."""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.compute.session import RayConfig
from cluster.errors import PlainError, on_one_line
from cluster.runs import evaluations
from cluster.runs.evaluations import Evaluation
from cluster.runs.package_files import WEIGHT_FILES, build_package
from cluster.runs.run_folder import is_checkpoint_name
from cluster.scoring.compare_packages import NUMBERS, Candidate, compare_packages
from cluster.scoring.evaluate_package import Wanted, evaluate_package
from cluster.scoring.report_files import REPORT_FILES
from cluster.scoring.slices import check_columns
from cluster.storage import files, preflight, uris
from cluster.storage.pictures import OVERLAYS
from cluster.tracking.config import TrackingConfig
from cluster.tracking.environment import check_variables
from cluster.tracking.evaluation import NAME, Subject, log_evaluation
from cluster.tracking.logged_package import download_package
from cluster.tracking.preflight import check_server, has_run
from cluster.tracking.run import read_record
from detector.choices import WHOLE_PICTURE, ViewSettings
from detector.metrics import CocoTable
from pipelines.scoring_inputs import (
    Replicas,
    connect_for,
    find_model,
    given_classes,
    matched_classes,
    open_set,
)


@dataclass(frozen=True)
class Evaluated:
    """A table, the checkpoint or model version that it is of, and the folder with the files."""

    table: CocoTable
    scored: str
    output: str
    notes: tuple[str, ...]
    """What a reader of the table should know."""
    files: tuple[str, ...]
    """The names of the files in it, and of folders with files."""
    store: str | None = None
    """URI of the MLflow store that has the model; None for a checkpoint."""

    def lines(self) -> list[str]:
        """The result, for a terminal."""
        return [
            self.table.as_text(),
            *(f"note     {note}" for note in self.notes),
            f"scored   {self.scored}{f' in {self.store}' if self.store else ''}",
            f"written  {self.output}: {', '.join(self.files)}",
        ]


def evaluate(
    data: str,
    *,
    run: str | None = None,
    model: str | None = None,
    output: str | None = None,
    wanted: Wanted,
    max_detections: int | None = None,
    class_map: str | None = None,
    views: ViewSettings = WHOLE_PICTURE,
    replicas: Replicas,
    ray: RayConfig,
    tracking: TrackingConfig,
    storage: str,
) -> Evaluated:
    """Score a detector on the shard set `data`: the best checkpoint of the training run in the
    folder `run`, or the checkpoint that `run` is, or a registered `model`. The MLflow run of the
    training run then has the result too. `DataError` where the set has no object.

    `output` may be left out with `run`: it is a folder in that of the run. `class_map` is the URI
    of a file for `read_class_map`. `UsageError` where the classes of the set are not the model's.
    """
    shard_set = open_set(data)
    check_columns(shard_set, wanted.columns)
    run, chosen, checkpoint = (None, None, "") if run is None else _chosen(uris.absolute(run))
    given = given_classes(class_map)
    renamed = {name: to for name, to in (given or {}).items() if to != name}
    subject = Subject(
        shard_set.uri, shard_set.digest, max_detections, renamed, views, checkpoint=checkpoint
    )
    output = uris.absolute(output or uris.join(run or "", "evaluation", subject.folder))
    preflight.check_writable(output)
    recorded = None if run is None else _mlflow_run(run, tracking.uri)
    with tempfile.TemporaryDirectory(prefix="evaluate-") as scratch:
        package, scored, store = _package_of(
            chosen, model, scratch, tracking=tracking, storage=storage
        )
        classes = matched_classes(shard_set, package, scored, given)
        connect_for(replicas, ray)
        folder = f"{scratch}/evaluation"
        table, remarks = evaluate_package(
            package,
            shard_set,
            classes,
            folder,
            scored=scored,
            wanted=wanted,
            max_detections=max_detections,
            views=views,
            **vars(replicas),
        )
        written = _names_in(folder)
        _replace_results(folder, output, last="metrics.json")
        notes = [*classes.notes("data"), *remarks]
        if recorded is not None and chosen is not None and run is not None:
            name = subject.name_in(run)
            notes += _record(*recorded, folder, subject, name, step=chosen.images_seen)
    return Evaluated(table, scored, output, tuple(notes), written, store)


def _names_in(folder: str) -> tuple[str, ...]:
    """What is in a local folder: its files, then the folders that have some, with a slash."""
    entries = sorted(os.scandir(folder), key=lambda entry: (entry.is_dir(), entry.name))
    return tuple(
        f"{entry.name}/" if entry.is_dir() else entry.name
        for entry in entries
        if entry.is_file() or os.listdir(entry.path)
    )


def _chosen(run: str) -> tuple[str, Evaluation, str]:
    """The folder of the run, what to score, and the name of the checkpoint: `run` is the folder of
    a run, whose best checkpoint is scored and has no name here, or one of its checkpoints.
    """
    folder, name = os.path.split(run.rstrip("/"))
    if not is_checkpoint_name(name):
        return run, evaluations.best_checkpoint(run), ""
    averaged = files.exists(uris.join(run, WEIGHT_FILES["ema"]))
    images_seen = int(name.removeprefix("images-"))
    chosen = Evaluation(run, images_seen, 0, weights="ema" if averaged else "model")
    return os.path.dirname(folder), chosen, name


def _package_of(
    chosen: Evaluation | None,
    model: str | None,
    folder: str,
    *,
    tracking: TrackingConfig,
    storage: str,
) -> tuple[str, str, str | None]:
    """The package of a registered model below a local folder, its version and its store; or the
    package of a checkpoint, which has no store.
    """
    if chosen is None:
        assert model is not None, "give a run or a model"
        version, store = find_model(model, tracking, storage)
        return download_package(version, tracking=store, folder=folder), str(version), store
    package = f"{folder}/package"
    build_package(chosen.checkpoint, package, weights=chosen.weights)
    return package, chosen.checkpoint, None


def _record(
    store: str, run_id: str, folder: str, subject: Subject, name: str, *, step: int
) -> list[str]:
    """Log an evaluation, and return what to say about it. The result is written and must be shown,
    whatever MLflow does.
    """
    try:
        log_evaluation(store, run_id, folder, subject=subject, name=name, step=step)
    except Exception as error:
        return [f"not in MLflow ({store}): {on_one_line(str(error))[:300]}"]
    return [] if name == NAME else [f"named {name} in MLflow; its tag says what that is"]


def _mlflow_run(run: str, given: str | None) -> tuple[str, str] | None:
    """Store and id of the MLflow run that gets the evaluation of a training run. None, with a line
    that says so, where there is none, or the store does not work: the table is still wanted.
    """
    recorded = read_record(run)
    if recorded is None:
        return None
    check_variables()
    store = given or recorded.uri
    try:
        check_server(store, must_exist=True)
        if has_run(store, recorded.run_id):
            return store, recorded.run_id
        why = (
            f"MLflow at {store} has no run {recorded.run_id!r}, or has it in its trash;"
            f" MLFLOW_TRACKING_URI={shlex.quote(store)} mlflow runs restore --run-id"
            f" {recorded.run_id} brings it back"
        )
    except PlainError as error:
        why = str(error)
    print(f"note: the evaluation is not recorded: {why}")
    return None


def _replace_results(folder: str, output: str, *, last: str) -> None:
    """Write a local folder to `output`. No report or drawing of former results stays beside these;
    their file `last`, which says that they are whole, goes first.
    """
    if files.exists(uris.join(output, last)):
        files.delete_file(uris.join(output, last))
        files.delete_folder(uris.join(output, OVERLAYS))
        for name in REPORT_FILES:
            files.delete_file(uris.join(output, name))
    files.upload_folder(folder, output, last=last)


@dataclass(frozen=True)
class Comparison:
    """What `compare` found, to read, and the folder with the files."""

    said: tuple[str, ...]
    names: tuple[str, str]
    output: str
    files: tuple[str, ...]
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """The result, for a terminal."""
        return [
            *self.said,
            *(f"note     {note}" for note in self.notes),
            f"first    {self.names[0]}",
            f"second   {self.names[1]}",
            f"written  {self.output}: {', '.join(self.files)}",
        ]


def compare(
    data: str,
    pair: Sequence[str],
    *,
    output: str,
    precision: float | None = None,
    max_detections: int | None = None,
    class_map: str | None = None,
    views: ViewSettings = WHOLE_PICTURE,
    replicas: Replicas,
    ray: RayConfig,
    tracking: TrackingConfig,
    storage: str,
) -> Comparison:
    """Score two detectors on the shard set `data`: each is the folder of a run, one of its
    checkpoints, or a registered model. See `evaluate`.
    """
    shard_set = open_set(data)
    given = given_classes(class_map)
    output = uris.absolute(output)
    preflight.check_writable(output)
    with tempfile.TemporaryDirectory(prefix="compare-") as scratch:
        candidates = []
        for number, detector in enumerate(pair):
            registered = detector.startswith("models:")
            chosen = None if registered else _chosen(uris.absolute(detector))[1]
            package, name, _ = _package_of(
                chosen,
                detector if registered else None,
                f"{scratch}/{number}",
                tracking=tracking,
                storage=storage,
            )
            classes = matched_classes(shard_set, package, name, given)
            candidates.append(Candidate(package, name, classes))
        connect_for(replicas, ray)
        folder = f"{scratch}/comparison"
        first, second = candidates
        notes = first.classes.notes("data")
        said = compare_packages(
            first,
            second,
            shard_set,
            folder,
            precision=precision,
            max_detections=max_detections,
            views=views,
            notes=notes,
            **vars(replicas),
        )
        written = _names_in(folder)
        files.upload_folder(folder, output, last=NUMBERS)
    return Comparison(tuple(said), (first.name, second.name), output, written, notes)
