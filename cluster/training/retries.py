"""Counts the failures of a training and decides whether it is restarted."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeGuard

from ray.exceptions import RayActorError, RayError
from ray.train import ControllerError

from cluster.errors import PlainError
from cluster.runs import run_folder
from cluster.runs.events import Event, GroupStartFailed, Tell
from cluster.storage import files, uris
from cluster.training.failures import RetriesSpent, describe_death, last_line


class Retries:
    """Counts failures in a row without a new checkpoint between them; after each of the first
    `allowed` the workers are restarted. Ray Train's own limit counts over the whole run, which
    would end every long run on machines that come and go.
    """

    def __init__(self, run: str, *, allowed: int, tell: Tell):
        self.tell = tell
        self.failures = 0
        self._run, self._allowed = run, allowed
        self._newest_checkpoint = ""

    def spend(
        self,
        subject: str,
        reason: str,
        *,
        traceback: str,
        file: str,
        event: Callable[[str, str], Event],
    ) -> None:
        """Count a failure, store its traceback in the run's folder, and tell the event that
        `event(traceback_uri, consequence)` returns. `RetriesSpent` if no restart is left.
        """
        self._count()
        spent = self.failures > self._allowed
        consequence = (
            "no restart is left"
            if spent
            else f"restart {self.failures} of {self._allowed} since the newest checkpoint"
        )
        self.tell(event(self.store_traceback(file, traceback), consequence))
        if spent:
            raise RetriesSpent(f"failed after {self._allowed} retries: {subject}: {reason}")

    def spend_on_start(self, error: BaseException) -> None:
        """As `spend`, for a group that failed before its workers trained: one died, or they did not
        find each other.
        """
        cause = error.__cause__ or error
        died = isinstance(cause, RayActorError)
        # Ray wraps an error of a worker in a class of its own that has it as `cause`.
        reason = describe_death(cause) if died else last_line(getattr(cause, "cause", cause))
        subject = "a worker that started" if died else "the start of the workers"
        self.spend(
            subject,
            reason,
            traceback=str(cause),
            file="start",
            event=lambda uri, consequence: GroupStartFailed(subject, reason, uri, consequence),
        )

    def store_traceback(self, file: str, traceback: str) -> str:
        """Put a traceback into the run's folder, for whoever reads it after a weekend. Returns its
        URI, empty where storage fails.
        """
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        uri = uris.join(self._run, "failures", f"{stamp}-{file}.txt")
        try:
            files.write_bytes(uri, traceback.encode("utf-8", "backslashreplace"))
        except (PlainError, OSError):
            return ""
        return uri

    def _count(self) -> None:
        try:
            newest = max(run_folder.checkpoints(self._run), default="")
        except (PlainError, OSError):
            newest = self._newest_checkpoint
        self.failures = 1 if newest > self._newest_checkpoint else self.failures + 1
        self._newest_checkpoint = newest


def is_start_failure(error: BaseException) -> TypeGuard[ControllerError]:
    """Whether Ray Train's controller ended because the workers it had started did not find each
    other. It does not try that again, whatever its own limit is (Ray 2.60).
    """
    return isinstance(error, ControllerError) and isinstance(error.controller_failure, RayError)
