"""One driver per run, or per folder of predictions: the driver that trains a run renews a
record in the run's folder every few seconds, and a second driver is refused.

driver.json      {"driver": "gpu-7 (pid 12)", "since": "2026-01-02 03:04:05 UTC",
                  "process": {"host", "boot", "table", "pid", "started"}, "token", "beat": 3},
                 written again every `BEAT_S`, deleted at the end

A killed driver leaves the file behind. On the same machine its process is looked up, so the same
command continues at once. From another machine the file is watched: when it has not changed for
`SILENT_S`, its driver is considered dead. No two clocks are compared.

Storage has no lock that local disks and object storage share, so two drivers that start in the same
second may both take the run. The one whose file was overwritten notices it at its next beat and
ends.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import psutil

from cluster.errors import PlainError, UsageError
from cluster.runs import run_folder
from cluster.storage import files, record_files
from cluster.storage.uris import join

DRIVER = "driver.json"
BEAT_S = 5.0
SILENT_S = 30.0


@dataclass(frozen=True)
class Process:
    """Identifies a process among all machines and restarts."""

    host: str
    boot: str
    """Of the machine, since its last start."""
    table: str
    """The process table that `pid` belongs to; containers have their own."""
    pid: int
    started: float
    """Seconds since 1970."""

    def same_table(self, other: Process) -> bool:
        """Whether this process can look up the pid of `other`."""
        return (self.host, self.boot, self.table) == (other.host, other.boot, other.table)


@dataclass(frozen=True)
class LeaseRecord:
    """The content of driver.json."""

    driver: str
    """Host and process id, for messages."""
    since: str
    process: Process
    token: str
    """Unique per lease."""
    beat: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> LeaseRecord:
        """`KeyError` or `TypeError` where the content is not that of driver.json."""
        process = content["process"]
        return LeaseRecord(
            driver=content["driver"],
            since=content["since"],
            process=Process(
                process["host"],
                process["boot"],
                process["table"],
                process["pid"],
                process["started"],
            ),
            token=content["token"],
            beat=content["beat"],
        )


@dataclass(frozen=True)
class Words:
    """What messages say of a folder."""

    has_done: str
    """What the driver has done with it."""
    other: str
    """The option that names another folder."""


TRAINING = Words("has trained it", "--name")
PREDICTING = Words("has predicted into it", "--output")


class Lease:
    """Takes a run on entry and releases it on exit. A thread calls `lost(reason)` where another
    driver has taken the run meanwhile.
    """

    def __init__(self, run: str, lost: Callable[[str], None], *, words: Words = TRAINING):
        self.run, self._lost, self._words = run, lost, words
        self._mine = LeaseRecord(
            driver=f"{socket.gethostname()} (pid {os.getpid()})",
            since=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
            process=this_process(),
            token=uuid.uuid4().hex,
            beat=0,
        )
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True, name="lease")

    def __enter__(self) -> Lease:
        refuse_held(self.run, self._words)
        self._write(beat=0)
        record = read_record(self.run)
        if record is None or record.token != self._mine.token:
            raise UsageError(_refusal(self.run, record, self._words))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join(timeout=2 * BEAT_S)
        try:
            record = read_record(self.run)
            if record is not None and record.token == self._mine.token:
                files.delete_file(join(self.run, DRIVER))
        except (PlainError, OSError):
            # A file that stays is considered dead as soon as this process is.
            return

    def _renew(self) -> None:
        beat = 0
        while not self._stopped.wait(BEAT_S):
            beat += 1
            try:
                record = read_record(self.run)
                if record is not None and record.token != self._mine.token:
                    self._lost(
                        f"{self.run}: {record.driver} {self._words.has_done} since"
                        f" {record.since}, this driver ends"
                    )
                    return
                self._write(beat)
            except (PlainError, OSError):
                # Storage is unreachable for the workers too, and a second driver cannot read this
                # file either.
                continue
            except Exception:
                if self._stopped.is_set():
                    # It waited for the storage longer than `__exit__` for it, and Python's end has
                    # closed the client.
                    return
                raise

    def _write(self, beat: int) -> None:
        run_folder.write(self.run, DRIVER, replace(self._mine, beat=beat).to_json())


def read_record(run: str) -> LeaseRecord | None:
    """The record of the driver that has the run; None where there is none. `DataError` where
    driver.json is damaged.
    """
    content = run_folder.read(run, DRIVER)
    if content is None:
        return None
    remedy = "delete it when no driver trains the run"
    return record_files.build(content, LeaseRecord.from_json, join(run, DRIVER), remedy=remedy)


def refuse_held(run: str, words: Words = TRAINING) -> None:
    """`UsageError` where a living driver trains the run. Takes up to `SILENT_S` where the driver's
    process cannot be looked up from here.
    """
    record, here = read_record(run), this_process()
    if record is None or record.process == here:
        return
    if here.same_table(record.process):
        if is_running(record.process):
            raise UsageError(_refusal(run, record, words))
        return
    print(
        f"{run} may belong to {record.driver}; watching up to {SILENT_S:g} s whether that driver"
        " is alive",
        file=sys.stderr,
        flush=True,
    )
    deadline = time.monotonic() + SILENT_S
    while time.monotonic() < deadline:
        time.sleep(1)
        now = read_record(run)
        if now is None:
            return
        if now != record:
            raise UsageError(_refusal(run, now, words))


def wait_until_free(run: str) -> None:
    """Wait up to `SILENT_S` for the end of the driver that trains the run: one that Ray is ending,
    because whoever started it was killed.
    """
    deadline = time.monotonic() + SILENT_S
    while time.monotonic() < deadline:
        record, here = read_record(run), this_process()
        if record is None or not here.same_table(record.process):
            return
        if record.process == here or not is_running(record.process):
            return
        time.sleep(0.5)


def _refusal(run: str, record: LeaseRecord | None, words: Words) -> str:
    driver, since = (record.driver, record.since) if record else ("another driver", "just now")
    return (
        f"{run}: {driver} {words.has_done} since {since}; wait for its end, end it, or take another"
        f" {words.other}"
    )


def this_process() -> Process:
    return Process(
        host=socket.gethostname(),
        boot=_boot_id(),
        table=_process_table(),
        pid=os.getpid(),
        started=psutil.Process().create_time(),
    )


def is_running(process: Process) -> bool:
    """Whether a process of this machine's table is alive."""
    try:
        found = psutil.Process(process.pid)
        # Process ids are reused. A start within one second is the same process: the time is
        # computed from a clock that may be adjusted meanwhile.
        return (
            abs(found.create_time() - process.started) < 1
            and found.status() != psutil.STATUS_ZOMBIE
        )
    except psutil.NoSuchProcess:
        return False


def _boot_id() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def _process_table() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
