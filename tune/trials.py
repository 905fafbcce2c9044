"""One trial of a sweep: its training run, and trial.json, its record in that run's folder:

    {"version": 3, "trial": "trial-1a2b3c4d", "number": 0, "role": "search", "status": "done",
     "epochs": 5, "sample": {"loss.gamma": 2.0},
     "curve": [{"images_seen": 48, "epoch": 1, "AP": 0.2, "AP50": 0.4,
                "ms_per_image": 31.2}, ...],
     "stop": "", "reason": "", "exit_code": 0, "diverged": false, "pruned": false}

Versions 1 and 2 had the last AP in place of a curve, and short names of fields in the sample.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

from cluster.errors import DataError
from cluster.runs import run_folder
from cluster.runs.config import TrainConfig
from cluster.runs.training_config import EVALUATION_SHARE, TrainingConfig
from cluster.storage import files, record_files, uris
from detector import scores
from detector.scores import score
from tune import space
from tune.config import SweepConfig
from tune.space import Sample

TRIAL, RUNS = "trial.json", "runs"
"""The record in a trial's folder, and the folder of a sweep that holds all of them."""
VERSION = 3
OUT_OF_TIME = "sweep.hours are over"
"""How the reason begins of a trial that the time has ended."""
Status = Literal["running", "done", "stopped early", "failed"]
Role = Literal["search", "confirm"]
"""search: ranked, and told to the searcher. confirm: a setting once more, with another seed."""


@dataclass(frozen=True)
class Point:
    """An evaluation of a trial, by images seen."""

    images_seen: int
    epoch: int
    """Epochs done, from 1."""
    ap: float | None
    ap50: float | None
    ms_per_image: float | None = None
    """Wall time of the evaluation for each image on the trial's workers, ms; None where none was
    measured.
    """

    @property
    def shown(self) -> str:
        """AP, to read."""
        return scores.shown(self.ap)

    def to_json(self) -> dict[str, Any]:
        return {
            "images_seen": self.images_seen,
            "epoch": self.epoch,
            "AP": self.ap,
            "AP50": self.ap50,
            "ms_per_image": self.ms_per_image,
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Point:
        """`KeyError` where a key is missing."""
        return cls(
            stored["images_seen"],
            stored["epoch"],
            score(stored["AP"]),
            score(stored["AP50"]),
            # Records written before it was measured lack it.
            stored.get("ms_per_image"),
        )


@dataclass(frozen=True)
class TrialRecord:
    """What is known of a trial."""

    trial: str
    run: str
    """URI of the training run's folder."""
    number: int
    """Order in which the trials of a sweep were proposed, from 0."""
    sample: Sample
    """Field -> value that is trained."""
    epochs: int
    """Length of the trial if nothing stops it."""
    role: Role = "search"
    status: Status = "running"
    curve: tuple[Point, ...] = ()
    """By images seen."""
    stop: str = ""
    """Why the sweep ended the trial before its last epoch."""
    reason: str = ""
    """Why it failed."""
    exit_code: int = 0
    """That of a training which fails like this."""
    diverged: bool = False
    """It failed because of its own values: a loss that is not finite, or too little memory."""
    pruned: bool = False
    """Its checkpoints were deleted because it is not among the best."""

    @property
    def best(self) -> Point | None:
        """The evaluation with the highest AP, of equal ones the newest; so `register` chooses."""
        return max(
            (point for point in self.curve if point.ap is not None),
            key=lambda point: (point.ap, point.images_seen),
            default=None,
        )

    @property
    def ap(self) -> float | None:
        """AP of the best checkpoint."""
        return None if self.best is None else self.best.ap

    @property
    def last(self) -> Point | None:
        return self.curve[-1] if self.curve else None

    @property
    def ms_per_image(self) -> float | None:
        """Median over the evaluations: the first is slower, and neighbours disturb single ones."""
        times = [point.ms_per_image for point in self.curve if point.ms_per_image is not None]
        return statistics.median(times) if times else None

    @property
    def images_seen(self) -> int:
        return 0 if self.last is None else self.last.images_seen

    @property
    def epochs_done(self) -> int:
        return 0 if self.last is None else self.last.epoch

    @property
    def is_out_of_time(self) -> bool:
        """Whether it ended because `sweep.hours` were over: another command goes on with it."""
        return self.stop.startswith(OUT_OF_TIME)

    def with_point(self, point: Point) -> TrialRecord:
        """With one more evaluation. If a restarted trial reports it again, it replaces itself."""
        others = [one for one in self.curve if one.images_seen != point.images_seen]
        curve = sorted([*others, point], key=lambda one: one.images_seen)
        return replace(self, curve=tuple(curve))

    def to_json(self) -> dict[str, Any]:
        stored = {name: value for name, value in asdict(self).items() if name != "run"}
        return {
            "version": VERSION,
            **stored,
            "sample": dict(self.sample),
            "curve": [point.to_json() for point in self.curve],
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any], uri: str) -> TrialRecord:
        """`DataError` naming the file `uri` where it is not a record that this version can read."""
        run = os.path.dirname(uri)
        try:
            version, status = stored.get("version", 1), stored["status"]
            if version > VERSION or status not in get_args(Status):
                raise DataError(
                    f"{uri}: is a trial record of version {version} with status {status!r}; this"
                    f" code reads versions up to {VERSION}: use the newer code, or another --name"
                )
            if version < VERSION:
                return _of_earlier_version(stored, run)
            return cls(
                trial=stored["trial"],
                run=run,
                number=stored["number"],
                sample=stored["sample"],
                epochs=stored["epochs"],
                role=stored["role"],
                status=status,
                curve=tuple(map(Point.from_json, stored["curve"])),
                stop=stored["stop"],
                reason=stored["reason"],
                exit_code=stored["exit_code"],
                diverged=stored["diverged"],
                pruned=stored["pruned"],
            )
        except KeyError as error:
            raise DataError(f"{uri}: is no trial record, {error} is missing") from error
        except (AttributeError, TypeError) as error:
            raise DataError(
                f"{uri}: is no trial record ({error}); delete it, and the trial is made again"
            ) from error


