"""What MLflow keeps of a training run: made of the workers' events, and after a kill of the run's
folder.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from dataclasses import replace
from typing import Any

from cluster.errors import PlainError
from cluster.runs import evaluations, run_folder
from cluster.runs.evaluations import Evaluation
from cluster.runs.run_folder import TrackingRecord
from cluster.storage import files
from cluster.storage.uris import join
from cluster.tracking.run import Run, Status, open_run
from cluster.training.console import SHARES

RETRY_SECONDS = 30.0
# A run that ends while its server is restarted waits for it this long.
FINISH_SECONDS = 60.0
STEP_METRICS = (
    "classification",
    "box",
    "gradient_norm",
    "positives",
    "learning_rate",
    "images_per_second",
    "epoch",
    *SHARES,
)


class Tracker:
    """The MLflow run of a training run, opened (or found again) at its first step.

    Importing MLflow and creating its store costs 3 CPU seconds and more, which must not delay the
    first step; and a store that fails must not end a training, so events are kept until it can be
    opened, which is tried again at most twice a minute. What an earlier driver of the run was told
    and had not sent when it ended is sent from the run's folder.
    """

    def __init__(
        self,
        *,
        uri: str,
        experiment: str,
        storage: str,
        run: str,
        name: str,
        params: dict[str, Any],
        config: str,
    ):
        self.uri, self.experiment, self.storage, self.run_folder, self.name = (
            uri,
            experiment,
            storage,
            run,
            name,
        )
        self.params, self.config = params, config
        self.run: Run | None = None
        self.pending: list[dict[str, Any]] = []
        self.tried_at = -RETRY_SECONDS

    def __call__(self, event: dict[str, Any]) -> None:
        self.pending.append(event)
        if (
            self.run is None
            and event["kind"] not in ("weights", "start", "resume", "warning")
            and time.monotonic() - self.tried_at >= RETRY_SECONDS
        ):
            self.open()
        if self.run is not None:
            for waiting in self.pending:
                track(self.run, waiting)
            self.pending = []

    def open(self) -> None:
        try:
            before = run_folder.read_tracking(self.run_folder)
            run = open_run(
                self.uri,
                experiment=self.experiment,
                storage=self.storage,
                name=self.name,
                run_id=before.run_id if before is not None and before.uri == self.uri else None,
                tags={"run_folder": self.run_folder},
            )
            run_folder.write_tracking(self.run_folder, self.record(run))
        except PlainError as error:
            print(
                f"warning: {error}; training goes on, its metrics are kept and sent later",
                file=sys.stderr,
            )
        else:
            run.log_params(self.params)
            run.log_text(self.config, "config.json")
            self.catch_up(run)
            self.run = run
        self.tried_at = time.monotonic()

    def record(self, run: Run) -> TrackingRecord:
        return TrackingRecord(self.uri, self.experiment, run.run_id)

    def catch_up(self, run: Run) -> None:
        """What the run's folder knows; what MLflow has of it is not sent again."""
        try:
            newest = run_folder.checkpoints(self.run_folder)[-1:]
            steps = (
                files.read_json(join(newest[0], run_folder.STATE_FILE)).get("told", [])
                if newest
                else []
            )
            finished = evaluations.read(self.run_folder)
        except (PlainError, OSError, ValueError) as error:
            print(
                f"warning: MLflow gets no metrics from before this start: {error}", file=sys.stderr
            )
            return
        for step in steps:
            run.log_metrics(step_metrics(step), step["images_seen"])
        for evaluation in finished:
            if evaluation.error is None:
                run.log_metrics(evaluation_metrics(evaluation), evaluation.images_seen)

    def owes(self) -> bool:
        """Whether the run was trained to its end and an earlier driver was killed, or had no store,
        before MLflow had all of it.
        """
        try:
            before = run_folder.read_tracking(self.run_folder)
            if before is None:
                return run_folder.read_finished(self.run_folder) is not None
        except PlainError:
            return False
        return before.uri == self.uri and not before.complete

    def finish(self, status: Status) -> None:
        """Send everything and end the run as FINISHED, FAILED or KILLED. Nothing is recorded of a
        training that did not start.
        """
        if self.run is None and (self.pending or (status == "FINISHED" and self.owes())):
            self.open()
        if self.run is not None:
            for waiting in self.pending:
                track(self.run, waiting)
            # Who interrupts a training waits for nothing.
            complete = self.run.finish(
                status, patience_s=10.0 if status == "KILLED" else FINISH_SECONDS
            )
            if complete and status == "FINISHED":
                # Without the mark the next start looks again, and sends nothing twice.
                with contextlib.suppress(PlainError):
                    run_folder.write_tracking(
                        self.run_folder, replace(self.record(self.run), complete=True)
                    )
        elif self.pending:
            print(
                f"warning: {len(self.pending)} events of {self.name} are not in MLflow at"
                f" {self.uri}",
                file=sys.stderr,
            )


def step_metrics(step: dict[str, Any]) -> dict[str, float]:
    """What there is of them: a checkpoint of another version of this code may hold others."""
    return {f"train/{name}": step[name] for name in STEP_METRICS if name in step}


def evaluation_metrics(evaluation: Evaluation) -> dict[str, float]:
    values = {f"val/{name}": value for name, value in evaluation.metrics.items()}
    return values | {f"val/AP/{name}": value for name, value in evaluation.per_class.items()}


def track(run: Run, event: dict[str, Any]) -> None:
    """Put an event on its MLflow run; the step axis is images seen."""
    if event["kind"] == "step":
        run.log_metrics(step_metrics(event), event["images_seen"])
    elif event["kind"] == "evaluation":
        evaluation: Evaluation = event["evaluation"]
        run.log_metrics(evaluation_metrics(evaluation), evaluation.images_seen)
    elif event["kind"] == "weights":
        # The progress line names three of each kind, this file all.
        run.log_text(json.dumps(event, indent=1), "pretrained.json")
    elif event["kind"] == "timing":
        run.log_metrics(
            {f"system/{event['node']}/{name}": value for name, value in event["system"].items()},
            event["images_seen"],
        )
    elif event["kind"] in ("checkpoint", "profile"):
        run.set_tag(event["kind"], event["uri"])
    elif event["kind"] == "stopped":
        run.set_tag("stopped_early", event["reason"])
