"""A worker that makes no progress ends itself, so that it is a failure like any other: its group is
restarted from the newest checkpoint.
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
"""Times the limit that the first step may take: processes that read, compilation."""
LAST_WORDS_S = 2.0
"""Seconds between telling and ending, in which the event leaves the process."""


class Watchdog:
    """Ends this process when the thread that made it has not called `progressed` for `limit_s`
    seconds, or `FIRST_TIMES` as long for the first time; 0 is never.

    Before that `tell("hang", seconds, place)` says where the thread is, and the stacks of all
    threads go to the worker's log. Every rank of a group stands still when one hangs; those that
    wait for it are told apart by their place. A process that is stopped as a whole, or whose node
    is, says nothing: it is the one that is missing.
    """

    def __init__(self, limit_s: float, tell: Callable[..., None]):
        self.limit_s, self.tell = limit_s, tell
        self.watched = threading.get_ident()
        self.stopped = threading.Event()
        self.at, self.allowed = time.monotonic(), FIRST_TIMES * limit_s
        if limit_s:
            threading.Thread(target=self.watch, daemon=True, name="watchdog").start()

    def progressed(self) -> None:
        self.at, self.allowed = time.monotonic(), self.limit_s

    def stop(self) -> None:
        self.stopped.set()

    def watch(self) -> None:
        while not self.stopped.wait(min(1.0, self.limit_s / 4)):
            silent = time.monotonic() - self.at
            if silent > self.allowed:
                self.tell("hang", seconds=silent, place=place_of(self.watched))
                faulthandler.dump_traceback()
                time.sleep(LAST_WORDS_S)
                os._exit(EXIT_CODE)


def place_of(thread: int) -> str:
    """Where a thread is, in words: what it waits for, the innermost frame, and the innermost one of
    ours.
    """
    frames = traceback.extract_stack(sys._current_frames()[thread])
    ours = [
        f
        for f in frames
        if os.sep + "cluster" + os.sep in f.filename or os.sep + "detector" + os.sep in f.filename
    ]
    shown = dict.fromkeys(
        f"{short(f.filename)}:{f.lineno} {f.name}" for f in (*ours[-1:], frames[-1])
    )
    waits = any(os.path.join("torch", "distributed") in f.filename for f in frames)
    backward = any(f.name == "backward" and os.sep + "torch" + os.sep in f.filename for f in frames)
    why = (
        "waits for other ranks"
        if waits
        else "in the backward pass, in which ranks wait for each other"
        if backward
        else "hangs"
    )
    return f"{why}, at {' > '.join(shown)}"


def short(path: str) -> str:
    return os.sep.join(path.split(os.sep)[-2:])
