"""How far a prediction is, in one line, and at its end how fast it was."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

from cluster.prediction.part import PartReport
from cluster.prediction.summary import Timing

TERMINAL_S, LOG_S = 0.5, 30.0
"""Between two lines on a terminal, which replace each other, and in a log, which stay."""
QUIET_S, AGAIN_S = 15.0, 60.0
"""Seconds that workers may take to start before a line says that they are waited for, and until the
next line.
"""


class Progress:
    """Counts images, or overlays, and prints, at most every few seconds. Times are s of `clock`."""

    def __init__(
        self,
        what: str = "images",
        stream: TextIO | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._what = what
        self._stream = stream or sys.stderr
        self._clock = clock
        self._replaces = self._stream.isatty()
        self._pause = TERMINAL_S if self._replaces else LOG_S
        self._said = self._began = clock()
        self._first: float | None = None
        self._waiting_since: float | None = None
        self._say_wait_at = 0.0
        self.ok = self.failed = self.reused = 0
        """Images of this run, and of the runs before it."""
        self._parts, self._seconds_of_parts = 0, 0.0

    def add(self, report: PartReport) -> None:
        self.ok, self.failed = self.ok + report.ok, self.failed + report.failed
        self._parts += 1
        self._seconds_of_parts += report.seconds

    def look(self, total: int | None, workers: int) -> None:
        """Print if it is time. `total` images, None where the list is not at its end yet."""
        now = self._clock()
        if self._first is None and workers:
            # Loading the network is no part of the rate.
            self._first = now
        if now - self._said >= self._pause:
            self._said = now
            self._write(self.line(total, workers))

    def wait(self, missing: int, wanted: str) -> None:
        """Say now and then that so many workers are waited for, and what each needs."""
        now = self._clock()
        if not missing:
            self._waiting_since = None
            return
        if self._waiting_since is None:
            self._waiting_since, self._say_wait_at = now, now + QUIET_S
        if now >= self._say_wait_at:
            self._say_wait_at = now + AGAIN_S
            since = _time(now - self._waiting_since)
            start = "\r\x1b[K" if self._replaces else ""
            self._stream.write(
                f"{start}waiting for {missing} workers since {since}: each needs {wanted}\n"
            )
            self._stream.flush()

    def line(self, total: int | None, workers: int) -> str:
        done, rate = self.ok + self.failed, self._rate()
        left = None if total is None else total - done - self.reused
        eta = "?" if left is None or not rate else _time(left / rate)
        reused = f", {self.reused} of before" if self.reused else ""
        of = "?" if total is None else str(total)
        return (
            f"{done + self.reused} of {of} {self._what}: {self.ok} ok, {self.failed} failed"
            f"{reused}; {rate:.1f} {self._what}/s, {eta} left, {workers} workers"
        )

    def timing(self, workers: int) -> Timing:
        """Of the work until now, with so many workers."""
        done = self.ok + self.failed
        return Timing(
            seconds=round(self._clock() - self._began, 1),
            images=done,
            images_before=self.reused,
            images_per_s=round(self._rate(), 2) if done else None,
            seconds_a_part=round(self._seconds_of_parts / self._parts, 2) if done else None,
            parts=self._parts,
            workers=workers,
        )

    def _rate(self) -> float:
        """Images/s."""
        since = self._began if self._first is None else self._first
        seconds = self._clock() - since
        return (self.ok + self.failed) / seconds if seconds > 0 else 0.0

    def end(self) -> None:
        """Leave the line on a terminal."""
        if self._replaces and self.ok + self.failed:
            self._stream.write("\n")

    def _write(self, line: str) -> None:
        self._stream.write(f"\r\x1b[K{line}" if self._replaces else f"{line}\n")
        self._stream.flush()


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
