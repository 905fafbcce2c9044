"""Before work starts: can a place be reached, read, written? A `UsageError` says what is wrong and
the remedy.
"""

from __future__ import annotations

import os
import posixpath

import pyarrow.fs as pafs

from cluster.errors import UsageError
from cluster.storage import s3
from cluster.storage.uris import S3, absolute

WRITE_CHECK = ".write-check"


def check_reachable(uri: str) -> None:
    """Preflight: where `uri` is in S3, its endpoint answers and lets these credentials into the
    bucket. `UsageError` like `check_readable`.
    """
    uri = absolute(uri)
    if uri.startswith(S3):
        reach_bucket(uri)


def check_readable(uri: str) -> None:
    """Preflight: the file or folder is there and can be read. `UsageError` naming what is wrong and
    the remedy, within about ten seconds.
    """
    uri = absolute(uri)
    if not uri.startswith(S3):
        if not os.path.exists(uri):
            raise UsageError(f"{uri}: there is no such file or folder; check the path")
        if not os.access(uri, os.R_OK):
            raise UsageError(f"{uri}: may not be read by this user; change its permissions")
        return
    filesystem, path = reach_bucket(uri)
    try:
        found = filesystem.get_file_info(path).type != pafs.FileType.NotFound
    except OSError as error:
        raise UsageError(f"{uri}: {s3.cause(path, error)}") from error
    if not found:
        raise UsageError(f"{uri}: the bucket is there, this file or folder is not; check the key")


def check_writable(uri: str) -> None:
    """Preflight: files can be written below the folder, which need not exist yet. `UsageError` like
    `check_readable`.
    """
    uri = absolute(uri)
    if not uri.startswith(S3):
        nearest = uri
        while not os.path.lexists(nearest):
            nearest = os.path.dirname(nearest)
        if not os.path.exists(nearest):
            raise UsageError(
                f"{uri}: {nearest} is a link to {os.readlink(nearest)}, which is not there; mend it"
                " or give another path"
            )
        if not os.path.isdir(nearest):
            raise UsageError(f"{uri}: {nearest} is a file, a folder is needed; give another path")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise UsageError(
                f"{uri}: {nearest} may not be written by this user; change its permissions or give"
                " another path"
            )
        return
    filesystem, path = reach_bucket(uri)
    # The right to list is not the right to write, and that would show only after the work is done.
    probe = posixpath.join(path, WRITE_CHECK)
    try:
        # Not empty: an empty upload passes where others do not.
        s3.put(filesystem, probe, b"x")
        filesystem.delete_file(probe)
    except OSError as error:
        raise UsageError(
            f"{uri}: the bucket can be listed but not written: {s3.cause(path, error)}"
        ) from error


def reach_bucket(uri: str) -> tuple[pafs.FileSystem, str]:
    """An impatient client and the path inside it, after one LIST."""
    path = uri[len(S3) :]
    if (error := s3.list_error(path)) is not None:
        raise UsageError(f"{uri}: {s3.cause(path, error)}") from error
    return s3.client(s3.IMPATIENT), path
