"""What Ray Train's controller does for a run, watched over: failures are told and counted, nodes
are waited for, and a group that could be larger is restarted only after a checkpoint. It imports
Ray Train, so whoever starts a training imports it late.
"""

from __future__ import annotations

import contextlib
import time
import traceback
from typing import Any

import ray
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
    get_or_create_autoscaling_coordinator,
)
from ray.train import ControllerError
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.controller.state import (
    InitializingState,
    ReschedulingState,
    ResizingState,
    RestartingState,
    SchedulingState,
)
from ray.train.v2._internal.execution.worker_group import WorkerGroup

from cluster.errors import PlainError
from cluster.runs import run_folder
from cluster.storage import files
from cluster.storage.uris import join
from cluster.training.failures import (
    LASTING,
    RetriesSpent,
    culprit,
    how_it_died,
    last_line,
    what_happened,
)

NO_WORKERS = (InitializingState, RestartingState, ReschedulingState)
TELL_EVERY_S = 60.0
"""Seconds between two lines about nodes that are waited for."""
QUIET_S = 10.0
"""Seconds that a start may take before anything is said of waiting."""
CHECKPOINT_PATIENCE_S = 120.0
"""Seconds for the checkpoint before a group grows; without it the larger one goes on from the
checkpoint before.
"""


class Retries:
    """Failures in a row without a new checkpoint, `allowed` of which end in a restart. Ray Train's
    own limit counts over the whole run, which on machines that come and go ends every long one.
    `board` takes the events for the driver."""

    def __init__(self, run: str, *, allowed: int, board: Any):
        self.run, self.allowed, self.board = run, allowed, board
        self.failures, self.newest = 0, ""

    def tell(self, kind: str, **values: Any) -> None:
        if self.board is not None:
            self.board.put.remote({"kind": kind, **values})

    def spend(self, kind: str, who: str, *, details: str, file: str, **values: Any) -> None:
        """Count a failure, tell the event `kind` of it and what follows, and keep its `details` in
        the run's folder. `RetriesSpent` with `who` and the reason where no restart is left."""
        self.count()
        spent = self.failures > self.allowed
        then = (
            "no restart is left"
            if spent
            else f"restart {self.failures} of {self.allowed} since the newest checkpoint"
        )
        self.tell(kind, who=who, **values, details=self.keep(file, details), then=then)
        if spent:
            raise RetriesSpent(f"failed after {self.allowed} retries: {who}: {values['reason']}")

    def count(self) -> None:
        try:
            newest = max(run_folder.checkpoints(self.run), default="")
        except (PlainError, OSError):
            newest = self.newest
        self.failures = 1 if newest > self.newest else self.failures + 1
        self.newest = newest

    def keep(self, file: str, details: str) -> str:
        """Put the traceback into the run's folder, for whoever looks at it after a weekend; returns
        its URI.
        """
        uri = join(
            self.run, "failures", f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{file}.txt"
        )
        try:
            files.write_bytes(uri, details.encode("utf-8", "backslashreplace"))
        except (PlainError, OSError):
            return ""
        return uri

    def spend_on_start(self, error: BaseException) -> None:
        """As `spend`, for a group that failed before its workers trained: one died, or they did not
        find each other.
        """
        cause = error.__cause__ or error
        died = isinstance(cause, ray.exceptions.RayActorError)
        # Of an error in a worker Ray makes a class of its own that holds it.
        reason = how_it_died(cause) if died else last_line(getattr(cause, "cause", cause))
        who = "a worker that started" if died else "the start of the workers"
        self.spend("start_failed", who, details=str(cause), file="start", reason=reason)


def is_of_the_start(error: BaseException) -> bool:
    """Whether Ray Train's controller ended because workers that it had started did not find each
    other: it does not try that again, whatever its own limit is (Ray 2.60)."""
    return isinstance(error, ControllerError) and isinstance(
        error.controller_failure, ray.exceptions.RayError
    )


