"""The training loop of one worker: resume, iterate, step, evaluate, checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.loading import epoch_plan
from cluster.loading.stream import Stream
from cluster.runs import run_folder
from cluster.runs.events import Started, StoppedEarly, Tell
from cluster.runs.training_config import TrainingConfig
from cluster.training.checkpoints import Checkpoints
from cluster.training.evaluation import EpochEvaluations
from cluster.training.first_batches import FirstBatches
from cluster.training.profile import ProfilePublisher
from cluster.training.ranks import Ranks
from cluster.training.report import Reporter, StepValues
from cluster.training.resume import Origin
from cluster.training.state import Progress, TrainingState
from cluster.training.step import TrainingStep
from cluster.training.step_reports import StepReports
from cluster.training.timing import Timing
from cluster.training.watchdog import Watchdog
from detector.batch import on_device
from detector.checkpoint import Snapshot


@dataclass
class Worker:
    """One rank of a training. All ranks hold the same state and make the same number of steps."""

    run: str
    """URI of the run's folder."""
    training: TrainingConfig
    ranks: Ranks
    batches: Sequence[int]
    """Images of every rank's batch."""
    stream: Stream
    state: TrainingState
    resume: Callable[[], Origin]
    """Loads into `state` what the run continues from."""
    start_event: Callable[[Progress], Started]
    """What to tell when training starts at this progress."""
    learning_rate: Callable[[int], float]
    """The rate of the step after so many images seen."""
    step: TrainingStep
    reports: StepReports[StepValues]
    reporter: Reporter
    timing: Timing
    profile: ProfilePublisher
    checkpoints: Checkpoints
    checkpoint_entries: Mapping[str, Any]
    """Entries of every checkpoint's state.json that do not change."""
    evaluations: EpochEvaluations
    first_batches: FirstBatches
    watchdog: Watchdog
    tell: Tell
    """Sends an event from rank 0; does nothing on the others."""

    def train(self) -> None:
        progress, training = self.state.progress, self.training
        origin = self.resume()
        self.reporter.recent.extend(origin.steps)
        self.tell(self.start_event(progress))
        self.state.model.train()
        reason = None
        while progress.epoch < training.epochs and reason is None:
            # After a resume at an epoch's end nothing remains of it but its evaluation, if that was
            # not made.
            checkpoint_is_due = self._train_epoch()
            done = progress.epoch + 1
            evaluate = done == training.epochs or done % training.evaluate_every == 0
            if evaluate or checkpoint_is_due or done % training.checkpoint_every == 0:
                uri = self.save(to_be_evaluated=evaluate)
                if evaluate:
                    self.evaluations.evaluate(uri, self.state, resumed=uri == origin.checkpoint)
                    # The next interval's images/s are of training alone.
                    self.timing.take()
            progress.begin_next_epoch()
            if progress.epoch < training.epochs:
                reason = self.evaluations.reason_to_stop()
        self._finish(reason)

    def _train_epoch(self) -> bool:
        """Train on the rest of this epoch, with checkpoints in between where they are due. Whether
        one is due at its end.
        """
        progress, checkpoint_is_due = self.state.progress, False
        start = progress.remaining
        arriving = on_device(self.stream.epoch(progress.epoch, start), self.ranks.device)
        for done, batch in enumerate(self.timing.batches(arriving), start=1):
            learning_rate = self.learning_rate(progress.images_seen)
            with self.timing.step(self.step.network):
                report = self.step(
                    batch, learning_rate=learning_rate, loss_normalizer=self.state.loss_normalizer
                )
                self.reports.wait()
            self.watchdog.progressed()
            before = progress.images_seen
            self.first_batches(batch, before // sum(self.batches))
            images = self.state.advance(
                epoch_plan.advance(start, batches=self.batches, done=done), report.loss_normalizer
            )
            values = StepValues(learning_rate, images, progress.images_seen)
            self.reports.add(report, -(-progress.images_seen // sum(self.batches)), values)
            # Do not drain the reports for a checkpoint within an epoch: only rank 0 may have one
            # due, and reporting a step that is not finite is a collective call.
            for numbers, read_values in self.reports.read(drain=not progress.remaining):
                last = not progress.remaining and not self.reports.unread
                self.reporter.add(numbers, read_values, last=last)
            checkpoint_is_due = self.checkpoints.is_due(before, progress.images_seen)
            if checkpoint_is_due and progress.remaining:
                self.save(to_be_evaluated=False)
        return checkpoint_is_due

    def save(self, *, to_be_evaluated: bool) -> str:
        """Begin a checkpoint from rank 0, see `Checkpoints.save`. The other ranks continue and meet
        rank 0 at the next collective. Returns the checkpoint's URI.
        """

        best = self.evaluations.best

        def take(memory: Snapshot | None) -> Snapshot:
            entries = {
                **self.checkpoint_entries,
                "ranks": self.ranks.size,
                "scored": to_be_evaluated,
                "best": None if best is None else best.to_json(),
                "told": [steps.to_json() for steps in self.reporter.recent],
            }
            return self.state.snapshot(entries, memory=memory)

        images_seen = self.state.progress.images_seen
        return self.checkpoints.save(images_seen, take, to_be_evaluated=to_be_evaluated)

    def _finish(self, reason_to_stop: str | None) -> None:
        progress = self.state.progress
        self.watchdog.stop()
        self.checkpoints.close()
        self.timing.close()
        self.profile.wait()
        self.first_batches.wait()
        if self.ranks.rank:
            return
        run_folder.write_finished(
            self.run, run_folder.Finished(progress.images_seen, progress.epoch, reason_to_stop)
        )
        if reason_to_stop is not None:
            self.tell(StoppedEarly(progress.images_seen, progress.epoch, reason_to_stop))
