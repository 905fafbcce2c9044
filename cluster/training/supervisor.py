"""Watches Ray Train's controller during a run: reports and counts failures, waits for nodes, and
takes a checkpoint before a group is restarted with more workers. It imports Ray Train: import it
late.
"""

from __future__ import annotations

import time
from typing import Any

import ray
from ray.exceptions import RayError

from cluster.errors import PlainError
from cluster.runs.events import (
    GroupResized,
    WaitingForNodes,
    WorkerFailed,
    WorkerProcess,
    WorkersPlaced,
)
from cluster.training import ray_internals
from cluster.training.failures import LASTING, culprit, what_happened
from cluster.training.retries import Retries

_NO_WORKERS = (
    ray_internals.InitializingState,
    ray_internals.RestartingState,
    ray_internals.ReschedulingState,
)
TELL_EVERY_S = 60.0
"""Seconds between two lines about the wait for nodes."""
QUIET_S = 10.0
"""Seconds that a start may take before anything is said about waiting."""
CHECKPOINT_PATIENCE_S = 120.0
"""Seconds to wait for the checkpoint before a group grows; without it the larger group continues
from the checkpoint before.
"""


class Supervisor(ray_internals.WorkerGroupCallback, ray_internals.ControllerCallback):
    """Callbacks of Ray Train in the controller's process. An error raised in them is not retried
    and ends the training.
    """

    def __init__(self, retries: Retries, *, wait_s: float, wanted: str):
        """`wait_s`: how long to wait for nodes for `wanted`, in words."""
        self._retries, self._wait_s, self._wanted, self._tell = (
            retries,
            wait_s,
            wanted,
            retries.tell,
        )
        self._group: ray_internals.WorkerGroup | None = None
        self._run_id = ""
        self._without_since: float | None = time.monotonic()
        self._told_at = time.monotonic()

    def after_controller_start(self, train_run_context: ray_internals.TrainRunContext) -> None:
        self._run_id = train_run_context.run_id

    def after_worker_group_training_start(self, worker_group: ray_internals.WorkerGroup) -> None:
        self._group, self._without_since = worker_group, None
        self._tell(WorkersPlaced(_processes(worker_group)))

    def after_worker_group_poll_status(
        self, worker_group_status: ray_internals.WorkerGroupPollStatus
    ) -> None:
        errors = worker_group_status.errors
        if not errors or worker_group_status.has_preempted_worker():
            # Nodes that are taken away are no failure of the run.
            return
        assert self._group is not None, "a group that was never started has failed"
        rank = culprit(errors)
        worker, reason = _processes(self._group)[rank], what_happened(errors[rank])
        file = f"rank-{rank}"
        traceback = str(worker_group_status.worker_statuses[rank].error)
        for error in (errors[rank], *errors.values()):
            if isinstance(error, LASTING):
                uri = self._retries.store_traceback(file, traceback)
                self._tell(WorkerFailed(worker, reason, uri, "a restart cannot fix it"))
                raise error
        self._retries.spend(
            f"rank {rank} on {worker.node}",
            reason,
            traceback=traceback,
            file=file,
            event=lambda uri, consequence: WorkerFailed(worker, reason, uri, consequence),
        )

    def after_controller_state_update(
        self,
        previous_state: ray_internals.TrainControllerState,
        current_state: ray_internals.TrainControllerState,
    ) -> None:
        if isinstance(previous_state, ray_internals.SchedulingState):
            self._count_start(current_state)
        if isinstance(current_state, ray_internals.ResizingState):
            self._checkpoint_before(ray_internals.resized_to(current_state))
        elif isinstance(current_state, _NO_WORKERS):
            self._wait(again=type(previous_state) is type(current_state))
            self._recount_nodes()

    def _count_start(self, state: ray_internals.TrainControllerState) -> None:
        """`state` follows on the start of a group. A group that had no room in time is waited for;
        one whose worker died has failed. Where the controller ends, the driver counts the failure.
        """
        failure = ray_internals.start_failure(state)
        if failure is None:
            return
        ray_internals.free_room(failure)
        if isinstance(state, ray_internals.ReschedulingState):
            self._without_since = None
            self._retries.spend_on_start(failure)

    def _checkpoint_before(self, workers: int) -> None:
        assert self._group is not None, "a group that was never started is resized"
        try:
            taking: Any = self._group.execute_single_async(
                0, _take_checkpoint, CHECKPOINT_PATIENCE_S
            )
            checkpointed = bool(ray.get(taking, timeout=CHECKPOINT_PATIENCE_S + 10))
        except RayError:
            # Rank 0 has failed meanwhile: the group continues from its last checkpoint.
            checkpointed = False
        self._tell(GroupResized(len(self._group.get_workers()), workers, checkpointed))

    def _wait(self, *, again: bool) -> None:
        now = time.monotonic()
        if self._without_since is None:
            self._without_since = self._told_at = now
        waited = now - self._without_since
        if waited > self._wait_s:
            raise PlainError(
                f"no room for {self._wanted} in {self._wait_s / 60:g} minutes"
                " (training.wait_minutes); add nodes and give the same command again, or let it"
                " continue with fewer workers (training.min_workers)"
            )
        if waited > QUIET_S and now - self._told_at >= (
            TELL_EVERY_S if waited > TELL_EVERY_S else QUIET_S
        ):
            self._told_at = now
            self._tell(WaitingForNodes(waited, self._wanted))
        if again:
            # Ray Train 2.60 asks for a decision again at once and would keep a core busy.
            time.sleep(1)

    def _recount_nodes(self) -> None:
        ray_internals.recount_nodes(self._run_id)


def _processes(group: ray_internals.WorkerGroup) -> tuple[WorkerProcess, ...]:
    return tuple(
        WorkerProcess(rank, worker.metadata.node_ip, worker.metadata.pid)
        for rank, worker in enumerate(group.get_workers())
    )


def _take_checkpoint(patience_s: float) -> bool:
    """In rank 0's process: make its training thread take a checkpoint. Whether that is in storage
    within `patience_s`.
    """
    from cluster.training.checkpoint_policy import REQUEST

    return REQUEST.make(patience_s)
