"""Decides when a checkpoint inside an epoch is due."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from cluster.runs.events import Tell, TrainingWarning

if TYPE_CHECKING:
    from ray.train import PreemptionInfo

FindNotice = Callable[[], "PreemptionInfo | None"]
"""Returns Ray's notice that nodes will be taken away. All ranks must call it equally often."""
NOTICE_STEPS = 8
"""Steps between two looks for a notice that a node will be taken away. Each look is a barrier over
the ranks; Ray itself looks every 5 s.
"""


class CheckpointRequest:
    """A checkpoint that another thread of this process wants from the training thread."""

    def __init__(self) -> None:
        self._pending, self._stored = threading.Event(), threading.Event()

    def make(self, patience_s: float) -> bool:
        """Ask for a checkpoint and wait. Whether it is in storage within `patience_s`."""
        self._stored.clear()
        self._pending.set()
        return self._stored.wait(patience_s)

    def is_pending(self) -> bool:
        return self._pending.is_set()

    def accept(self) -> None:
        """The training thread takes the checkpoint now."""
        self._pending.clear()

    def fulfil(self) -> None:
        """The checkpoint is in storage."""
        self._stored.set()


REQUEST = CheckpointRequest()
"""The one of this process, see `cluster.training.supervisor`."""


class CheckpointPolicy:
    """Every rank asks after every step whether a checkpoint is due. By images and by a notice all
    ranks decide alike; by time, and by request, only the rank that `writes` says so.
    """

    def __init__(
        self,
        *,
        every_images: int,
        every_minutes: float,
        writes: bool,
        tell: Tell,
        find_notice: FindNotice,
        request: CheckpointRequest = REQUEST,
        clock: Callable[[], float] = time.monotonic,
    ):
        """0 for `every_images` or `every_minutes` turns that reason off."""
        self._every_images, self._every_s = every_images, 60 * every_minutes
        self._writes, self._tell, self._request = writes, tell, request
        self._find_notice, self._clock = find_notice, clock
        self._saved_at, self._steps = clock(), 0
        self._notice: PreemptionInfo | None = None

    def is_due(self, before: int, now: int) -> bool:
        """Whether to save between two steps, the last of which went from `before` to `now` images
        seen.
        """
        self._steps += 1
        if self._steps % NOTICE_STEPS == 0 and self._is_announced(now):
            return True
        by_images = bool(
            self._every_images and before // self._every_images != now // self._every_images
        )
        late = bool(self._every_s and self._clock() - self._saved_at >= self._every_s)
        return by_images or (self._writes and (late or self._request.is_pending()))

    def saved(self) -> None:
        """A checkpoint is taken now."""
        self._saved_at = self._clock()

    def _is_announced(self, images_seen: int) -> bool:
        notice = self._find_notice()
        if notice is None or notice == self._notice:
            return False
        self._notice = notice
        nodes = ", ".join(node[:8] for node in notice.preempted_node_ids)
        self._tell(
            TrainingWarning(
                f"node {nodes} will be taken away; one more checkpoint is taken at"
                f" {images_seen} images"
            )
        )
        return True
