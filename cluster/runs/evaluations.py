"""The evaluations of a run's checkpoints: which are requested, which are finished, which is the
best, and whether training should stop early.

waiting/images-000000004100.json
    a request that is not finished yet: {"version", "checkpoint", "images_seen", "epoch"}
evaluations.json
    {"evaluations": [...]}: the finished ones as `Evaluation.to_json`, ordered by images seen
best.json
    the `Evaluation` with the highest AP; of equal ones the newest. One without an AP is never the
    best. "detected" holds its `DetectionCounts` and "thresholds" its `Thresholds`, which the other
    file does not keep

The files lie in the run's folder, so that they outlive the driver and the workers. They name a
checkpoint relative to that folder, which may be moved; older files have its whole URI of then. One
process at a time writes the last two: the driver's evaluator or, where the workers evaluate between
epochs, rank 0.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar, get_args

from cluster.errors import DataError, UsageError
from cluster.runs import run_folder
from cluster.runs.pictures import ExampleImage
from cluster.storage import files, record_files
from cluster.storage.uris import is_below, is_remote, join, relative_to
from detector import scores
from detector.detection_counts import DetectionCounts
from detector.operating_points import Thresholds

T = TypeVar("T")

WAITING, EVALUATIONS = "waiting", "evaluations.json"
VERSION = 2
"""Version of `Request.to_json` and `Evaluation.to_json`. Version 1 had no "version", and an
evaluation kept its metrics beside the other keys.
"""
Weights = Literal["model", "ema"]
"""The weights of a checkpoint that are scored: as trained, or their moving average."""


@dataclass(frozen=True)
class Request:
    """A checkpoint that is complete in storage and is to be evaluated."""

    checkpoint: str
    """URI."""
    images_seen: int
    epoch: int
    """Epochs done, from 1."""

    def to_json(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "checkpoint": self.checkpoint,
            "images_seen": self.images_seen,
            "epoch": self.epoch,
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Request:
        return cls(stored["checkpoint"], stored["images_seen"], stored["epoch"])


@dataclass(frozen=True)
class Evaluation:
    """The evaluation of one checkpoint on data.val: its metrics, or the error that prevented it."""

    checkpoint: str
    """URI."""
    images_seen: int
    epoch: int
    """Epochs done, from 1."""
    weights: Weights = "model"
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    """AP, AP50, ... over all classes, 0..1; None where data.val has no such object."""
    per_class: Mapping[str, float | None] = field(default_factory=dict)
    """AP of each class."""
    images_evaluated: int | None = None
    """Images of data.val; None in files of version 1."""
    seconds: float | None = None
    """Wall time of detecting all images on the workers, decoding of the pictures included; None in
    older files and where the driver evaluated.
    """
    detected: DetectionCounts | None = field(default=None, compare=False)
    """What was detected on data.val. Only best.json keeps it; None in older files."""
    thresholds: Thresholds | None = field(default=None, compare=False)
    """The scores with the highest F1 of each class on data.val. Only best.json keeps them; None in
    older files.
    """
    examples: tuple[ExampleImage, ...] = field(default=(), compare=False)
    """A few images to draw, the same ones in each evaluation of a run. No file keeps them."""
    error: str | None = None
    """One line; then there are no metrics."""

    @property
    def ap(self) -> float | None:
        return self.metrics.get("AP")

    @property
    def ms_per_image(self) -> float | None:
        """Wall time of an image, ms."""
        if self.seconds is None or not self.images_evaluated:
            return None
        return 1000 * self.seconds / self.images_evaluated

    def shown(self, name: str, digits: int = 4) -> str:
        """One of the metrics, to read."""
        return scores.shown(self.metrics.get(name), digits)

    @property
    def request(self) -> Request:
        return Request(self.checkpoint, self.images_seen, self.epoch)

    def to_json(self) -> dict[str, Any]:
        stored = self.request.to_json()
        if self.error is not None:
            return {**stored, "error": self.error}
        return {
            **stored,
            "weights": self.weights,
            "metrics": dict(self.metrics),
            "per_class": dict(self.per_class),
            "images_evaluated": self.images_evaluated,
            "seconds": self.seconds,
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Evaluation:
        """Raises `ValueError` where a key is missing, or another version than 1 and 2 wrote it."""
        version = stored.get("version", 1)
        if version not in (1, VERSION):
            raise ValueError(f"version {version!r} is not known; use the version that wrote it")
        try:
            request = (stored["checkpoint"], stored["images_seen"], stored["epoch"])
            if "error" in stored:
                return cls(*request, error=stored["error"])
            metrics = stored["metrics"] if version == VERSION else _flat_metrics(stored)
        except KeyError as error:
            raise ValueError(f"{error} is missing") from error
        weights = stored.get("weights", "model")
        if weights not in get_args(Weights):
            choices = ", ".join(get_args(Weights))
            raise ValueError(f"weights must be one of {choices}, is {weights!r}")
        return cls(
            *request,
            weights=weights,
            metrics=_scores(metrics),
            per_class=_scores(stored.get("per_class", {})),
            images_evaluated=stored.get("images_evaluated"),
            seconds=stored.get("seconds"),
        )


def _scores(stored: Mapping[str, Any]) -> dict[str, float | None]:
    """Earlier versions stored -1 for a number without objects."""
    return {name: scores.score(value) for name, value in stored.items()}


def _flat_metrics(stored: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in stored.items() if isinstance(value, float)}


def store_request(run: str, request: Request) -> None:
    files.write_json(_request_uri(run, request.checkpoint), _movable(run, request.to_json()))


def read_request(run: str, checkpoint: str) -> Request:
    uri = _request_uri(run, checkpoint)
    return record_files.read(
        uri, lambda stored: Request.from_json(_located(run, stored)), remedy="delete it"
    )


def _movable(run: str, stored: Mapping[str, Any]) -> dict[str, Any]:
    uri = stored["checkpoint"]
    return {**stored, "checkpoint": relative_to(uri, run) if is_below(uri, run) else uri}


def _located(run: str, stored: Mapping[str, Any]) -> dict[str, Any]:
    """With the URI of the checkpoint. Of a whole URI in an older file the folder may have changed
    since: the run's own checkpoint of this name comes first.
    """
    given = stored.get("checkpoint")
    if not isinstance(given, str):
        return dict(stored)
    here = join(run, run_folder.CHECKPOINTS, os.path.basename(given))
    whole = is_remote(given) or os.path.isabs(given)
    return {**stored, "checkpoint": given if whole and not files.exists(here) else here}


def _request_uri(run: str, checkpoint: str) -> str:
    return join(run, WAITING, os.path.basename(checkpoint) + ".json")


def waiting(run: str) -> list[str]:
    """URIs of the checkpoints whose requested evaluation is not finished, ordered by images seen;
    they must not be deleted.
    """
    names = [os.path.basename(uri) for uri, _ in files.list_files(join(run, WAITING), [".json"])]
    checkpoints = [name.removesuffix(".json") for name in sorted(names)]
    return [
        join(run, run_folder.CHECKPOINTS, name)
        for name in checkpoints
        if run_folder.is_checkpoint_name(name)
    ]


def read(run: str) -> list[Evaluation]:
    """The finished evaluations, ordered by images seen. `DataError` where the file is damaged."""
    stored = run_folder.read(run, EVALUATIONS)
    if stored is None:
        return []
    rows = stored.get("evaluations")
    return [_parse(run, row, EVALUATIONS) for row in (rows if isinstance(rows, list) else [rows])]


def read_best(run: str) -> Evaluation | None:
    """best.json; None where no checkpoint has an AP yet. `DataError` where it is damaged."""
    stored = run_folder.read(run, run_folder.BEST)
    best = None if stored is None else _parse(run, stored, run_folder.BEST)
    if best is None or stored is None or best.ap is None:
        return None
    return replace(
        best,
        detected=_found(DetectionCounts.from_json, stored.get("detected")),
        thresholds=_found(Thresholds.from_json, stored.get("thresholds")),
    )


def _found(parse: Callable[[Mapping[str, Any]], T], stored: Mapping[str, Any] | None) -> T | None:
    """What best.json keeps beside the evaluation; None for that of another version: the checkpoint
    is what counts.
    """
    try:
        return None if stored is None else parse(stored)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def best_checkpoint(run: str) -> Evaluation:
    """`read_best`. `UsageError` where there is none."""
    best = read_best(run)
    if best is None:
        if any(each.error is None for each in read(run)) or run_folder.read(run, run_folder.BEST):
            state = (
                "no evaluation of it has an AP, so no checkpoint is the best one; data.val must"
                " have objects that are not crowds: train with another data.val"
            )
        elif files.exists(join(run, "runs")):
            state = "is the folder of a sweep; give --sweep, or the folder of a trial below runs/"
        elif run_folder.read(run, run_folder.CONFIG):
            state = "has no evaluated checkpoint yet; let its training reach the first evaluation"
        else:
            is_there = files.exists(run)
            state = "is not a training run's folder" if is_there else "there is no such folder"
            state = f"{state}; {run_folder.beside(run)}"
        raise UsageError(f"{run}: {state}")
    return best


def _parse(run: str, stored: Any, name: str) -> Evaluation:
    return record_files.build(
        stored,
        lambda row: Evaluation.from_json(_located(run, row)),
        join(run, name),
        remedy="restore it from a copy, or give another run",
    )


def store(run: str, evaluation: Evaluation) -> None:
    """Write a finished evaluation, in place of an earlier one at the same images seen; update
    best.json; delete the request.
    """
    finished = insert(read(run), evaluation)
    rows = [_movable(run, each.to_json()) for each in finished]
    run_folder.write(run, EVALUATIONS, {"evaluations": rows})
    best = best_of(finished)
    if best is not None and (best is evaluation or not _is_stored(run, best)):
        detected = best.detected and best.detected.to_json()
        thresholds = best.thresholds and best.thresholds.to_json()
        row = {**best.to_json(), "detected": detected, "thresholds": thresholds}
        run_folder.write(run, run_folder.BEST, _movable(run, row))
    files.delete_file(_request_uri(run, evaluation.checkpoint))


def _is_stored(run: str, best: Evaluation) -> bool:
    """Whether best.json has this evaluation, perhaps with its detections, which must stay."""
    try:
        return read_best(run) == best
    except DataError:
        return False


def insert(finished: Sequence[Evaluation], evaluation: Evaluation) -> list[Evaluation]:
    """`finished` with `evaluation`, which replaces one at the same images seen; ordered by them."""
    others = [each for each in finished if each.images_seen != evaluation.images_seen]
    return sorted([*others, evaluation], key=lambda each: each.images_seen)


def find(finished: Sequence[Evaluation], images_seen: int) -> Evaluation | None:
    """The evaluation at these images seen, unless it failed."""
    return next(
        (each for each in finished if each.images_seen == images_seen and each.error is None), None
    )


def best_of(finished: Sequence[Evaluation]) -> Evaluation | None:
    """The highest AP, of equal ones the newest; `finished` is ordered by images seen. None where
    none has an AP.
    """
    scored = [(each.ap, each) for each in reversed(finished) if each.ap is not None]
    return max(scored, key=lambda pair: pair[0], default=(None, None))[1]


def reason_to_stop(
    finished: Sequence[Evaluation], *, patience: int, min_improvement: float
) -> str | None:
    """Why training should stop: the last `patience` evaluations did not raise AP by more than
    `min_improvement`. None: it should not; patience 0 never stops.

    AP is compared with the last evaluation that raised it enough, so a slow but steady rise goes
    on. Failed evaluations, and those without an AP, are not counted.
    """
    reference: tuple[float, int] | None = None
    without_rise = 0
    for evaluation in finished:
        if evaluation.ap is None:
            continue
        if reference is None or evaluation.ap > reference[0] + min_improvement:
            reference, without_rise = (evaluation.ap, evaluation.epoch), 0
        else:
            without_rise += 1
    if reference is None or not patience or without_rise < patience:
        return None
    by = f" by more than {min_improvement:g}" if min_improvement else ""
    return (
        f"AP has not risen{by} in {without_rise} evaluations, from {reference[0]:.4f} after epoch"
        f" {reference[1]}"
    )
