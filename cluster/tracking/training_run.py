"""Records a training in MLflow: from the events that arrive, and after a kill also from the run's
folder.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from dataclasses import asdict
from typing import Any

from cluster.errors import PlainError
from cluster.runs import evaluations, events, run_folder
from cluster.tracking.embedded import same
from cluster.tracking.preflight import has_run
from cluster.tracking.run import Run, Status, open_run, read_record
from cluster.tracking.training_pictures import TrainingPictures

RETRY_SECONDS = 30.0
"""Seconds between two attempts to open the store."""
FINISH_SECONDS = 60.0
"""A run that ends while its server restarts waits this many seconds for it."""
_INTERRUPTED_SECONDS = 10.0
"""The same for a run that the user interrupts."""
STEP_METRICS = (
    "classification",
    "box",
    "gradient_norm",
    "positives",
    "learning_rate",
    "images_per_second",
    "epoch",
    "data_share",
    "step_share",
    "rest_share",
)
"""Fields of `StepsDone` that MLflow gets."""
_BEFORE_STEPS = (
    events.WeightsLoaded,
    events.Started,
    events.Resumed,
    events.BatchSeen,
    events.TrainingWarning,
)
"""Events before the first step, whose line must not wait until the store is open."""


class Tracker:
    """The MLflow run of a training, opened (or found again) at its first step.

    Importing MLflow and creating its store costs 3 CPU seconds and more, which must not delay the
    first step. A store that fails must not end a training, so events wait until it can be opened,
    which is tried at most twice a minute. What an earlier driver of the run received and had not
    sent when it ended is sent from the run's folder.
    """

    def __init__(
        self,
        *,
        uri: str,
        experiment: str,
        run: str,
        name: str,
        params: dict[str, Any],
        config: str,
        parent_run_id: str | None = None,
        pictures: TrainingPictures | None = None,
    ):
        self.uri = uri
        self.run: Run | None = None
        self._experiment, self._run_folder = experiment, run
        self._name, self._params, self._config = name, params, config
        self._parent_run_id, self._pictures = parent_run_id, pictures
        self._pending: list[events.Event] = []
        self._tried_at = -RETRY_SECONDS

    def __call__(self, event: events.Event) -> None:
        self._pending.append(event)
        if (
            self.run is None
            and not isinstance(event, _BEFORE_STEPS)
            and time.monotonic() - self._tried_at >= RETRY_SECONDS
        ):
            self.open()
        if self.run is not None:
            self._track_pending(self.run)

    def _track_pending(self, run: Run) -> None:
        for waiting in self._pending:
            track(run, waiting)
            if self._pictures is not None:
                self._pictures.add(run, waiting)
        self._pending = []

    def finish(self, status: Status) -> None:
        """Send everything and end the run as FINISHED, FAILED or KILLED. A training that did not
        start is not recorded.
        """
        if self.run is None and (self._pending or (status == "FINISHED" and self.is_incomplete())):
            self.open()
        if self.run is not None:
            patience_s = _INTERRUPTED_SECONDS if status == "KILLED" else FINISH_SECONDS
            until = time.monotonic() + patience_s
            self._track_pending(self.run)
            if self._pictures is not None:
                self._pictures.finish(self.run, patience_s=patience_s)
            complete = self.run.finish(status, patience_s=max(0.0, until - time.monotonic()))
            if complete and status == "FINISHED":
                # Without the mark the next start looks again, and sends nothing twice.
                with contextlib.suppress(PlainError):
                    self._write_record(self.run, complete=True)
        elif self._pending:
            print(
                f"warning: {len(self._pending)} events of {self._name} are not in MLflow at"
                f" {self.uri}",
                file=sys.stderr,
            )

    def open(self) -> None:
        """Open the store, or say why that is impossible. What the run's folder has is sent."""
        try:
            before = read_record(self._run_folder)
            run = open_run(
                self.uri,
                experiment=self._experiment,
                name=self._name,
                run_id=before.run_id if before is not None and same(before.uri, self.uri) else None,
                parent_run_id=self._parent_run_id,
                tags={"run_folder": self._run_folder},
            )
            self._write_record(run)
        except PlainError as error:
            print(
                f"warning: {error}; training continues, its metrics are kept and sent later",
                file=sys.stderr,
            )
        else:
            run.log_params(self._params)
            run.log_text(self._config, "config.json")
            self._backfill(run)
            self.run = run
            if self._pictures is not None:
                self._pictures.begin(run)
        self._tried_at = time.monotonic()

    def _write_record(self, run: Run, *, complete: bool = False) -> None:
        record = run_folder.TrackingRecord(self.uri, self._experiment, run.run_id, complete)
        run_folder.write_tracking(self._run_folder, record)

    def _backfill(self, run: Run) -> None:
        """Send what the run's folder has; what MLflow has already is not sent again."""
        try:
            newest = run_folder.checkpoints(self._run_folder)[-1:]
            lines = (
                (run_folder.read(newest[0], run_folder.STATE_FILE) or {}).get("told", [])
                if newest
                else []
            )
            finished = evaluations.read(self._run_folder)
        except (PlainError, OSError, ValueError) as error:
            print(
                f"warning: MLflow gets no metrics from before this start: {error}", file=sys.stderr
            )
            return
        for steps in events.stored_steps(lines):
            track(run, steps)
        for evaluation in finished:
            if evaluation.error is None:
                track(run, events.EvaluationDone(evaluation))

    def is_incomplete(self) -> bool:
        """Whether the run was trained to its end, but an earlier driver was killed, or had no
        store, before MLflow had all of it.
        """
        try:
            before = read_record(self._run_folder)
            if before is None:
                return run_folder.read_finished(self._run_folder) is not None
            # A store may have lost it since.
            there = before.complete and has_run(before.uri, before.run_id)
        except PlainError:
            return False
        return same(before.uri, self.uri) and not there


def is_recorded(folder: str, uri: str) -> bool:
    """Whether the finished training in `folder` has its MLflow run; where not, training it again
    at `uri` only records it. A run that belongs to another store than `uri` stays there.
    """
    record = read_record(folder)
    if record is None:
        return False
    return not same(record.uri, uri) or has_run(record.uri, record.run_id)


def track(run: Run, event: events.Event) -> None:
    """Record an event in its MLflow run; the step axis is images seen."""
    match event:
        case events.StepsDone():
            metrics = {f"train/{name}": getattr(event, name) for name in STEP_METRICS}
            # A stored line of another version of this code may lack some.
            present = {name: value for name, value in metrics.items() if not math.isnan(value)}
            run.log_metrics(present, event.images_seen)
        case events.EvaluationDone():
            done = event.evaluation
            metrics = {f"val/{name}": value for name, value in done.metrics.items()}
            per_class = {f"val/AP/{name}": value for name, value in done.per_class.items()}
            found = {k: v for k, v in (metrics | per_class).items() if v is not None}
            run.log_metrics(found, done.images_seen)
        case events.WeightsLoaded():
            # The console names three tensors of each kind, this file all.
            content = {"kind": "weights", **asdict(event)}
            run.log_text(json.dumps(content, indent=1), "pretrained.json")
        case events.RankTiming():
            node = event.worker.node
            metrics = {f"system/{node}/{name}": value for name, value in event.system.items()}
            run.log_metrics(metrics, event.images_seen)
        case events.CheckpointStored():
            run.set_tag("checkpoint", event.uri)
        case events.ProfileStored():
            run.set_tag("profile", event.uri)
        case events.StoppedEarly():
            run.set_tag("stopped_early", event.reason)
        case _:
            pass
