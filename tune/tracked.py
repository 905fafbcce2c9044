"""The MLflow runs of a sweep's trials, nested below the sweep's own: the same as `train` writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cluster.runs import run_folder
from cluster.runs.config import TrainConfig
from cluster.runs.identity import identity
from cluster.shards.index import ShardSet
from cluster.tracking.run import Run
from cluster.tracking.run import Status as RunStatus
from cluster.tracking.training_run import Tracker
from tune.trainable import TrialEvent
from tune.trials import TrialRecord


@dataclass(frozen=True)
class TrialEnded:
    """Follows the last event of a trial."""

    record: TrialRecord


class TrackedTrials:
    """Trackers by trial. Events, and the ends of trials behind them, arrive in a thread of their
    own: Tune's loop must not wait for MLflow.
    """

    def __init__(
        self,
        parent: Run,
        *,
        experiment: str,
        train_set: ShardSet,
        val_set: ShardSet,
        weights: str | None,
    ):
        self._parent, self._experiment = parent, experiment
        self._sets, self._weights = (train_set, val_set), weights
        self._trackers: dict[str, Tracker] = {}
        self.mailbox: Any = None
        """Of the channel that calls `on_event`."""

    def open(self, config: TrainConfig) -> None:
        """A trial begins or goes on."""
        self._trackers[config.name] = self._tracker(config)

    def ended(self, record: TrialRecord) -> None:
        """A trial has ended; its run ends when its last events have arrived."""
        self.mailbox.put.remote(TrialEnded(record))

    def on_event(self, told: TrialEvent | TrialEnded) -> None:
        if isinstance(told, TrialEnded):
            tracker = self._trackers.pop(told.record.trial, None)
            if tracker is not None:
                _finish(tracker, told.record)
        elif told.trial in self._trackers:
            self._trackers[told.trial](told.event)

    def complete(self, record: TrialRecord, config: TrainConfig) -> None:
        """End the run of a trial that ended while the driver was killed."""
        tracker = self._tracker(config)
        if tracker.is_incomplete():
            _finish(tracker, record)

    def close(self, status: RunStatus) -> None:
        """End the runs of the trials that have not ended."""
        while self._trackers:
            self._trackers.popitem()[1].finish(status)

    def _tracker(self, config: TrainConfig) -> Tracker:
        return Tracker(
            uri=self._parent.uri,
            experiment=self._experiment,
            run=config.run_uri,
            name=config.name,
            params=run_folder.flatten(identity(config, *self._sets, weights=self._weights)),
            config=config.model_dump_json(indent=1),
            parent_run_id=self._parent.run_id,
        )


def _finish(tracker: Tracker, record: TrialRecord) -> None:
    if tracker.run is None:
        # A trial that failed before its first step is a result of the sweep too.
        tracker.open()
    if tracker.run is not None:
        tracker.run.set_tag("sweep.status", record.status)
        tracker.run.set_tag("sweep.role", record.role)
        tracker.run.set_tag("sweep.epochs", f"{record.epochs_done} of {record.epochs}")
        if record.reason or record.stop:
            tracker.run.set_tag("sweep.reason", record.reason or record.stop)
        if record.ap is not None:
            tracker.run.log_metrics({"best/AP": record.ap}, record.images_seen)
    tracker.finish("FAILED" if record.status == "failed" else "FINISHED")
