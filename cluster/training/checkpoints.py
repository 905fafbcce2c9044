"""A run's checkpoints: when one is due, how it reaches storage without holding up training, and
which one a run goes on from.

The training thread only copies the state. One thread writes the copy into a folder on this node's
disk and lets its memory be used again, another uploads that folder, state.json last. So in memory
there is one copy of weights, average and optimiser; on the local disk there are the folder under
way, the newest that waits and, while storage is away, as many that wait to be scored as the run
keeps. What waits there is found by a worker that is started again on this node.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import ray.train

from cluster.errors import DataError, DiskFull, PlainError, UsageError
from cluster.runs import run_folder
from cluster.storage import files
from cluster.storage.uris import join
from detector.checkpoint import Snapshot, verify_checkpoint, write_checkpoint

NOTICE_STEPS = 8
"""Steps between questions for a notice that a node will be taken away. Each is a barrier over the
ranks; Ray itself looks every 5 s.
"""
PARTIAL = ".partial-"
SMALL_FILES = 4 << 20
"""Bytes that a checkpoint takes beside its tensors, generously: state.json and the names of the
tensors.
"""
FULL = (errno.ENOSPC, errno.EDQUOT)
REQUESTED, TAKEN = threading.Event(), threading.Event()
"""Of this process: another of its threads asks for a checkpoint, and it is in storage. See
`cluster.training.supervisor`.
"""


class Checkpoints:
    """One rank's side of them: all ranks ask when one is due, the one that `writes` writes it."""

    def __init__(
        self,
        run: str,
        *,
        run_uuid: str,
        settings: dict[str, Any],
        tell: Callable[..., None],
        writes: bool,
        protected: Callable[[], set[str]] = set,
        ask: Callable[[str, int, int], None] = lambda uri, images_seen, epoch: None,
    ):
        """`run_uuid` tells runs apart that had the same URI one after the other; `settings` is
        `TrainingConfig`, dumped; `tell(kind, **values)` sends an event to the driver. The URIs in
        `protected()` are not deleted. `ask` has a checkpoint scored that a worker before this one
        has left.
        """
        self.run, self.tell, self.writes, self.protected, self.ask = (
            run,
            tell,
            writes,
            protected,
            ask,
        )
        self.keep, self.every, self.seconds = (
            settings["keep_checkpoints"],
            settings["checkpoint_images"],
            60 * settings["checkpoint_minutes"],
        )
        self.local = local_folder(run, run_uuid, settings["checkpoint_folder"])
        self.saved_at, self.steps, self.notice = time.monotonic(), 0, None
        self.memory: Snapshot | None = None
        self.stored: set[str] = set()
        self.scored: set[str] = set()
        self.damaged: set[str] = set()
        self.actions: list[tuple[str, Callable[[], None]]] = []
        self.failure = ""
        self.disk, self.network = (
            ThreadPoolExecutor(1, "checkpoint-disk"),
            ThreadPoolExecutor(1, "checkpoint-upload"),
        )
        self.writing: Future[None] | None = None
        self.uploading: Future[None] | None = None
        if writes:
            self.prepare_local()

    def prepare_local(self) -> None:
        try:
            os.makedirs(self.local, mode=0o700, exist_ok=True)
            for name in os.listdir(self.local):
                if name.startswith(PARTIAL):
                    shutil.rmtree(os.path.join(self.local, name))
        except OSError as error:
            reason = f"cannot be written ({error.strerror})"
            raise UsageError(
                f"{self.local}: {reason}; name another local folder with"
                " --training.checkpoint_folder"
            ) from error

    def due(self, before: int, now: int) -> bool:
        """Whether to save between two steps, the last of which led from `before` to `now` images.
        All ranks must ask after every step.

        Raises what went wrong with an earlier one on this node's disk.
        """
        self.steps += 1
        if self.steps % NOTICE_STEPS == 0:
            notice = ray.train.get_preemption_info()
            if notice is not None and notice != self.notice:
                self.notice = notice
                nodes = ", ".join(node[:8] for node in notice.preempted_node_ids)
                self.tell(
                    "warning",
                    text=(
                        f"node {nodes} will be taken away; one more checkpoint is taken at {now}"
                        " images"
                    ),
                )
                return True
        self.raise_failures()
        late = self.seconds and time.monotonic() - self.saved_at >= self.seconds
        return bool(self.every and before // self.every != now // self.every) or bool(
            self.writes and (late or REQUESTED.is_set())
        )

    def save(
        self, images_seen: int, take: Callable[[Snapshot | None], Snapshot], *, scored: bool = False
    ) -> str:
        """Begin a checkpoint of what `take(memory to use again)` copies, and return the URI at
        which it will be.

        One that is to be `scored` is uploaded also where a newer one follows. Waits until the one
        before is on this node's disk. `DiskFull` where this one has no room there.
        """
        uri = run_folder.checkpoint_uri(self.run, images_seen)
        self.saved_at = time.monotonic()
        if self.writes and REQUESTED.is_set():
            REQUESTED.clear()
            self.once_stored(uri, TAKEN.set)
        if not self.writes or uri in self.stored:
            return uri
        if scored:
            self.scored.add(uri)
        if self.writing is not None:
            self.writing.result()
        self.raise_failures()
        self.memory = snapshot = take(self.memory)
        self.check_room(snapshot.size)
        self.writing = self.disk.submit(self.write, os.path.basename(uri), snapshot)
        return uri

    def once_stored(self, uri: str, action: Callable[[], None]) -> None:
        """Call `action` on the upload's thread when the checkpoint is in storage, now if it is
        there already; never where it does not arrive. One that fails because storage does is called
        again.
        """
        self.actions.append((uri, action))
        self.uploading = self.network.submit(self.upload_waiting)

    def close(self) -> None:
        """Wait until every checkpoint that counts is in storage. `PlainError` where one does not
        arrive: the run is not finished then.
        """
        if not self.writes:
            return
        if self.writing is not None:
            self.writing.result()
        self.network.submit(self.upload_waiting).result()
        if self.waiting() or any(uri in self.stored for uri, _ in self.actions):
            raise PlainError(f"{self.failure}; the last checkpoints wait in {self.local}")
        shutil.rmtree(self.local)

    def raise_failures(self) -> None:
        for future in (self.writing, self.uploading):
            if future is not None and future.done():
                future.result()

    def check_room(self, size: int) -> None:
        """`DiskFull` where the disk has no room for a checkpoint; what is being uploaded is waited
        for first, it makes room when it has arrived.
        """
        if shutil.disk_usage(self.local).free < size + SMALL_FILES and self.uploading is not None:
            self.uploading.result()
        free = shutil.disk_usage(self.local).free
        if free < size + SMALL_FILES:
            raise DiskFull(
                no_room(
                    self.local, f"a checkpoint takes {size + SMALL_FILES} bytes, {free} are free"
                )
            )

    def write(self, name: str, snapshot: Snapshot) -> None:
        """On the disk's thread. What is there under its own name is whole."""
        partial, folder = (os.path.join(self.local, prefix + name) for prefix in (PARTIAL, ""))
        try:
            write_checkpoint(partial, snapshot)
            shutil.rmtree(folder, ignore_errors=True)
            os.rename(partial, folder)
        except Exception as error:
            free = shutil.disk_usage(self.local).free
            shutil.rmtree(partial, ignore_errors=True)
            # safetensors and torch have errors of their own for a full disk, torch's does not say
            # so.
            if getattr(error, "errno", None) in FULL or free < snapshot.size:
                raise DiskFull(
                    no_room(
                        self.local, f"a checkpoint takes {snapshot.size} bytes, {free} were left"
                    )
                ) from error
            if isinstance(error, OSError):
                raise PlainError(
                    f"{partial}: cannot be written ({error}); check that disk"
                ) from error
            raise
        self.uploading = self.network.submit(self.upload_waiting)

    def waiting(self) -> list[str]:
        """Names of the whole checkpoints on this node's disk, oldest first."""
        return sorted(name for name in os.listdir(self.local) if not name.startswith(PARTIAL))

    def upload_waiting(self) -> None:
        """On the upload's thread: the newest one first, then those that are to be scored; the
        others are superseded.
        """
        what = "a record"
        try:
            self.act()
            while names := self.without_superseded():
                what = f"checkpoint {names[-1]}"
                self.upload(join(self.run, run_folder.CHECKPOINTS, names[-1]))
                self.act()
                self.prune()
        except (PlainError, OSError) as error:
            # The next checkpoint, or the end of training, tries again.
            self.failure = str(error)
            self.tell("warning", text=f"{what} is not in storage yet, training goes on: {error}")

    def act(self) -> None:
        """Take the actions that wait for nothing any more, in order."""
        for item in [item for item in self.actions if item[0] in self.stored]:
            item[1]()
            self.actions.remove(item)

    def without_superseded(self) -> list[str]:
        names = self.waiting()
        scored = [
            name
            for name in names[:-1]
            if join(self.run, run_folder.CHECKPOINTS, name) in self.scored
        ]
        for name in set(names[:-1]) - set(scored[-self.keep :]):
            shutil.rmtree(os.path.join(self.local, name))
            if name in scored:
                self.tell(
                    "warning",
                    text=(
                        f"checkpoint {name} is given up: {self.keep} newer ones wait for"
                        " storage too"
                    ),
                )
        return [*scored[-self.keep :], *names[-1:]]

    def upload(self, uri: str) -> None:
        folder = os.path.join(self.local, os.path.basename(uri))
        files.upload_folder(folder, uri, last=run_folder.STATE_FILE)
        shutil.rmtree(folder)
        self.stored.add(uri)
        self.damaged.discard(uri)
        self.tell("checkpoint", uri=uri, images_seen=int(uri.rsplit("-", 1)[1]))

    def prune(self) -> None:
        """Delete what is neither among the newest `keep`, nor the best, nor protected; also what of
        older ones was uploaded in part.
        """
        folders = run_folder.checkpoint_folders(self.run)
        newest = [uri for uri, complete in folders.items() if complete and uri not in self.damaged][
            -self.keep :
        ]
        # First what waits to be scored, then the best: the scorer names a new best before it
        # forgets that the checkpoint waited.
        protected = self.protected()
        kept = {
            *newest,
            *protected,
            (run_folder.read(self.run, run_folder.BEST) or {}).get("checkpoint"),
        }
        for uri in folders:
            if uri not in kept and uri < newest[-1]:
                files.delete_folder(uri)

    def newest(self, folder: str) -> str | None:
        """Download the newest checkpoint that is whole, verified, into the local `folder`, and
        return its URI; None where there is none yet.

        What is left out is told. `DataError` where all are damaged: training from the start again
        is not for a program to decide.
        """
        self.upload_left()
        damaged = []
        for uri, complete in reversed(run_folder.checkpoint_folders(self.run).items()):
            try:
                if not complete:
                    raise DataError(f"{uri}: its upload did not end")
                fetch(uri, folder)
            except DataError as error:
                self.tell("warning", text=f"{error}; the checkpoint before it is taken")
                damaged += [str(error)] if complete else []
                self.damaged.add(uri)
                continue
            self.stored.add(uri)
            return uri
        if damaged:
            raise DataError(
                f"{self.run}: none of its {len(damaged)} checkpoints can be read ({damaged[0]});"
                " restore one or take another --name"
            )
        return None

    def upload_left(self) -> None:
        """What an earlier worker on this node wrote and could not upload: the newest one where it
        is newer than all in storage, and those that are to be scored, whose evaluation is asked
        for. What is damaged is told.
        """
        stored = run_folder.checkpoints(self.run)
        newest = max(stored, default="")
        for name in reversed(names := self.waiting()):
            folder, uri = (
                os.path.join(self.local, name),
                join(self.run, run_folder.CHECKPOINTS, name),
            )
            try:
                state = verify_checkpoint(folder)
            except ValueError as error:
                self.tell("warning", text=f"{folder}: is damaged ({error}); it is not uploaded")
                continue
            scored = state.get("scored", False) and uri not in stored
            if uri > newest or scored:
                self.upload(uri)
            # The one that training goes on from is scored there.
            if scored and uri < newest:
                self.ask(uri, state["images_seen"], state["epoch"] + 1)
            newest = max(newest, uri)
        for name in names:
            shutil.rmtree(os.path.join(self.local, name), ignore_errors=True)


