"""Prints the events of a training for a person at a terminal or in a log."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from functools import singledispatchmethod
from typing import TextIO

from cluster.runs import events
from cluster.training.stragglers import Stragglers

_SHOWN_WORKERS = 8
_SHOWN_TENSORS = 3


class Console:
    """Prints one progress line that updates in place on a terminal, else one line at most every
    `interval` seconds. Every other event gets a line of its own.
    """

    def __init__(self, name: str, *, out: TextIO | None = None, interval: float = 10.0):
        self._name, self._out, self._interval = name, out or sys.stdout, interval
        self._images_total, self._last_ap, self._images_per_second = 0, "-", 0.0
        self._printed_at, self._line_is_open = 0.0, False
        self._stragglers = Stragglers(1)

    def __call__(self, event: events.Event) -> None:
        self._show(event)

    @singledispatchmethod
    def _show(self, event: events.Event) -> None:
        raise TypeError(f"{type(event).__name__} has no line")

    @_show.register
    def _started(self, event: events.Started) -> None:
        self._images_total, self._stragglers = event.images_total, Stragglers(event.ranks)
        batch = f"{event.batch} images a step"
        if event.parts > 1:
            batch += f" in {event.parts} parts"
        if event.ranks < event.workers and event.batch == event.batch_size:
            batch += f" (the same as with all {event.workers} workers)"
        elif event.ranks < event.workers:
            batch += (
                f" (scaled down from {event.batch_size} with all {event.workers} workers, and the"
                " learning rate with it)"
            )
        self._line(
            f"training on {event.ranks} workers, {event.threads} threads each, {batch},"
            f" {event.precision}; {event.images_seen} of {event.images_total} images seen"
        )

    @_show.register
    def _workers_placed(self, event: events.WorkersPlaced) -> None:
        shown = [f"{w.rank} on {w.node} (pid {w.pid})" for w in event.workers[:_SHOWN_WORKERS]]
        self._line(f"ranks: {', '.join(shown)}{_more(event.workers, _SHOWN_WORKERS)}")

    @_show.register
    def _worker_failed(self, event: events.WorkerFailed) -> None:
        uri = event.traceback_uri
        self._line(
            f"{event.worker} failed: {event.reason}; {event.consequence}"
            + (f"; its traceback is in {uri}" if uri else "")
        )

    @_show.register
    def _group_start_failed(self, event: events.GroupStartFailed) -> None:
        uri = event.traceback_uri
        self._line(
            f"{event.subject} failed: {event.reason}; {event.consequence}"
            + (f"; the traceback is in {uri}" if uri else "")
        )

    @_show.register
    def _worker_hung(self, event: events.WorkerHung) -> None:
        self._line(
            f"{event.worker} made no progress for {event.seconds:.0f} s and is terminated:"
            f" {event.location}"
        )

    @_show.register
    def _waiting_for_nodes(self, event: events.WaitingForNodes) -> None:
        self._line(
            f"waiting for {event.wanted} since {_clock(event.seconds)}: the cluster has no room for"
            " them"
        )

    @_show.register
    def _group_resized(self, event: events.GroupResized) -> None:
        start = (
            "from the checkpoint just taken"
            if event.checkpointed
            else "from the newest checkpoint; one more could not be taken in time"
        )
        self._line(f"{event.before} workers become {event.workers}, {start}")

    @_show.register
    def _weights_loaded(self, event: events.WeightsLoaded) -> None:
        text = f"{event.loaded} tensors loaded from {event.uri} ({event.source})"
        for names, words in (
            (event.reinitialised, "initialised anew because the classes differ"),
            (event.missing, "not in the file"),
            (event.unused, "not used"),
        ):
            if names:
                shown = ", ".join(names[:_SHOWN_TENSORS])
                text += f"; {words}: {shown}{_more(names, _SHOWN_TENSORS)}"
        self._line("; ".join([text, *event.notes]))

    @_show.register
    def _resumed(self, event: events.Resumed) -> None:
        self._line(f"continuing from {event.checkpoint}")

    @_show.register
    def _training_warning(self, event: events.TrainingWarning) -> None:
        self._line(f"warning: {event.text}")

    @_show.register
    def _steps_done(self, event: events.StepsDone) -> None:
        # A moving mean: one slow interval (an evaluation, a busy neighbour) must not make the ETA
        # jump.
        self._images_per_second = (
            0.8 * self._images_per_second + 0.2 * event.images_per_second
            if self._images_per_second
            else event.images_per_second
        )
        remaining = self._images_total - event.images_seen
        eta = _clock(remaining / max(self._images_per_second, 1e-9))
        text = (
            f"epoch {event.epoch:6.2f}  images {event.images_seen:>8d}/{self._images_total} "
            f" {event.images_per_second:6.1f} img/s  ETA {eta}  class {event.classification:.4f} "
            f" box {event.box:.4f}  lr {event.learning_rate:.2e}  AP {self._last_ap}  time: data"
            f" {100 * event.data_share:.0f}% step {100 * event.step_share:.0f}% rest"
            f" {100 * event.rest_share:.0f}%"
        )
        now = time.monotonic()
        if self._out.isatty():
            # A line that wraps cannot be updated in place.
            self._out.write("\r\x1b[K" + text[: shutil.get_terminal_size().columns - 1])
            self._out.flush()
            self._line_is_open = True
        elif now - self._printed_at >= self._interval:
            self._printed_at = now
            self._line(text)

    @_show.register
    def _rank_timing(self, event: events.RankTiming) -> None:
        for text in self._stragglers(event):
            self._line(text)

    @_show.register
    def _batch_seen(self, event: events.BatchSeen) -> None:
        """MLflow shows it."""

    @_show.register
    def _profile_stored(self, event: events.ProfileStored) -> None:
        self._line(
            f"profile of up to {event.steps} steps in {event.uri}: operations.txt, and"
            " trace.json.gz for ui.perfetto.dev"
        )

    @_show.register
    def _checkpoint_stored(self, event: events.CheckpointStored) -> None:
        self._line(f"checkpoint {event.uri}")

    @_show.register
    def _evaluation_started(self, event: events.EvaluationStarted) -> None:
        more = f"; {event.waiting} more wait" if event.waiting else ""
        self._line(
            f"evaluating the checkpoint at {event.images_seen} images (epoch {event.epoch}){more}"
        )

    @_show.register
    def _evaluation_done(self, event: events.EvaluationDone) -> None:
        done = event.evaluation
        self._last_ap = done.shown("AP", 3)
        self._line(
            f"evaluation of the checkpoint at {done.images_seen} images (epoch {done.epoch}) on"
            f" {done.images_evaluated} images: AP {done.shown('AP')}  AP50 {done.shown('AP50')} "
            f" AP75 {done.shown('AP75')}"
        )

    @_show.register
    def _evaluation_failed(self, event: events.EvaluationFailed) -> None:
        self._line(f"warning: {event.subject} failed ({event.reason}); {event.consequence}")

    @_show.register
    def _stopped_early(self, event: events.StoppedEarly) -> None:
        self._line(f"stopped early after epoch {event.epoch}: {event.reason}")

    def _line(self, text: str) -> None:
        start = "\r\x1b[K" if self._line_is_open else ""
        self._line_is_open = False
        self._out.write(f"{start}[{self._name}] {text}\n")
        self._out.flush()


def _more(items: Sequence[object], shown: int) -> str:
    return f" and {len(items) - shown} more" if len(items) > shown else ""


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
