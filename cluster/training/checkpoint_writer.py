"""Writes checkpoints to this node's disk, where they wait for their upload."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from cluster.compute.private_folder import make_private
from cluster.errors import DiskFull, PlainError, UsageError
from detector.checkpoint import Snapshot, write_checkpoint

_PARTIAL = ".partial-"
SMALL_FILES = 4 << 20
"""A generous bound, in bytes, on what a checkpoint takes beside its tensors: state.json and the
names of the tensors.
"""
_REMEDY = "name another local folder with --training.checkpoint_folder"
_FULL = (errno.ENOSPC, errno.EDQUOT)


def local_folder(run: str, run_uuid: str, configured: str | None) -> str:
    """Where the checkpoints of a run wait for their upload on any node: the same for each of its
    workers, another one for every other run.
    """
    parent = configured or _own_folder()
    digest = hashlib.sha256(f"{run} {run_uuid}".encode()).hexdigest()[:12]
    return os.path.join(parent, f"{os.path.basename(run)}-{digest}")


def _own_folder() -> str:
    return os.path.join(tempfile.gettempdir(), f"retinaray-{os.getuid()}")


class LocalCheckpoints:
    """The checkpoints in a folder on this node's disk. One under its own name is whole."""

    def __init__(self, folder: str):
        """Makes the folder and removes what an earlier worker has written in part. `UsageError`
        where that is impossible, and where another user can write to it.
        """
        self.folder = folder
        try:
            parent = os.path.dirname(folder)
            if parent == _own_folder():
                make_private(parent, remedy=_REMEDY)
            elif not os.path.exists(parent):
                os.makedirs(parent, exist_ok=True)
            # Whatever waits in it is uploaded as a checkpoint of the run.
            make_private(folder, remedy=_REMEDY)
            for name in os.listdir(folder):
                if name.startswith(_PARTIAL):
                    shutil.rmtree(os.path.join(folder, name))
        except OSError as error:
            raise UsageError(
                f"{folder}: cannot be written ({error.strerror}); {_REMEDY}"
            ) from error

    def names(self) -> list[str]:
        """Of the whole checkpoints, oldest first."""
        return sorted(name for name in os.listdir(self.folder) if not name.startswith(_PARTIAL))

    def path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def partial_path(self, name: str) -> str:
        return os.path.join(self.folder, _PARTIAL + name)

    def remove(self, name: str) -> None:
        shutil.rmtree(self.path(name))

    def free_bytes(self) -> int:
        return shutil.disk_usage(self.folder).free


class CheckpointWriter:
    """Writes snapshots with a thread of its own, one after the other."""

    def __init__(self, local: LocalCheckpoints):
        self._local = local
        self._thread = ThreadPoolExecutor(1, "checkpoint-disk")
        self._writing: Future[None] | None = None

    def begin(self, name: str, snapshot: Snapshot, *, then: Callable[[], object]) -> None:
        """Begin to write; once the checkpoint is whole its thread calls `then`."""
        self._writing = self._thread.submit(self._write, name, snapshot, then)

    def wait(self) -> None:
        """Until the last snapshot is on disk. Raises what went wrong with it."""
        if self._writing is not None:
            self._writing.result()

    def raise_failure(self) -> None:
        """What went wrong with a snapshot that is no longer being written."""
        if self._writing is not None and self._writing.done():
            self._writing.result()

    def check_room(self, size: int, *, wait_for_upload: Callable[[], None]) -> None:
        """`DiskFull` where the disk has no room for a checkpoint with tensors of `size` bytes. It
        waits first for the upload under way, which makes room.
        """
        needed = size + SMALL_FILES
        if self._local.free_bytes() < needed:
            wait_for_upload()
        free = self._local.free_bytes()
        if free < needed:
            raise self._disk_full(f"a checkpoint takes {needed} bytes, {free} are free")

    def _write(self, name: str, snapshot: Snapshot, then: Callable[[], object]) -> None:
        partial, folder = self._local.partial_path(name), self._local.path(name)
        try:
            write_checkpoint(partial, snapshot)
            shutil.rmtree(folder, ignore_errors=True)
            os.rename(partial, folder)
        except Exception as error:
            free = self._local.free_bytes()
            shutil.rmtree(partial, ignore_errors=True)
            # On a full disk safetensors and torch raise errors of their own; torch's does not
            # mention the disk.
            if getattr(error, "errno", None) in _FULL or free < snapshot.size:
                raise self._disk_full(
                    f"a checkpoint takes {snapshot.size} bytes, {free} were left"
                ) from error
            if isinstance(error, OSError):
                raise PlainError(
                    f"{partial}: cannot be written ({error}); check that disk"
                ) from error
            raise
        then()

    def _disk_full(self, numbers: str) -> DiskFull:
        return DiskFull(
            f"{self._local.folder}: the disk is full ({numbers}); the checkpoints before it are"
            " whole; make room or name another --training.checkpoint_folder"
        )
