"""One trial of a sweep: its training run, and trial.json, its record in that run's folder:

    {"version": 2, "trial": "trial-1a2b3c4d", "status": "done", "AP": 0.41, "AP50": 0.7,
     "epochs": 5, "sample": {"gamma": 2.0}, "proposed": {"gamma": 1.99997},
     "run": "s3://bucket/sweeps/cells/runs/trial-1a2b3c4d", "reason": ""}

Version 1 is the same without "version".
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from cluster.errors import DataError
from cluster.runs import run_folder
from cluster.runs.config import TrainConfig
from cluster.runs.training_config import EVALUATION_SHARE, TrainingConfig
from cluster.storage import files, uris
from detector.scores import score
from tune import space
from tune.space import Sample, SweepConfig

TRIAL = "trial.json"
VERSION = 2
Status = Literal["running", "done", "stopped early", "failed"]


@dataclass(frozen=True)
class TrialRecord:
    """What is known of a trial. `ap` and `ap50` are None until it was evaluated."""

    trial: str
    status: Status
    ap: float | None
    ap50: float | None
    epochs: int
    sample: Sample
    """What is trained: `proposed`, rounded."""
    proposed: Sample
    run: str
    """URI of the training run's folder."""
    reason: str = ""
    """Why it failed."""

    def to_json(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "trial": self.trial,
            "status": self.status,
            "AP": self.ap,
            "AP50": self.ap50,
            "epochs": self.epochs,
            "sample": dict(self.sample),
            "proposed": dict(self.proposed),
            "run": self.run,
            "reason": self.reason,
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any], uri: str) -> TrialRecord:
        """`DataError` naming the file `uri` where it is not a record that this version can read."""
        try:
            version, status = stored.get("version", 1), stored["status"]
            if version > VERSION or status not in get_args(Status):
                raise DataError(
                    f"{uri}: is a trial record of version {version} with status {status!r}; this"
                    f" code reads versions up to {VERSION}: use the newer code, or another --name"
                )
            return cls(
                trial=stored["trial"],
                status=status,
                ap=score(stored["AP"]),
                ap50=score(stored["AP50"]),
                epochs=stored["epochs"],
                sample=stored["sample"],
                proposed=stored["proposed"],
                run=stored["run"],
                reason=stored["reason"],
            )
        except KeyError as error:
            raise DataError(f"{uri}: is no trial record, {error} is missing") from error


def write_record(record: TrialRecord) -> None:
    run_folder.write(record.run, TRIAL, record.to_json())


def read_records(uri: str) -> list[TrialRecord]:
    """The records of all trials of the sweep at `uri`, in the order of their names."""
    folder = uris.join(uri, "runs")
    names = files.list_files(folder, [TRIAL]) if files.exists(folder) else []
    return [
        # The sweep may have been moved since the record was written.
        replace(TrialRecord.from_json(files.read_json(name), name), run=os.path.dirname(name))
        for name, _ in names
        if name.endswith("/" + TRIAL)
    ]


def trial_config(config: TrainConfig, sweep: SweepConfig, uri: str, sample: Sample) -> TrainConfig:
    """The training run of one sample: in the folder `uri` of the sweep, with the sweep's epochs and
    share of the machines. `config` has absolute URIs: trials run in other working directories.
    """
    sample = space.rounded(sample)
    # Ray sees only what the workers report, so the workers evaluate. And the number of workers
    # stays the same, or trials could not be compared.
    unset = (*EVALUATION_SHARE, "min_workers", "resized_batch")
    training = {
        **config.training.model_dump(),
        "epochs": sweep.epochs or config.training.epochs,
        "workers": sweep.workers,
        "cpus_per_worker": sweep.cpus_per_worker,
        "gpus_per_worker": sweep.gpus_per_worker,
        # A trial can be stopped only where it is evaluated, so it is evaluated from the first epoch
        # after which it may be stopped.
        "evaluate_every": min(config.training.evaluate_every, sweep.grace_epochs),
        "evaluation": "between",
        **{name: TrainingConfig.model_fields[name].default for name in unset},
    }
    changed = {"training": training, "storage": uri, "name": space.trial_name(sample)}
    return space.apply(TrainConfig.model_validate({**config.model_dump(), **changed}), sample)
