"""Checks before work starts: can this path or bucket be reached, read, written? A `UsageError` says
what is wrong and gives the remedy.
"""

from __future__ import annotations

import errno
import os
import posixpath
import tempfile

import pyarrow.fs as pafs

from cluster.errors import UsageError
from cluster.storage import files, schemes, zips
from cluster.storage.local_tree import fault_of
from cluster.storage.schemes import ObjectStore
from cluster.storage.uris import absolute

WRITE_CHECK = ".write-check"


def check_reachable(uri: str) -> None:
    """Where `uri` is in object storage: its endpoint answers and these credentials may list the
    bucket. `UsageError` as `check_readable`.
    """
    uri = absolute(uri)
    if (store := schemes.store_of(uri)) is not None:
        _check_bucket(store, uri)


def check_readable(uri: str) -> None:
    """The file or folder exists and can be read. `UsageError` with the fault and the remedy, within
    about ten seconds.
    """
    uri = absolute(uri)
    if (parts := zips.split(uri)) is not None and parts[1]:
        check_readable(parts[0])
        if not files.exists(uri):
            raise UsageError(f"{uri}: there is no such file or folder in the zip; check the name")
        return
    store = schemes.store_of(uri)
    if store is None:
        if not os.path.exists(uri):
            raise UsageError(f"{uri}: there is no such file or folder; check the path")
        if fault := fault_of(uri):
            raise UsageError(f"{uri}: is {fault}; save its content as a file and name that")
        if not os.access(uri, os.R_OK):
            raise UsageError(f"{uri}: this user may not read it; change its permissions")
        return
    path = _check_bucket(store, uri)
    try:
        exists = store.hasty_file_system().get_file_info(path).type != pafs.FileType.NotFound
    except OSError as error:
        raise UsageError(f"{uri}: {store.cause(path, error)}") from error
    if not exists:
        raise UsageError(f"{uri}: the bucket exists, this file or folder does not; check the key")


def check_writable(uri: str) -> None:
    """Files can be written below the folder, which need not exist yet. `UsageError` as
    `check_readable`.
    """
    uri = absolute(uri)
    store = schemes.store_of(uri)
    if store is None:
        _check_writable_locally(uri)
        return
    path = _check_bucket(store, uri)
    # The right to list is not the right to write; without this check the missing right would show
    # only when the work is done.
    probe = posixpath.join(path, WRITE_CHECK)
    file_system = store.hasty_file_system()
    try:
        with file_system.open_output_stream(probe) as stream:
            # One byte: some servers accept an empty upload and refuse others.
            stream.write(b"x")
        file_system.delete_file(probe)
    except OSError as error:
        raise UsageError(
            f"{uri}: the bucket can be listed but not written: {store.cause(path, error)}"
        ) from error


def _check_writable_locally(path: str) -> None:
    nearest = path
    while not os.path.lexists(nearest):
        nearest = os.path.dirname(nearest)
    if not os.path.exists(nearest):
        raise UsageError(
            f"{path}: {nearest} is a link to {os.readlink(nearest)}, which does not exist; repair"
            " the link or give another path"
        )
    if not os.path.isdir(nearest):
        which = "is a file" if nearest == path else f"{nearest} is a file"
        raise UsageError(f"{path}: {which}, a folder is needed; give another path")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UsageError(
            f"{path}: this user may not write to {nearest}; change its permissions or give another"
            " path"
        )
    # Permissions do not tell all: nobody can make a file in /proc. This one is gone at once.
    try:
        tempfile.TemporaryFile(dir=nearest, prefix=files.PARTIAL).close()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise UsageError(
                f"{path}: no file can be made in {nearest} ({error.strerror}); give another path"
            ) from error


def _check_bucket(store: ObjectStore, uri: str) -> str:
    """The bucket/key of `uri`, after one LIST of it."""
    _, path = schemes.split(uri)
    if (error := store.list_error(path)) is not None:
        raise UsageError(f"{uri}: {store.cause(path, error)}") from error
    return path
