"""A detector over a shard set: `evaluate` and `run` share it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.compute.session import RayConfig
from cluster.scoring.evaluate_package import Wanted, evaluate_package
from cluster.scoring.report_files import REPORT_FILES
from cluster.scoring.slices import check_columns
from cluster.storage import files, preflight, uris
from cluster.storage.pictures import OVERLAYS
from cluster.storage.scratch import scratch_folder
from cluster.tracking.config import TrackingConfig
from cluster.tracking.evaluation import Subject, log_evaluation
from detector.choices import WHOLE_PICTURE, ViewSettings
from detector.metrics import CocoTable
from pipelines.data_section import DataSection
from pipelines.evaluation_set import evaluation_set
from pipelines.scored_detector import (
    find_checkpoint,
    find_registered,
    mlflow_run,
    record,
)
from pipelines.scoring_inputs import Replicas, connect_for, given_classes, matched_classes


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
    data: str | DataSection,
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
    """Score a detector on the shard set `data`, or on annotated images, see `evaluation_set`: the
    best checkpoint of the training run in the folder `run`, or the checkpoint that `run` is, or a
    registered `model`. The MLflow run of the training then has the result too. `DataError` where
    the set has no object.

    `output` may be left out with `run`: it is a folder in that of the run. `class_map` is the URI
    of a file for `read_class_map`. `UsageError` where the classes of the set are not the model's.
    """
    if model is not None:
        detector = find_registered(model, tracking, storage)
    else:
        assert run is not None, "give a run or a model"
        detector = find_checkpoint(run)
    below = output or uris.join(detector.run or "", "evaluation")
    shard_set = evaluation_set(data, below, ray)
    check_columns(shard_set, wanted.columns)
    given = given_classes(class_map)
    renamed = {name: to for name, to in (given or {}).items() if to != name}
    subject = Subject(
        shard_set.uri,
        shard_set.digest,
        max_detections,
        renamed,
        views,
        checkpoint=detector.checkpoint,
        models=detector.models,
    )
    output = uris.absolute(output or uris.join(below, subject.folder))
    preflight.check_writable(output)
    place = mlflow_run(detector, tracking.uri)
    with scratch_folder("evaluate") as scratch:
        package = detector.package(scratch)
        classes = matched_classes(shard_set, package, detector.name, given)
        connect_for(replicas, ray)
        folder = f"{scratch}/evaluation"
        table, remarks = evaluate_package(
            package,
            shard_set,
            classes,
            folder,
            scored=detector.name,
            wanted=wanted,
            max_detections=max_detections,
            views=views,
            **vars(replicas),
        )
        written = names_in(folder)
        replace_results(folder, output, last="metrics.json", parts=(f"{OVERLAYS}/", *REPORT_FILES))
        notes = [*classes.notes("data"), *remarks]
        if place is not None:
            name = subject.name_in(detector.run)
            notes += record(log_evaluation, place, folder, subject, name)
    return Evaluated(table, detector.name, output, tuple(notes), written, detector.store)


def names_in(folder: str) -> tuple[str, ...]:
    """What is in a local folder: its files, then the folders that have some, with a slash."""
    entries = sorted(os.scandir(folder), key=lambda entry: (entry.is_dir(), entry.name))
    return tuple(
        f"{entry.name}/" if entry.is_dir() else entry.name
        for entry in entries
        if entry.is_file() or os.listdir(entry.path)
    )


def replace_results(folder: str, output: str, *, last: str, parts: Sequence[str] = ()) -> None:
    """Write a local folder to `output`. The file `last` says that results are whole: that of former
    ones is deleted first, then their `parts` that these may lack: files, and folders with a slash.
    """
    if files.exists(uris.join(output, last)):
        files.delete_file(uris.join(output, last))
        for part in parts:
            delete = files.delete_folder if part.endswith("/") else files.delete_file
            delete(uris.join(output, part.rstrip("/")))
    files.upload_folder(folder, output, last=last)
