"""Folders in /tmp that are for this user alone."""

from __future__ import annotations

import os
import stat
from contextlib import suppress

from cluster.errors import UsageError


def make_private(folder: str, *, remedy: str) -> None:
    """Make a folder for this user alone; the one above must be there. `UsageError` where it is
    there already and others can change what is in it: anybody may make one of this name in /tmp.
    `OSError` where it cannot be made.
    """
    with suppress(FileExistsError):
        os.mkdir(folder, mode=0o700)
    status = os.lstat(folder)
    fault = ""
    if not stat.S_ISDIR(status.st_mode):
        fault = "is a link or no folder"
    elif status.st_uid != os.getuid():
        fault = f"belongs to the user {status.st_uid}, not to {os.getuid()}"
    elif status.st_mode & 0o022:
        fault = "can be written by other users"
    if fault:
        raise UsageError(f"{folder}: {fault}; remove it, or {remedy}")
    # Earlier versions let others look into it.
    if status.st_mode & 0o077:
        os.chmod(folder, 0o700)