def local_folder(run: str, run_uuid: str, configured: str | None) -> str:
    """Where the checkpoints of this run wait for their upload on whichever node: the same for every
    worker of it, another one for every other run.
    """
    parent = configured or os.path.join(tempfile.gettempdir(), f"retinaray-{os.getuid()}")
    return os.path.join(
        parent,
        f"{os.path.basename(run)}-{hashlib.sha256(f'{run} {run_uuid}'.encode()).hexdigest()[:12]}",
    )


def no_room(folder: str, what: str) -> str:
    return (
        f"{folder}: the disk is full ({what}); the checkpoints before it are whole; make room or"
        " name another --training.checkpoint_folder"
    )


def fetch(uri: str, folder: str) -> dict[str, Any]:
    """Download a checkpoint into a local folder and return its state. `DataError` where a file is
    missing or is not what was written.
    """
    shutil.rmtree(folder, ignore_errors=True)
    try:
        files.download_folder(uri, folder)
        return verify_checkpoint(folder)
    except (ValueError, FileNotFoundError) as error:
        raise DataError(f"{uri}: is damaged ({error})") from error
    except KeyError as error:
        raise UsageError(other_version(uri, error)) from error


def other_version(uri: str, error: KeyError) -> str:
    return (
        f"{uri}: {error} is missing in it; another version of this code wrote it; go on with that"
        " version, or start anew under another --name"
    )