def free_room(error: BaseException) -> None:
    """Shut down the group whose start ended in this error, which has been raised in this process.
    Ray Train 2.60 forgets a group that fails after its workers are there, and its room stays taken
    until the driver's end: the next group would wait for that in vain."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        group = frame.f_locals.get("self")
        if isinstance(group, WorkerGroup) and group.has_started():
            with contextlib.suppress(ray.exceptions.RayError):
                group.shutdown()


class Supervisor(WorkerGroupCallback, ControllerCallback):
    """Lives in the controller's process. What it raises there is not retried and ends the training."""

    def __init__(self, retries: Retries, *, wait_s: float, wanted: str):
        """`wait_s`: how long nodes for `wanted`, in words, are waited for."""
        self.retries, self.wait_s, self.wanted, self.tell = retries, wait_s, wanted, retries.tell
        self.group: Any = None
        self.requester = ""
        self.without_since = self.told_at = time.monotonic()

    def after_controller_start(self, train_run_context: Any) -> None:
        self.requester = f"train-{train_run_context.run_id}"

    def after_worker_group_training_start(self, worker_group: Any) -> None:
        self.group, self.without_since = worker_group, None
        places = [
            {"rank": rank, "node": w.metadata.node_ip, "pid": w.metadata.pid}
            for rank, w in enumerate(worker_group.get_workers())
        ]
        self.tell("workers", workers=places)

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        errors = worker_group_status.errors
        if not errors or worker_group_status.has_preempted_worker():
            # Nodes that are taken away are no failure of the run.
            return
        rank = culprit(errors)
        worker = self.group.get_workers()[rank].metadata
        where = {
            "rank": rank,
            "node": worker.node_ip,
            "pid": worker.pid,
            "reason": what_happened(errors[rank]),
        }
        file, details = f"rank-{rank}", str(worker_group_status.worker_statuses[rank].error)
        for lasting in (errors[rank], *errors.values()):
            if isinstance(lasting, LASTING):
                self.tell(
                    "failure",
                    **where,
                    details=self.retries.keep(file, details),
                    then="a restart would meet it again",
                )
                raise lasting
        self.retries.spend(
            "failure", f"rank {rank} on {worker.node_ip}", details=details, file=file, **where
        )

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        if isinstance(previous_state, SchedulingState):
            self.not_started(current_state)
        if isinstance(current_state, ResizingState):
            self.checkpoint_first(current_state.scaling_decision.num_workers)
        elif isinstance(current_state, NO_WORKERS):
            self.wait(again=type(previous_state) is type(current_state))
            self.look_again()

    def not_started(self, state: Any) -> None:
        """`state` follows on the start of a group. One that had no room in time is waited for, one
        whose worker died has failed; where the controller ends, the driver counts."""
        error = getattr(getattr(state, "next_state", state), "training_failed_error", None)
        failure = getattr(error, "controller_failure", None)
        if failure is None or isinstance(failure, WorkerGroupStartupTimeoutError):
            return
        free_room(failure)
        if isinstance(state, ReschedulingState):
            self.without_since = None
            self.retries.spend_on_start(failure)

    def checkpoint_first(self, workers: int) -> None:
        taken = False
        try:
            taken = ray.get(
                self.group.execute_single_async(0, take_checkpoint, CHECKPOINT_PATIENCE_S),
                timeout=CHECKPOINT_PATIENCE_S + 10,
            )
        except ray.exceptions.RayError:
            # Rank 0 has failed meanwhile: its last checkpoint it is.
            taken = False
        self.tell("resize", workers=workers, before=len(self.group.get_workers()), taken=taken)

    def wait(self, *, again: bool) -> None:
        now = time.monotonic()
        if self.without_since is None:
            self.without_since = self.told_at = now
        waited = now - self.without_since
        if waited > self.wait_s:
            raise PlainError(
                f"no room for {self.wanted} in {self.wait_s / 60:g} minutes"
                " (training.wait_minutes); add nodes and give the same command again, or let it go"
                " on with fewer (training.min_workers)"
            )
        if waited > QUIET_S and now - self.told_at >= (
            TELL_EVERY_S if waited > TELL_EVERY_S else QUIET_S
        ):
            self.told_at = now
            self.tell("waiting", seconds=waited, wanted=self.wanted)
        if again:
            # Ray Train 2.60 asks for a decision again at once, with a core of its own.
            time.sleep(1)

    def look_again(self) -> None:
        """Have the nodes counted now: Ray counts them every 20 s, and a group of the size that a
        lost node allowed would be waited for in vain.
        """
        with contextlib.suppress(ray.exceptions.RayError, TimeoutError):
            ray.get(
                get_or_create_autoscaling_coordinator().get_reserved_resources.remote(
                    self.requester, recompute=True
                ),
                timeout=5,
            )


def take_checkpoint(patience_s: float) -> bool:
    """In rank 0's process: have its training thread take a checkpoint, and whether it is in storage
    within `patience_s`.
    """
    from cluster.training.checkpoints import REQUESTED, TAKEN

    TAKEN.clear()
    REQUESTED.set()
    return TAKEN.wait(patience_s)
