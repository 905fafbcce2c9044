"""A run's checkpoints as the training thread sees them: whether one is due, how it reaches storage
without holding up training, and from which one the run continues.

The training thread only copies the state into memory. One thread writes the copy to this node's
disk and frees its memory for the next, another thread uploads that folder, state.json last. So
memory holds one copy of weights, average and optimiser. The local disk holds the checkpoint being
written, the newest that waits for its upload and, while storage is away, as many that wait to be
evaluated as the run keeps. A worker that is started again on this node finds what waits there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

from cluster.runs import run_folder
from cluster.runs.evaluations import Request
from cluster.runs.events import Tell
from cluster.runs.training_config import TrainingConfig
from cluster.training.checkpoint_download import download_newest
from cluster.training.checkpoint_policy import REQUEST, CheckpointPolicy, FindNotice
from cluster.training.checkpoint_uploader import CheckpointUploader
from cluster.training.checkpoint_writer import CheckpointWriter, LocalCheckpoints, local_folder
from detector.checkpoint import Snapshot


class CheckpointStore:
    """Where the rank that writes puts its checkpoints: first this node's disk, then storage."""

    def __init__(
        self,
        run: str,
        folder: str,
        *,
        keep: int,
        tell: Tell,
        protected: Callable[[], set[str]] = set,
        request_evaluation: Callable[[Request], None] = lambda request: None,
    ):
        """`folder` is on this node's disk. See `CheckpointUploader` for `keep` and `protected`.
        `request_evaluation` has a checkpoint evaluated that an earlier worker has left.
        """
        self.local = LocalCheckpoints(folder)
        self.writer = CheckpointWriter(self.local)
        self.uploader = CheckpointUploader(
            run, self.local, keep=keep, tell=tell, protected=protected
        )
        self._run, self._tell, self._request_evaluation = run, tell, request_evaluation
        self._memory: Snapshot | None = None

    def save(
        self, uri: str, take: Callable[[Snapshot | None], Snapshot], *, to_be_evaluated: bool
    ) -> None:
        if self.uploader.is_stored(uri):
            return
        if to_be_evaluated:
            self.uploader.must_arrive(uri)
        self.writer.wait()
        self.raise_failure()
        self._memory = snapshot = take(self._memory)
        self.writer.check_room(snapshot.size, wait_for_upload=self.uploader.wait)
        self.writer.begin(os.path.basename(uri), snapshot, then=self.uploader.begin)

    def raise_failure(self) -> None:
        """What went wrong with an earlier checkpoint on this node's disk."""
        self.writer.raise_failure()
        self.uploader.raise_failure()

    def settle(self) -> None:
        """Wait until the last checkpoint is written and its upload was tried."""
        self.writer.wait()
        self.uploader.wait()

    def newest(self, folder: str) -> str | None:
        self.uploader.upload_leftovers(self._request_evaluation)
        newest = download_newest(self._run, folder, tell=self._tell)
        for uri in newest.damaged:
            self.uploader.found_damaged(uri)
        if newest.uri is not None:
            self.uploader.found_in_storage(newest.uri)
        return newest.uri

    def close(self) -> None:
        self.writer.wait()
        self.uploader.close()
        shutil.rmtree(self.local.folder)


class Checkpoints:
    """One rank's side of the checkpoints: all ranks ask whether one is due, the one that has a
    `store` writes it.
    """

    def __init__(self, run: str, policy: CheckpointPolicy, store: CheckpointStore | None):
        self._run, self._policy, self._store = run, policy, store

    def is_due(self, before: int, now: int) -> bool:
        """Whether to save between two steps, the last of which went from `before` to `now` images
        seen. All ranks must ask after every step.

        Raises what went wrong with an earlier checkpoint on this node's disk.
        """
        due = self._policy.is_due(before, now)
        if self._store is not None:
            self._store.raise_failure()
        return due

    def save(
        self,
        images_seen: int,
        take: Callable[[Snapshot | None], Snapshot],
        *,
        to_be_evaluated: bool = False,
    ) -> str:
        """Begin a checkpoint of what `take(memory to use again)` copies. Returns the URI that it
        will have.

        One that is to be evaluated is uploaded also where a newer one follows. It waits until the
        checkpoint before is on this node's disk. `DiskFull` where this one has no room there.
        """
        uri = run_folder.checkpoint_uri(self._run, images_seen)
        self._policy.saved()
        if self._store is None:
            return uri
        if REQUEST.is_pending():
            REQUEST.accept()
            self.once_stored(uri, REQUEST.fulfil)
        self._store.save(uri, take, to_be_evaluated=to_be_evaluated)
        return uri

    def once_stored(self, uri: str, action: Callable[[], None]) -> None:
        """Call `action` on the upload's thread when the checkpoint is in storage, at once if it is
        there already, never if it does not arrive. An action that fails because storage does is
        called again. Only for the rank that writes.
        """
        assert self._store is not None, "this rank writes no checkpoints"
        self._store.uploader.once_stored(uri, action)

    def newest(self, folder: str) -> str | None:
        """Upload what an earlier worker left on this node, then download the newest checkpoint that
        is whole into the local `folder`. Returns its URI, None where the run has none yet. Only for
        the rank that writes. Errors: see `download_newest`.
        """
        assert self._store is not None, "this rank writes no checkpoints"
        return self._store.newest(folder)

    def settle(self) -> None:
        """Wait until the last checkpoint is written and its upload was tried."""
        if self._store is not None:
            self._store.settle()

    def close(self) -> None:
        """Wait until every checkpoint that counts is in storage. `PlainError` where one does not
        arrive: the run is not finished then.
        """
        if self._store is not None:
            self._store.close()


def open_checkpoints(
    run: str,
    *,
    run_uuid: str,
    settings: TrainingConfig,
    writes: bool,
    find_notice: FindNotice,
    tell: Tell,
    protected: Callable[[], set[str]] = set,
    request_evaluation: Callable[[Request], None] = lambda request: None,
) -> Checkpoints:
    """The checkpoints of a rank that `writes` them or does not. `run_uuid` tells runs apart that
    had the same URI one after the other. For the rest see `CheckpointPolicy` and `CheckpointStore`.
    """
    policy = CheckpointPolicy(
        every_images=settings.checkpoint_images,
        every_minutes=settings.checkpoint_minutes,
        writes=writes,
        find_notice=find_notice,
        tell=tell,
    )
    store = None
    if writes:
        store = CheckpointStore(
            run,
            local_folder(run, run_uuid, settings.checkpoint_folder),
            keep=settings.keep_checkpoints,
            tell=tell,
            protected=protected,
            request_evaluation=request_evaluation,
        )
    return Checkpoints(run, policy, store)
