"""Temporary folders of this machine that outlive nobody: they may hold weights."""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import psutil

_NAME = re.compile(r"retinaray-[a-z]+-(\d+)-(\d+)-(\d+)-\w+")


@contextmanager
def scratch_folder(what: str) -> Iterator[str]:
    """A folder for this user alone, removed at the end. `what` is a word of small letters that says
    what is in it. A killed process cannot remove its folders: the next one does, when it makes its
    first.
    """
    with tempfile.TemporaryDirectory(prefix=_prefix(what)) as folder:
        yield folder


def make_scratch_folder(what: str) -> str:
    """As `scratch_folder`, for a caller that removes it."""
    return tempfile.mkdtemp(prefix=_prefix(what))


def _prefix(what: str) -> str:
    _sweep(tempfile.gettempdir(), os.getpid())
    return f"retinaray-{what}-{_table()}-{os.getpid()}-{_started(os.getpid())}-"


@cache
def _sweep(parent: str, process: int) -> None:
    """Remove folders of processes that are gone. `process` is part of the key alone: a fork is
    another process.
    """
    with os.scandir(parent) as entries:
        for entry in entries:
            owner = _NAME.fullmatch(entry.name)
            if owner is None or int(owner[1]) != _table():
                continue
            status = os.lstat(entry.path)
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
                continue
            if _started(int(owner[2])) != int(owner[3]):
                shutil.rmtree(entry.path, ignore_errors=True)


def _table() -> int:
    """Which table the numbers of processes are of: a container that shares /tmp has its own."""
    return os.stat("/proc/self/ns/pid").st_ino if os.path.exists("/proc/self/ns/pid") else 0


def _started(process: int) -> int:
    """When a process was started, s since 1970; 0 where there is none of this number. A number is
    given again.
    """
    try:
        return int(psutil.Process(process).create_time())
    except psutil.Error:
        return 0
