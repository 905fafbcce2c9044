"""What this project needs of Ray's inside, and what for. A new version of Ray that moves one of
these names fails here, by name.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import ray
from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator as coordinator
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.context import TrainRunContext
from ray.train.v2._internal.execution.scaling_policy import ResizeDecision
from ray.train.v2._internal.execution.worker_group import Worker
from ray.train.v2._internal.execution.worker_group.worker import ActorMetadata

from cluster.training import ray_internals

ROOT = Path(__file__).parents[3]


def parameters(function: object) -> list[str]:
    return list(inspect.signature(function).parameters)


@pytest.mark.parametrize(
    ("owner", "name", "purpose"),
    [
        (
            ray_internals.WorkerGroupCallback,
            "after_worker_group_training_start",
            "say who is where",
        ),
        (ray_internals.WorkerGroupCallback, "after_worker_group_poll_status", "count failures"),
        (ray_internals.ControllerCallback, "after_controller_start", "know the run's id"),
        (ray_internals.ControllerCallback, "after_controller_state_update", "wait for nodes, grow"),
        (ray_internals.WorkerGroup, "get_workers", "say who is where"),
        (
            ray_internals.WorkerGroup,
            "execute_single_async",
            "take a checkpoint before a group grows",
        ),
        (ray_internals.WorkerGroup, "has_started", "free the room of a group that did not start"),
        (ray_internals.WorkerGroup, "shutdown", "free the room of a group that did not start"),
        (ray_internals.WorkerGroupPollStatus, "errors", "find the rank that caused a failure"),
        (ray_internals.WorkerGroupPollStatus, "has_preempted_worker", "tell reclaimed nodes apart"),
        (
            coordinator._AutoscalingCoordinatorActor,
            "get_reserved_resources",
            "have the nodes counted now",
        ),
    ],
)
def test_ray_has_the_method(owner: type, name: str, purpose: str) -> None:
    assert hasattr(owner, name), f"needed to {purpose}"


@pytest.mark.parametrize(
    ("kind", "fields", "purpose"),
    [
        (ray_internals.WorkerGroupPollStatus, {"worker_statuses"}, "store the traceback of a rank"),
        (Worker, {"metadata"}, "say who is where"),
        (ActorMetadata, {"node_ip", "pid"}, "say who is where"),
        (TrainRunContext, {"run_id"}, "know the run's id"),
        (ResizeDecision, {"num_workers"}, "say how many workers a group will have"),
    ],
)
def test_ray_has_the_fields(kind: type, fields: set[str], purpose: str) -> None:
    if dataclasses.is_dataclass(kind):
        assert fields <= {field.name for field in dataclasses.fields(kind)}, f"needed to {purpose}"
    else:
        assert fields <= set(dir(kind)) | set(parameters(kind.__init__)), f"needed to {purpose}"


@pytest.mark.parametrize(
    ("state", "argument", "purpose"),
    [
        (ray_internals.ReschedulingState, "training_failed_error", "tell a start without room"),
        (ray_internals.RestartingState, "training_failed_error", "wait for nodes"),
        (ray_internals.ResizingState, "scaling_decision", "take a checkpoint before a group grows"),
        (ray_internals.SchedulingState, "scaling_decision", "know that a start was tried"),
        (ray_internals.InitializingState, None, "wait for nodes"),
    ],
)
def test_ray_trains_controller_has_the_state(
    state: type, argument: str | None, purpose: str
) -> None:
    assert argument is None or argument in parameters(state.__init__), f"needed to {purpose}"


def test_the_coordinator_counts_nodes_on_demand() -> None:
    counting = coordinator._AutoscalingCoordinatorActor.get_reserved_resources
    # Ray adds a parameter for traces to the classes of actors that were started.
    assert parameters(counting)[1:3] == ["requester_id", "recompute"]


def test_a_worker_whose_process_died_says_why() -> None:
    reason = ValueError("killed")
    assert WorkerHealthCheckFailedError("a worker died", reason).health_check_failure is reason


def test_the_printer_that_a_command_silences_is_there() -> None:
    assert callable(ray._private.worker.print_to_stdstream)


def test_ray_reads_the_mode_of_its_token_again(tmp_path: Path) -> None:
    """It was imported without one; the token is for this user alone."""
    code = (
        "import ray; from ray._raylet import get_authentication_mode as mode; before = mode();"
        "from cluster.compute import session; session._make_token(); print(before, mode())"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**kept, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["0", "1"]
    assert (tmp_path / ".ray/auth_token").stat().st_mode & 0o777 == 0o600


def test_no_other_file_of_the_product_imports_rays_inside() -> None:
    """One file of training, and the one that starts Ray, which lies on a floor below."""
    inside_names = re.compile(
        r"^\s*(from|import) ray\.[\w.]*\b(_internal|_private)\b", re.MULTILINE
    )
    importing = [
        str(path.relative_to(ROOT))
        for floor in ("detector", "cluster", "tune", "pipelines")
        for path in (ROOT / floor).rglob("*.py")
        if inside_names.search(path.read_text(encoding="utf-8"))
    ]
    assert sorted(importing) == [
        "cluster/compute/session.py",
        "cluster/training/ray_internals.py",
    ]
