"""Ends a worker that makes no progress, so that it is a failure like any other: its group restarts
from the newest checkpoint.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable

EXIT_CODE = 70
FIRST_TIMES = 4
"""The first step may take this many times the limit: read processes start, code is compiled."""
LAST_WORDS_S = 2.0
"""Seconds between the report and the end of the process, in which the event leaves it."""


class Watchdog:
    """Ends this process if the thread that created the watchdog has not called `progressed` for
    `limit_s` seconds, the first time for `FIRST_TIMES` as many. 0 turns it off.

    Before that it calls `on_hang(seconds, location)`, which says where the thread is, and writes
    the stacks of all threads to the worker's log. If one rank hangs, every rank of its group stands
    still; the location tells those that wait for others apart. A process that is stopped as a
    whole, or whose node is, reports nothing: it is the one that is missing.
    """

    def __init__(self, limit_s: float, on_hang: Callable[[float, str], None]):
        self._limit_s, self._on_hang = limit_s, on_hang
        self._watched = threading.get_ident()
        self._stopped = threading.Event()
        self._progressed_at, self._allowed_s = time.monotonic(), FIRST_TIMES * limit_s
        if limit_s:
            threading.Thread(target=self._watch, daemon=True, name="watchdog").start()

    def progressed(self) -> None:
        self._progressed_at, self._allowed_s = time.monotonic(), self._limit_s

    def stop(self) -> None:
        self._stopped.set()

    def _watch(self) -> None:
        while not self._stopped.wait(min(1.0, self._limit_s / 4)):
            silent_s = time.monotonic() - self._progressed_at
            if silent_s > self._allowed_s:
                self._on_hang(silent_s, _location_of(self._watched))
                faulthandler.dump_traceback()
                time.sleep(LAST_WORDS_S)
                os._exit(EXIT_CODE)


def _location_of(thread: int) -> str:
    """Where a thread is, in words: what it waits for, the innermost frame of our own code and the
    innermost frame of all.
    """
    frames = traceback.extract_stack(sys._current_frames()[thread])
    ours = [
        f
        for f in frames
        if os.sep + "cluster" + os.sep in f.filename or os.sep + "detector" + os.sep in f.filename
    ]
    shown = dict.fromkeys(
        f"{_short(f.filename)}:{f.lineno} {f.name}" for f in (*ours[-1:], frames[-1])
    )
    in_exchange = any(os.path.join("torch", "distributed") in f.filename for f in frames)
    in_backward = any(
        f.name == "backward" and os.sep + "torch" + os.sep in f.filename for f in frames
    )
    state = (
        "waits for other ranks"
        if in_exchange
        else "in the backward pass, in which ranks wait for each other"
        if in_backward
        else "hangs"
    )
    return f"{state}, at {' > '.join(shown)}"


def _short(path: str) -> str:
    return os.sep.join(path.split(os.sep)[-2:])
