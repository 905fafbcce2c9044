"""What lies below a local folder, also behind symbolic links."""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from cluster.errors import DataError

NOWHERE = "a link that leads nowhere"
MOST_LINKS = 16
"""Links that may lead into one folder. Links between folders multiply: from each of 10 to all
others, and a listing has no end.
"""
NO_FILE = "neither a file nor a folder: a pipe, a socket or a device"


class Entry(NamedTuple):
    """A file of a listing, `size` in bytes and `changed` in ns since 1970. `fault` is why it is no
    file that can be read.
    """

    uri: str
    size: int
    changed: int
    fault: str = ""


def walk(folder: str) -> Iterator[Entry]:
    """All below a folder that is no folder, in the order of the paths, with the names of one folder
    in memory. A link to a folder that it lies in is not followed: pyarrow's listing has its files
    41 times. `DataError` where a name is not UTF-8, and where more than `MOST_LINKS` lead into one
    folder.
    """
    try:
        status = os.stat(folder)
    except FileNotFoundError:
        return
    yield from _walk(folder, _identity(status), frozenset(), Counter())


def _walk(
    folder: str,
    here: tuple[int, int],
    above: frozenset[tuple[int, int]],
    times: Counter[tuple[int, int]],
) -> Iterator[Entry]:
    """`above` are the folders that it lies in, `times` how often each was listed."""
    if here in above:
        return
    times[here] += 1
    if times[here] > 1 + MOST_LINKS:
        raise DataError(
            f"{folder}: more than {MOST_LINKS} links lead into this folder; remove links, or name"
            " a folder below"
        )
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=_place):
            try:
                entry.name.encode("utf-8")
            except UnicodeEncodeError:
                raise DataError(
                    f"{folder}: contains a file whose name is not UTF-8:"
                    f" {os.fsencode(entry.name)!r}; rename or remove it"
                ) from None
            found = _status(entry.path)
            if found is None:
                # A file that was deleted meanwhile is none.
                if entry.is_symlink():
                    yield Entry(entry.path, 0, 0, NOWHERE)
            elif stat.S_ISDIR(found.st_mode):
                yield from _walk(entry.path, _identity(found), above | {here}, times)
            else:
                fault = "" if stat.S_ISREG(found.st_mode) else NO_FILE
                yield Entry(entry.path, found.st_size, found.st_mtime_ns, fault)


def _identity(status: os.stat_result) -> tuple[int, int]:
    """Device and inode."""
    return status.st_dev, status.st_ino


def _place(entry: os.DirEntry[str]) -> str:
    """Sorts a folder where the paths of its files belong: `a.jpg` is before `a/b.jpg`."""
    found = _status(entry.path)
    is_folder = found is not None and stat.S_ISDIR(found.st_mode)
    return f"{entry.name}/" if is_folder else entry.name


def fault_of(path: str) -> str:
    """Why there is no file or folder to read; empty where there is one, and where nothing is."""
    found = _status(path)
    if found is None:
        return NOWHERE if os.path.islink(path) else ""
    return "" if stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode) else NO_FILE


def _status(path: str) -> os.stat_result | None:
    """None where nothing is, also behind a link or in a circle of links."""
    try:
        return os.stat(path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise
