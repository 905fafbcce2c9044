"""One driver a run: who trains it says so in the run's folder, every few seconds, and a second one
is refused.

driver.json      {"driver", "since", "process", "token", "beat"}, written anew every `BEAT_S`;
deleted at the end

A driver that was killed leaves the file. On its own machine its process is looked up, so the same
command goes on at once; from elsewhere the file is watched, and when it has not changed for
`SILENT_S` its driver counts as gone. Nobody's clock is compared with another's. Storage has no lock
that local disks and S3 share, so two that start in the same second may both believe that they hold
the run: the one whose file was overwritten finds out at its next beat and ends.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import psutil

from cluster.errors import PlainError, UsageError
from cluster.runs import run_folder
from cluster.storage import files
from cluster.storage.uris import join

DRIVER = "driver.json"
BEAT_S = 5.0
SILENT_S = 30.0


class Lease:
    """Holds a run while it is entered. `lost(reason)` is called from a thread when another driver
    has taken the run.
    """

    def __init__(self, run: str, lost: Callable[[str], None]):
        self.run, self.lost = run, lost
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        self.mine = {
            "driver": f"{socket.gethostname()} (pid {os.getpid()})",
            "since": since,
            "process": this_process(),
            "token": uuid.uuid4().hex,
        }
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.keep, daemon=True, name="lease")

    def __enter__(self) -> Lease:
        refuse_held(self.run)
        self.write(0)
        found = run_folder.read(self.run, DRIVER) or {}
        if found.get("token") != self.mine["token"]:
            raise UsageError(held(self.run, found))
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.thread.join(timeout=2 * BEAT_S)
        try:
            if (run_folder.read(self.run, DRIVER) or {}).get("token") == self.mine["token"]:
                files.delete_file(join(self.run, DRIVER))
        except (PlainError, OSError):
            # What stays there counts as gone as soon as this process is.
            return

    def keep(self) -> None:
        beat = 0
        while not self.stopped.wait(BEAT_S):
            beat += 1
            try:
                found = run_folder.read(self.run, DRIVER)
                if found is not None and found["token"] != self.mine["token"]:
                    return self.lost(
                        f"{self.run}: {found['driver']} has trained it since {found['since']}, this"
                        " driver ends"
                    )
                self.write(beat)
            except (PlainError, OSError):
                # Storage is away: for the workers too, and whoever comes meanwhile cannot read this
                # file either.
                continue

    def write(self, beat: int) -> None:
        run_folder.write(self.run, DRIVER, {**self.mine, "beat": beat})


def refuse_held(run: str) -> None:
    """`UsageError` where a driver that is alive trains the run; takes up to `SILENT_S` where that
    cannot be seen from here.
    """
    found = run_folder.read(run, DRIVER)
    if found is None or found["process"] == this_process():
        return
    here = this_process()
    if {**found["process"], "pid": 0, "started": 0} == {**here, "pid": 0, "started": 0}:
        if is_running(found["process"]):
            raise UsageError(held(run, found))
        return
    print(
        f"{run} may be in the hands of {found['driver']}; watching up to {SILENT_S:g} s whether"
        " that is alive",
        file=sys.stderr,
        flush=True,
    )
    given_up = time.monotonic() + SILENT_S
    while time.monotonic() < given_up:
        time.sleep(1)
        now = run_folder.read(run, DRIVER)
        if now is None:
            return
        if now != found:
            raise UsageError(held(run, now))


def held(run: str, found: dict[str, Any]) -> str:
    return (
        f"{run}: {found.get('driver', 'another driver')} has trained it since"
        f" {found.get('since', 'just now')}; wait for its end, end it, or take another --name"
    )


def this_process() -> dict[str, Any]:
    """What names this process: the machine since its last start, the table its number is in
    (containers have their own), number and start.
    """
    return {
        "host": socket.gethostname(),
        "boot": boot(),
        "table": process_table(),
        "pid": os.getpid(),
        "started": psutil.Process().create_time(),
    }


def boot() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def process_table() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def is_running(process: dict[str, Any]) -> bool:
    try:
        found = psutil.Process(process["pid"])
        # Numbers are used again; a start within a second is the same one, as it is computed from a
        # clock that is corrected.
        return (
            abs(found.create_time() - process["started"]) < 1
            and found.status() != psutil.STATUS_ZOMBIE
        )
    except psutil.NoSuchProcess:
        return False
