"""Whether this machine can list, write, read and delete in the storage, and how fast."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from cluster.errors import PlainError
from cluster.storage import files, preflight, publish
from cluster.storage.uris import absolute, join

FOLDER = ".preflight"
PROBE_BYTES = 4 << 20
"""As much as a read of a row group. With 64 nodes at once 256 MiB."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class StorageSpeed:
    """Seconds to list a folder; bytes a second of one write and of one read; whether the storage
    keeps the first of two writers, as runs and predictions need it.
    """

    list_s: float
    write_rate: float
    read_rate: float
    first_writer_wins: bool


@contextmanager
def marked(storage: str) -> Iterator[str]:
    """The name of a file that the driver has written below the storage, for `measure_storage`;
    empty where it cannot be written, which the nodes then report with the reason.
    """
    folder, marker = join(absolute(storage), FOLDER), uuid.uuid4().hex
    try:
        preflight.check_writable(storage)
        files.write_bytes(join(folder, marker), b"x")
    except (PlainError, OSError):
        marker = ""
    try:
        yield marker
    finally:
        with contextlib.suppress(PlainError, OSError):
            if marker:
                files.delete_file(join(folder, marker))
            if "://" not in folder:
                os.rmdir(folder)


def measure_storage(storage: str, marker: str, *, node: str) -> StorageSpeed | str:
    """Use the storage from this machine, or say in words why it cannot be used. `marker` is a file
    that the driver has written: where it is missing, the two have different disks.
    """
    folder = join(absolute(storage), FOLDER)
    probe = join(folder, uuid.uuid4().hex)
    try:
        preflight.check_writable(storage)
        if marker and not files.exists(join(folder, marker)):
            return (
                f"{absolute(storage)}: {node} does not see what the driver wrote there; give"
                " --storage s3://bucket/prefix, or mount the same disk on all nodes"
            )
        _, list_s = _timed(lambda: files.list_names(folder))
        data = os.urandom(PROBE_BYTES)
        first, write_s = _timed(lambda: publish.write_once(probe, data))
        again = publish.write_once(probe, b"second")
        read, read_s = _timed(lambda: files.read_bytes(probe))
        files.delete_file(probe)
    except (PlainError, OSError) as error:
        return str(error)
    wins = first and not again and read == data
    return StorageSpeed(list_s, len(data) / write_s, len(read) / read_s, wins)


def _timed(call: Callable[[], Result]) -> tuple[Result, float]:
    start = time.perf_counter()
    result = call()
    return result, max(time.perf_counter() - start, 1e-6)
