"""Failures of workers, and waiting for nodes, without a cluster."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError
from ray.train import ControllerError
from ray.train.v2._internal.exceptions import (
    UserExceptionWithTraceback,
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2._internal.execution.controller.state import (
    ReschedulingState,
    RestartingState,
    RunningState,
    SchedulingState,
)
from ray.train.v2._internal.execution.worker_group.poll import WorkerGroupPollStatus, WorkerStatus

from cluster.errors import DataError, PlainError, UsageError
from cluster.runs import run_folder
from cluster.runs.events import WaitingForNodes, WorkerFailed, WorkerProcess, WorkersPlaced
from cluster.storage import files
from cluster.training import ray_internals, supervisor
from cluster.training.failures import RetriesSpent
from cluster.training.retries import Retries
from cluster.training.supervisor import Supervisor
from detector.step import NonFiniteLoss

DIED = WorkerHealthCheckFailedError(
    "A worker health check failed.",
    RayActorError(error_msg="The actor is dead because its worker process has died."),
)
LEFT_ALONE = RuntimeError(
    "[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4242"
)


def watching(run: Path, *, retries: int = 1) -> tuple[Supervisor, Retries, list[Any]]:
    told: list[Any] = []
    counted = Retries(str(run), allowed=retries, tell=told.append)
    watch = Supervisor(counted, wait_s=90.0, wanted="2 workers of 1 CPUs")
    workers = [
        SimpleNamespace(metadata=SimpleNamespace(node_ip=f"10.0.0.{rank}", pid=100 + rank))
        for rank in range(2)
    ]
    watch.after_worker_group_training_start(SimpleNamespace(get_workers=lambda: workers))
    return watch, counted, told


def failed(**errors: Exception) -> WorkerGroupPollStatus:
    """Statuses as Ray Train polls them: `rank0=ValueError()` was raised there."""
    statuses = {rank: WorkerStatus(running=True) for rank in range(2)}
    for name, error in errors.items():
        wrapped = (
            error
            if isinstance(error, WorkerHealthCheckFailedError)
            else UserExceptionWithTraceback(error, f"Traceback of {name}\n{error}")
        )
        statuses[int(name.removeprefix("rank"))] = WorkerStatus(running=False, error=wrapped)
    return WorkerGroupPollStatus(worker_statuses=statuses)


def checkpointed(run: Path, images_seen: int) -> None:
    files.write_json(
        f"{run_folder.checkpoint_uri(str(run), images_seen)}/{run_folder.STATE_FILE}", {}
    )


def test_worker_processes_and_failures_are_reported_and_the_traceback_is_stored(
    tmp_path: Path,
) -> None:
    watch, _, told = watching(tmp_path)
    watch.after_worker_group_poll_status(failed())
    watch.after_worker_group_poll_status(failed(rank0=LEFT_ALONE, rank1=ValueError("a bug")))
    workers, failure = told
    assert workers == WorkersPlaced(
        tuple(WorkerProcess(rank, f"10.0.0.{rank}", 100 + rank) for rank in range(2))
    )
    assert (failure.worker, failure.reason, failure.consequence) == (
        WorkerProcess(1, "10.0.0.1", 101),
        "ValueError: a bug",
        "restart 1 of 1 since the newest checkpoint",
    )
    assert files.read_bytes(failure.traceback_uri) == b"Traceback of rank1\na bug"


def test_failures_are_counted_from_checkpoint_to_checkpoint(tmp_path: Path) -> None:
    watch, _, told = watching(tmp_path)
    for images_seen in (100, 200, 300):
        checkpointed(tmp_path, images_seen)
        watch.after_worker_group_poll_status(failed(rank0=DIED))
    with pytest.raises(
        RetriesSpent,
        match=r"^failed after 1 retries: rank 0 on 10.0.0.0: its process ended \(killed",
    ):
        watch.after_worker_group_poll_status(failed(rank0=DIED))
    failures = [event for event in told if isinstance(event, WorkerFailed)]
    assert [event.consequence[:12] for event in failures] == ["restart 1 of"] * 3 + ["no restart i"]


def test_a_storage_outage_counts_neither_as_progress_nor_as_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch, retries, told = watching(tmp_path)

    def away(*_: object) -> None:
        raise PlainError("the storage is away")

    monkeypatch.setattr(run_folder, "checkpoints", away)
    monkeypatch.setattr(files, "write_bytes", away)
    watch.after_worker_group_poll_status(failed(rank0=ValueError("a bug")))
    assert (told[-1].traceback_uri, retries.failures) == ("", 1)


@pytest.mark.parametrize("lasting", [UsageError("x"), DataError("x"), NonFiniteLoss("x")])
def test_a_failure_that_a_restart_cannot_fix_ends_the_training(
    tmp_path: Path, lasting: Exception
) -> None:
    watch, _, told = watching(tmp_path, retries=5)
    with pytest.raises(type(lasting)):
        watch.after_worker_group_poll_status(failed(rank0=LEFT_ALONE, rank1=lasting))
    (failure,) = [event for event in told if isinstance(event, WorkerFailed)]
    assert (failure.worker.rank, failure.consequence) == (1, "a restart cannot fix it")


def test_a_reclaimed_node_is_no_failure(tmp_path: Path) -> None:
    watch, _, told = watching(tmp_path, retries=0)
    reclaimed = RayActorError(error_msg="The actor died because its node has died.", preempted=True)
    watch.after_worker_group_poll_status(
        failed(rank1=WorkerHealthCheckFailedError("failed", reclaimed))
    )
    assert [type(event) for event in told] == [WorkersPlaced]


def test_a_start_that_fails_counts_and_one_without_room_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch, retries, told = watching(tmp_path, retries=2)
    monkeypatch.setattr(ray_internals, "recount_nodes", lambda run_id: None)
    started = SchedulingState(None)
    for _ in range(3):
        watch.after_controller_state_update(
            started, ReschedulingState(ControllerError(WorkerGroupStartupTimeoutError(2)))
        )
    assert [type(event) for event in told] == [WorkersPlaced] and retries.failures == 0
    died = WorkerGroupStartupFailedError("At least one of the worker actors failed to initialize.")
    died.__cause__ = RayActorError(
        error_msg="The actor is dead because its worker process has died."
    )
    watch.after_controller_state_update(started, ReschedulingState(ControllerError(died)))
    (failure,) = told[1:]
    assert (
        failure.reason == "its process ended (killed, or out of memory)"
        and failure.consequence == "restart 1 of 2 since the newest checkpoint"
    )
    assert b"worker process has died" in files.read_bytes(failure.traceback_uri)
    # The same count as of those that fail in training.
    watch.after_worker_group_poll_status(failed(rank0=DIED))
    with pytest.raises(
        RetriesSpent, match="^failed after 2 retries: a worker that started: its process ended"
    ):
        watch.after_controller_state_update(started, ReschedulingState(ControllerError(died)))


def test_the_wait_for_nodes_is_reported_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch, _, told = watching(tmp_path)
    clock, slept, looked = [1000.0], [], []
    monkeypatch.setattr(ray_internals, "recount_nodes", lambda run_id: looked.append(run_id))
    monkeypatch.setattr(supervisor.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(supervisor.time, "sleep", slept.append)
    states = [
        RunningState(),
        RestartingState(ValueError()),
        RestartingState(ValueError()),
        ReschedulingState(ValueError()),
    ]
    for seconds, (before, now) in zip(
        (0, 5, 12, 40, 75, 89), [(0, 1), (1, 2), (1, 3), (3, 3), (3, 3), (3, 3)], strict=True
    ):
        clock[0] = 1000.0 + seconds
        watch.after_controller_state_update(states[before], states[now])
    # Nothing of a restart that takes ten seconds; then at once, soon again, and a line a minute.
    assert [event for event in told if isinstance(event, WaitingForNodes)] == [
        WaitingForNodes(seconds, "2 workers of 1 CPUs") for seconds in (12, 40)
    ]
    # Ray's controller asks again without a pause where it stays in one state.
    assert slept == [1, 1, 1, 1]
    # The nodes are counted anew before each decision.
    assert len(looked) == 6
    clock[0] = 1091.0
    with pytest.raises(
        PlainError,
        match=r"no room for 2 workers of 1 CPUs in 1.5 minutes \(training.wait_minutes\)",
    ):
        watch.after_controller_state_update(states[3], states[3])
    # A group that is there ends the wait.
    watch.after_worker_group_training_start(SimpleNamespace(get_workers=list))
    watch.after_controller_state_update(states[0], states[1])
