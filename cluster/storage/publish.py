"""Files that are written once, and files that are too large for the memory: both are seen whole or
not at all.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow.fs as pafs

from cluster.storage import files, schemes

COPY_BYTES = 8 << 20
"""Of one read of a file that is uploaded."""


def write_once(uri: str, data: bytes) -> bool:
    """Write a file if there is none; of two writers the first one wins. False: there is one, which
    stays. In a store without conditional writes the second one replaces it.
    """
    store = schemes.store_of(uri)
    if store is None:
        return _write_new(uri, data)
    with files.plain_errors(uri, "written"):
        written = store.retry(lambda: store.put_once(schemes.split(uri)[1], data))
    if written is None:
        files.write_bytes(uri, data)
    return written is not False


def _write_new(path: str, data: bytes) -> bool:
    if os.path.exists(path):
        return False
    # Of two writers at the same moment the second one's file stays, as a whole.
    files.write_bytes(path, data)
    return True


@contextmanager
def staged(uri: str) -> Iterator[str]:
    """A local path to write to. At the end of the block its file is published at `uri`; after an
    error nothing is.
    """
    store = schemes.store_of(uri)
    path = files.resolve(uri)[1]
    folder = None if store is not None else os.path.dirname(path)
    with files.plain_errors(uri, "written"):
        if folder is not None:
            os.makedirs(folder, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=files.PARTIAL)
        os.close(handle)
    try:
        with files.plain_errors(uri, "written"):
            yield temporary
            if store is None:
                os.chmod(temporary, 0o666 & ~files.current_umask())
                os.replace(temporary, path)
            else:
                store.retry(lambda: _upload(temporary, uri))
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def _upload(local: str, uri: str) -> None:
    file_system: pafs.FileSystem
    file_system, path = files.resolve(uri)
    with open(local, "rb") as source, file_system.open_output_stream(path) as target:
        shutil.copyfileobj(source, target, COPY_BYTES)
