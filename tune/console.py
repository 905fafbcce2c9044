"""What a sweep says on the terminal: lines, and on a terminal that can be rewritten a table below
them.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import TextIO

from rich.console import Console as RichConsole
from rich.live import Live
from rich.table import Table

from tune import space
from tune.trials import TrialRecord, ranked

MOST_ROWS = 12
"""Trials in the table: the running ones and the best."""


class Console:
    """`say` prints a line, `show` the state of all trials: as a table that stays at the bottom of a
    terminal, or as one line in a log. Use it as a context.
    """

    def __init__(self, *, out: TextIO | None = None):
        self._trials = 0
        self._out = out or sys.stdout
        self._rich = RichConsole(file=self._out, highlight=False)
        self._live = Live(console=self._rich, auto_refresh=False, transient=True)
        self._began, self._ended_before = time.monotonic(), 0
        self._lock = threading.Lock()

    def __enter__(self) -> Console:
        if self._rich.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def say(self, line: str) -> None:
        with self._lock:
            if self._live.is_started:
                self._rich.print(f"[sweep] {line}", markup=False, soft_wrap=True)
            else:
                print(f"[sweep] {line}", file=self._out, flush=True)

    def begin(self, records: Sequence[TrialRecord], *, trials: int) -> None:
        """There will be so many `trials`. Those that earlier commands have ended, among these
        records, do not count for the time that is left.
        """
        self._trials, self._began = trials, time.monotonic()
        self._ended_before = sum(record.status != "running" for record in records)

    def show(self, records: Sequence[TrialRecord]) -> None:
        if self._live.is_started:
            self._live.update(self._table(records), refresh=True)
        else:
            self.say(self.summary(records))

    def summary(self, records: Sequence[TrialRecord]) -> str:
        """One line: how many trials are in which state, the best, and the time left."""
        states = Counter(record.status for record in records)
        ended = sum(states.values()) - states["running"]
        parts = [f"{states[name]} {name}" for name in _STATES if states[name]]
        text = f"{ended} of {self._trials} trials ended"
        if parts:
            text += f" ({', '.join(parts)})"
        best = ranked(records)[0] if records else None
        if best is not None and best.best is not None:
            text += f"; best so far AP {best.best.shown}, {best.trial}"
        left = self._seconds_left(ended)
        return text + (f"; about {_duration(left)} left" if left else "")

    def _seconds_left(self, ended: int) -> float:
        here = ended - self._ended_before
        if here < 1 or ended >= self._trials:
            return 0.0
        return (time.monotonic() - self._began) / here * (self._trials - ended)

    def _table(self, records: Sequence[TrialRecord]) -> Table:
        table = Table(title=self.summary(records), title_justify="left", title_style="")
        for name in ("trial", "status", "epochs", "best AP", "last AP", "setting"):
            table.add_column(name, overflow="fold" if name == "setting" else "ellipsis")
        running = [record for record in records if record.status == "running"]
        others = [record for record in ranked(records) if record.status != "running"]
        for record in [*running, *others][:MOST_ROWS]:
            table.add_row(
                record.trial,
                record.status,
                f"{record.epochs_done}/{record.epochs}",
                record.best.shown if record.best else "-",
                record.last.shown if record.last else "-",
                space.shown(record.sample),
            )
        return table


_STATES = ("done", "stopped early", "failed", "running")


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return "1 min"
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
