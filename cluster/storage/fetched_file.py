"""A seekable pyarrow file whose bytes come from a function."""

from __future__ import annotations

import os
from collections.abc import Callable

import pyarrow as pa

FetchRange = Callable[[int, int], pa.Buffer]
"""(start, count) -> exactly `count` bytes from byte `start` on; raises where it cannot."""


def open_fetched(size: int, fetch: FetchRange) -> pa.NativeFile:
    """A file of `size` bytes that reads through `fetch`."""
    return pa.PythonFile(_FetchedFile(size, fetch), mode="r")


class _FetchedFile:
    """The methods that `pyarrow.PythonFile` calls."""

    closed = False

    def __init__(self, size: int, fetch: FetchRange) -> None:
        self.size, self.fetch, self.position = size, fetch, 0

    def close(self) -> None:
        self.closed = True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origins = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size}
        self.position = origins[whence] + offset
        return self.position

    def read(self, count: int = -1) -> bytes:
        return self.read_buffer(count).to_pybytes()

    def read_buffer(self, count: int = -1) -> pa.Buffer:
        rest = max(0, self.size - self.position)
        count = rest if count < 0 else min(count, rest)
        buffer = self.fetch(self.position, count) if count else pa.py_buffer(b"")
        self.position += count
        return buffer