def _of_earlier_version(stored: Mapping[str, Any], run: str) -> TrialRecord:
    epochs = stored["epochs"]
    # Images seen were not stored; an epoch is one as far as they are compared.
    last = Point(epochs, epochs, score(stored["AP"]), score(stored["AP50"]))
    return TrialRecord(
        trial=stored["trial"],
        run=run,
        number=0,
        sample=space.modern(stored["sample"]),
        epochs=epochs,
        status=stored["status"],
        curve=(last,) if epochs else (),
        reason=stored["reason"],
    )


def write_record(record: TrialRecord) -> None:
    run_folder.write(record.run, TRIAL, record.to_json())


def read_records(uri: str) -> list[TrialRecord]:
    """The records of all trials of the sweep at `uri`, in the order of their numbers."""
    folder = uris.join(uri, RUNS)
    names = files.list_files(folder, [TRIAL]) if files.exists(folder) else []
    # The sweep may have been moved since the record was written: the file's place names the run.
    records = [
        record_files.read(
            name,
            partial(TrialRecord.from_json, uri=name),
            remedy="delete it, and the trial is made again",
        )
        for name, _ in names
        if name.endswith("/" + TRIAL)
    ]
    return sorted(records, key=lambda record: (record.number, record.trial))


def ranked(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """By falling AP of the best checkpoint, then those without one. Of equal trials the first
    proposed comes first.
    """
    return sorted(records, key=lambda r: (r.ap is None, -(r.ap or 0.0), r.number, r.trial))


def saving(records: Sequence[TrialRecord]) -> str:
    """How many epochs the early stopping has saved, in words."""
    full = sum(record.epochs for record in records)
    done = sum(record.epochs_done for record in records)
    stopped = [record for record in records if record.status == "stopped early"]
    saved = sum(record.epochs - record.epochs_done for record in stopped)
    return (
        f"{done} of {full} epochs were trained; early stopping saved {saved}"
        f" ({saved / max(full, 1):.0%})"
    )


def trial_config(config: TrainConfig, sweep: SweepConfig, uri: str, sample: Sample) -> TrainConfig:
    """The training run of one sample: in the folder `uri` of the sweep, with the sweep's epochs and
    share of the machines. `config` has absolute URIs: trials run in other working directories.
    """
    sample = space.rounded(sample)
    epochs = sweep.epochs or config.training.epochs
    # A trial is compared by evaluations at the same lengths, so its workers make them between
    # epochs. And the number of workers stays the same, or trials could not be compared.
    unset = (*EVALUATION_SHARE, "min_workers", "resized_batch", "patience", "min_improvement")
    training = {
        **config.training.model_dump(),
        "epochs": epochs,
        "workers": sweep.workers,
        "cpus_per_worker": sweep.cpus_per_worker,
        "gpus_per_worker": 1 if sweep.gpus_per_worker else 0,
        # A trial can be stopped only where it is evaluated, so it is evaluated from the first epoch
        # after which it may be stopped.
        "evaluate_every": min(config.training.evaluate_every, sweep.grace_epochs),
        "evaluation": "between",
        # The newest one, to continue from, and the best one.
        "keep_checkpoints": 1,
        **{name: TrainingConfig.model_fields[name].default for name in unset},
    }
    changed = {"training": training, "storage": uri, "name": space.trial_name(sample, epochs)}
    return space.apply(TrainConfig.model_validate({**config.model_dump(), **changed}), sample)
