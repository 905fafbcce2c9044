"""Two detectors on one shard set: `evaluate --compare`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.compute.session import RayConfig
from cluster.scoring.compare_packages import NUMBERS, Candidate, compare_packages
from cluster.storage import preflight, uris
from cluster.storage.scratch import scratch_folder
from cluster.tracking.config import TrackingConfig
from cluster.tracking.evaluation import Subject, log_comparison
from detector.choices import WHOLE_PICTURE, ViewSettings
from pipelines.data_section import DataSection
from pipelines.evaluation_run import names_in, replace_results
from pipelines.evaluation_set import evaluation_set
from pipelines.scored_detector import find_detector, mlflow_run, record
from pipelines.scoring_inputs import Replicas, connect_for, given_classes, matched_classes


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
    data: str | DataSection,
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
    """Score two detectors on the shard set `data`, or on annotated images: each is the folder of a
    run, one of its checkpoints, or a registered model. The MLflow run of the first one then has the
    result too. See `evaluate`.
    """
    detectors = [find_detector(each, tracking, storage) for each in pair]
    shard_set = evaluation_set(data, output, ray)
    given = given_classes(class_map)
    renamed = {name: to for name, to in (given or {}).items() if to != name}
    names = (detectors[0].name, detectors[1].name)
    subject = Subject(shard_set.uri, shard_set.digest, max_detections, renamed, views, models=names)
    output = uris.absolute(output)
    preflight.check_writable(output)
    place = mlflow_run(detectors[0], tracking.uri)
    with scratch_folder("compare") as scratch:
        candidates = []
        for number, detector in enumerate(detectors):
            package = detector.package(f"{scratch}/{number}")
            classes = matched_classes(shard_set, package, detector.name, given)
            candidates.append(Candidate(package, detector.name, classes))
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
        written = names_in(folder)
        replace_results(folder, output, last=NUMBERS)
        if place is not None:
            name = subject.name_in(None)
            notes = (*notes, *record(log_comparison, place, folder, subject, name))
    return Comparison(tuple(said), names, output, written, tuple(notes))
