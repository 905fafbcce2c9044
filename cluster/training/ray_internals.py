"""Everything that this project uses of Ray's inside, in one file: names that a new version of Ray
may move without notice (this is written for Ray 2.60, see the bound in pyproject.toml).

`tests/cluster/training/test_ray_internals.py` names each thing that is used, and what for. It
imports Ray Train, which takes seconds: import it late.
"""

from __future__ import annotations

import contextlib
import traceback
from typing import Any

import ray
from ray._private.state import available_resources_per_node
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
    get_or_create_autoscaling_coordinator,
)
from ray.exceptions import RayError
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.context import TrainRunContext
from ray.train.v2._internal.execution.controller.state import (
    InitializingState,
    ReschedulingState,
    ResizingState,
    RestartingState,
    SchedulingState,
    TrainControllerState,
)
from ray.train.v2._internal.execution.worker_group import WorkerGroup, WorkerGroupPollStatus

__all__ = [
    "ControllerCallback",
    "InitializingState",
    "ReschedulingState",
    "ResizingState",
    "RestartingState",
    "SchedulingState",
    "TrainControllerState",
    "TrainRunContext",
    "WorkerGroup",
    "WorkerGroupCallback",
    "WorkerGroupPollStatus",
    "free_resources_of_nodes",
    "free_room",
    "recount_nodes",
    "resized_to",
    "start_failure",
]

_RECOUNT_TIMEOUT_S = 5


def free_resources_of_nodes() -> list[dict[str, float]]:
    """What each node has free right now. Ray's public API gives only the sum over all nodes, which
    says nothing about what fits on one of them.
    """
    return list(available_resources_per_node().values())


def recount_nodes(run_id: str) -> None:
    """Make Ray count the nodes for the Ray Train run now. It counts them every 20 s, and a group of
    the size that a lost node had allowed would be waited for in vain.
    """
    with contextlib.suppress(RayError, TimeoutError):
        coordinator: Any = get_or_create_autoscaling_coordinator()
        ray.get(
            coordinator.get_reserved_resources.remote(f"train-{run_id}", recompute=True),
            timeout=_RECOUNT_TIMEOUT_S,
        )


def resized_to(state: ResizingState) -> int:
    """The number of workers that a group is about to have."""
    decision: Any = state.scaling_decision
    return decision.num_workers


def start_failure(state: TrainControllerState) -> BaseException | None:
    """Why a worker group did not start, told by the state that follows on its start. None where it
    started, or where the cluster had no room for it in time.
    """
    error = getattr(getattr(state, "next_state", state), "training_failed_error", None)
    failure = getattr(error, "controller_failure", None)
    return None if isinstance(failure, WorkerGroupStartupTimeoutError) else failure


def free_room(error: BaseException) -> None:
    """Shut down the worker group whose start ended in this error, which was raised in this process.
    Ray Train 2.60 forgets a group that fails after its workers are there, and keeps its resources
    until the driver ends: the next group would wait for them in vain.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        group = frame.f_locals.get("self")
        if isinstance(group, WorkerGroup) and group.has_started():
            with contextlib.suppress(RayError):
                group.shutdown()
