"""Uploads the checkpoints that wait on this node's disk, deletes old ones in storage, and acts once
a checkpoint has arrived.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from cluster.errors import PlainError
from cluster.runs import run_folder
from cluster.runs.evaluations import Request
from cluster.runs.events import CheckpointStored, Tell, TrainingWarning
from cluster.storage import files, uris
from cluster.training.checkpoint_writer import LocalCheckpoints
from detector.checkpoint import verify_checkpoint


class CheckpointUploader:
    """Works with a thread of its own. A failure of storage is told as a warning; the next
    checkpoint, or the end of training, tries again.
    """

    def __init__(
        self,
        run: str,
        local: LocalCheckpoints,
        *,
        keep: int,
        tell: Tell,
        protected: Callable[[], set[str]] = set,
    ):
        """`keep` is the number of newest checkpoints that stay in storage, and the most that wait
        for their upload because they are to be evaluated. Those whose URI is in `protected()` stay
        too, and so does the best.
        """
        self._run, self._local, self._keep = run, local, keep
        self._tell, self._protected = tell, protected
        self._thread = ThreadPoolExecutor(1, "checkpoint-upload")
        self._uploading: Future[None] | None = None
        self._stored: set[str] = set()
        self._to_be_evaluated: set[str] = set()
        self._damaged: set[str] = set()
        self._actions: list[tuple[str, Callable[[], None]]] = []
        self._last_failure = ""

    def is_stored(self, uri: str) -> bool:
        return uri in self._stored

    def must_arrive(self, uri: str) -> None:
        """Upload this checkpoint also where a newer one follows, for it is to be evaluated."""
        self._to_be_evaluated.add(uri)

    def found_in_storage(self, uri: str) -> None:
        """This checkpoint was read and is whole."""
        self._stored.add(uri)

    def found_damaged(self, uri: str) -> None:
        """This checkpoint in storage cannot be read: it counts for none of those that are kept."""
        self._damaged.add(uri)

    def once_stored(self, uri: str, action: Callable[[], None]) -> None:
        """See `Checkpoints.once_stored`."""
        self._actions.append((uri, action))
        self.begin()

    def begin(self) -> None:
        """Begin to upload what waits."""
        self._uploading = self._thread.submit(self._upload_waiting)

    def wait(self) -> None:
        """Until the upload under way has ended, with success or without."""
        if self._uploading is not None:
            self._uploading.result()

    def raise_failure(self) -> None:
        """A bug in an upload that has ended; failures of storage do not count."""
        if self._uploading is not None and self._uploading.done():
            self._uploading.result()

    def close(self) -> None:
        """Upload everything that waits. `PlainError` where something does not arrive."""
        self._thread.submit(self._upload_waiting).result()
        if self._local.names() or any(uri in self._stored for uri, _ in self._actions):
            raise PlainError(
                f"{self._last_failure}; the last checkpoints wait in {self._local.folder}"
            )

    def upload_leftovers(self, request_evaluation: Callable[[Request], None]) -> None:
        """Upload what an earlier worker on this node wrote and could not upload: the newest one, if
        it is newer than all in storage, and those that are to be evaluated. `request_evaluation` is
        called for those, except for the newest: training continues from it and evaluates it.
        """
        stored = run_folder.checkpoints(self._run)
        newest = max(stored, default="")
        for name in reversed(names := self._local.names()):
            uri = self._uri(name)
            try:
                state = verify_checkpoint(self._local.path(name))
            except ValueError as error:
                self._warn(f"{self._local.path(name)}: is damaged ({error}); it is not uploaded")
                continue
            to_be_evaluated = state.get("scored", False) and uri not in stored
            if uri > newest or to_be_evaluated:
                self._upload(name)
            if to_be_evaluated and uri < newest:
                request_evaluation(Request(uri, state["images_seen"], state["epoch"] + 1))
            newest = max(newest, uri)
        for name in names:
            shutil.rmtree(self._local.path(name), ignore_errors=True)

    def _upload_waiting(self) -> None:
        """The newest one first, then those that are to be evaluated; the others are superseded."""
        subject = "a record"
        try:
            self._act()
            while names := self._without_superseded():
                subject = f"checkpoint {names[-1]}"
                self._upload(names[-1])
                self._act()
                self._prune()
        except (PlainError, OSError) as error:
            self._last_failure = str(error)
            self._warn(f"{subject} is not in storage yet, training continues: {error}")

    def _act(self) -> None:
        """Take the actions whose checkpoint is in storage, in order."""
        for item in [item for item in self._actions if item[0] in self._stored]:
            item[1]()
            self._actions.remove(item)

    def _without_superseded(self) -> list[str]:
        """Names of the checkpoints to upload, oldest first; the superseded ones are removed."""
        names = self._local.names()
        waiting = [name for name in names[:-1] if self._uri(name) in self._to_be_evaluated]
        for name in set(names[:-1]) - set(waiting[-self._keep :]):
            self._local.remove(name)
            if name in waiting:
                self._warn(
                    f"checkpoint {name} is dropped: {self._keep} newer ones wait for storage too"
                )
        return [*waiting[-self._keep :], *names[-1:]]

    def _upload(self, name: str) -> None:
        uri = self._uri(name)
        files.upload_folder(self._local.path(name), uri, last=run_folder.STATE_FILE)
        self._local.remove(name)
        self._stored.add(uri)
        self._damaged.discard(uri)
        self._tell(CheckpointStored(uri, images_seen=int(uri.rsplit("-", 1)[1])))

    def _prune(self) -> None:
        """Delete what is neither among the newest, nor the best, nor protected; also older ones
        that were uploaded only in part.
        """
        folders = run_folder.checkpoint_folders(self._run)
        whole = [uri for uri, complete in folders.items() if complete and uri not in self._damaged]
        newest = whole[-self._keep :]
        # Read what is protected before the best: the evaluator names a new best before it forgets
        # that this checkpoint waited.
        protected = self._protected()
        best = (run_folder.read(self._run, run_folder.BEST) or {}).get("checkpoint")
        kept = {*newest, *protected, self._uri(best or "")}
        for uri in folders:
            if uri not in kept and uri < newest[-1]:
                files.delete_folder(uri)

    def _uri(self, name: str) -> str:
        return uris.join(self._run, run_folder.CHECKPOINTS, os.path.basename(name))

    def _warn(self, text: str) -> None:
        self._tell(TrainingWarning(text))
