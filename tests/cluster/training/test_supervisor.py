"""Failures of workers: which rank is the cause, when it is given up, what is said; and waiting and
growing, without a cluster.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError, RayTaskError
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
from cluster.storage import files
from cluster.training import failures, supervisor
from cluster.training.failures import RetriesSpent, culprit, plain_failure, what_happened
from cluster.training.supervisor import Retries, Supervisor, is_of_the_start
from detector.step import NonFiniteLoss

DIED = WorkerHealthCheckFailedError(
    "A worker health check failed.",
    RayActorError(error_msg="The actor is dead because its worker process has died."),
)
GONE = WorkerHealthCheckFailedError(
    "A worker health check failed.",
    RayActorError(error_msg="The actor died because its node has died."),
)
LEFT_ALONE = RuntimeError(
    "[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4242"
)


@pytest.mark.parametrize(
    ("errors", "rank"),
    [
        ({0: LEFT_ALONE, 1: DIED}, 1),
        ({0: LEFT_ALONE, 1: LEFT_ALONE, 2: ValueError("a bug")}, 2),
        ({0: DIED, 1: ValueError("a bug")}, 1),
        ({0: LEFT_ALONE, 3: LEFT_ALONE}, 0),
        # A plain message is nobody's echo, whatever it mentions.
        ({0: LEFT_ALONE, 1: PlainError("s3://gloo/store: connection reset by peer")}, 1),
    ],
)
def test_the_cause_is_the_rank_that_failed_by_itself(
    errors: dict[int, Exception], rank: int
) -> None:
    assert culprit(errors) == rank


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (DIED, "its process ended (killed, or out of memory)"),
        (GONE, "its node went away"),
        (ValueError("a bug"), "ValueError: a bug"),
        (ValueError(""), "ValueError: "),
        (RuntimeError("Traceback ...\n  File\nRuntimeError: deep down"), "RuntimeError: deep down"),
        (PlainError("the bucket is gone"), "the bucket is gone"),
        (LEFT_ALONE, f"RuntimeError: {LEFT_ALONE} (another rank went away)"),
    ],
)
def test_what_happened_is_one_line(error: Exception, words: str) -> None:
    assert what_happened(error) == words


def test_the_drivers_line_has_the_workers_exit_code() -> None:
    assert failures.LASTING
    failure = plain_failure(ControllerError(DataError("a shard is damaged")), "cells")
    assert (
        type(failure) is DataError and str(failure) == "training cells stopped: a shard is damaged"
    )
    failure = plain_failure(ControllerError(NonFiniteLoss("the loss is nan")), "cells")
    assert type(failure) is PlainError and str(failure) == "training cells stopped: the loss is nan"
    failure = plain_failure(
        ControllerError(
            RetriesSpent("failed after 2 retries: rank 1 on 10.0.0.2: ValueError: a bug")
        ),
        "cells",
    )
    assert (
        type(failure) is PlainError
        and str(failure)
        == "training cells failed after 2 retries: rank 1 on 10.0.0.2: ValueError: a bug"
    )
    failure = plain_failure(ControllerError(RuntimeError("the controller's own")), "cells")
    assert (
        type(failure) is PlainError
        and str(failure) == "training cells failed: RuntimeError: the controller's own"
    )


class Told:
    """A board that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.put = SimpleNamespace(remote=self.events.append)


def watching(run: Path, **changes: Any) -> tuple[Supervisor, list[dict[str, Any]]]:
    board = Told()
    retries = Retries(str(run), allowed=changes.pop("retries", 1), board=board)
    found = Supervisor(retries, **{"wait_s": 90.0, "wanted": "2 workers of 1 CPUs", **changes})
    workers = [
        SimpleNamespace(metadata=SimpleNamespace(node_ip=f"10.0.0.{rank}", pid=100 + rank))
        for rank in range(2)
    ]
    found.after_worker_group_training_start(SimpleNamespace(get_workers=lambda: workers))
    return found, board.events


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


def test_who_is_where_and_what_went_wrong_is_told_and_kept(tmp_path: Path) -> None:
    watch, told = watching(tmp_path)
    watch.after_worker_group_poll_status(failed())
    watch.after_worker_group_poll_status(failed(rank0=LEFT_ALONE, rank1=ValueError("a bug")))
    workers, failure = told
    assert workers["workers"] == [
        {"rank": rank, "node": f"10.0.0.{rank}", "pid": 100 + rank} for rank in range(2)
    ]
    assert [failure[name] for name in ("rank", "node", "pid", "reason", "then")] == [
        1, "10.0.0.1", 101, "ValueError: a bug", "restart 1 of 1 since the newest checkpoint",
    ]  # fmt: skip
    assert files.read_bytes(failure["details"]) == b"Traceback of rank1\na bug"


def test_failures_are_counted_from_checkpoint_to_checkpoint(tmp_path: Path) -> None:
    watch, told = watching(tmp_path)
    for images_seen in (100, 200, 300):
        checkpointed(tmp_path, images_seen)
        watch.after_worker_group_poll_status(failed(rank0=DIED))
    with pytest.raises(
        RetriesSpent,
        match=r"^failed after 1 retries: rank 0 on 10.0.0.0: its process ended \(killed",
    ):
        watch.after_worker_group_poll_status(failed(rank0=DIED))
    assert [event["then"][:12] for event in told if event["kind"] == "failure"] == [
        "restart 1 of"
    ] * 3 + ["no restart i"]


def test_storage_that_is_away_is_no_progress_and_no_second_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch, told = watching(tmp_path)

    def away(*_: object) -> None:
        raise PlainError("the storage is away")

    monkeypatch.setattr(supervisor.run_folder, "checkpoints", away)
    monkeypatch.setattr(supervisor.storage, "write_bytes", away)
    watch.after_worker_group_poll_status(failed(rank0=ValueError("a bug")))
    assert (told[-1]["details"], watch.retries.failures) == ("", 1)


@pytest.mark.parametrize("lasting", [UsageError("x"), DataError("x"), NonFiniteLoss("x")])
def test_what_a_restart_would_meet_again_ends_the_training(
    tmp_path: Path, lasting: Exception
) -> None:
    watch, told = watching(tmp_path, retries=5)
    with pytest.raises(type(lasting)):
        watch.after_worker_group_poll_status(failed(rank0=LEFT_ALONE, rank1=lasting))
    (failure,) = [event for event in told if event["kind"] == "failure"]
    assert (failure["rank"], failure["then"]) == (1, "a restart would meet it again")


def test_a_reclaimed_node_is_no_failure(tmp_path: Path) -> None:
    watch, told = watching(tmp_path, retries=0)
    reclaimed = RayActorError(error_msg="The actor died because its node has died.", preempted=True)
    watch.after_worker_group_poll_status(
        failed(rank1=WorkerHealthCheckFailedError("failed", reclaimed))
    )
    assert [event["kind"] for event in told] == ["workers"]


def test_a_start_that_fails_counts_and_one_without_room_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch, told = watching(tmp_path, retries=2)
    monkeypatch.setattr(watch, "look_again", lambda: None)
    started = SchedulingState(None)
    for _ in range(3):
        watch.after_controller_state_update(
            started, ReschedulingState(ControllerError(WorkerGroupStartupTimeoutError(2)))
        )
    assert [event["kind"] for event in told] == ["workers"] and watch.retries.failures == 0
    died = WorkerGroupStartupFailedError("At least one of the worker actors failed to initialize.")
    died.__cause__ = RayActorError(
        error_msg="The actor is dead because its worker process has died."
    )
    watch.after_controller_state_update(started, ReschedulingState(ControllerError(died)))
    (failure,) = told[1:]
    assert (
        failure["reason"] == "its process ended (killed, or out of memory)"
        and failure["then"] == "restart 1 of 2 since the newest checkpoint"
    )
    assert b"worker process has died" in files.read_bytes(failure["details"])
    # The same count as of those that fail in training.
    watch.after_worker_group_poll_status(failed(rank0=DIED))
    with pytest.raises(
        RetriesSpent, match="^failed after 2 retries: a worker that started: its process ended"
    ):
        watch.after_controller_state_update(started, ReschedulingState(ControllerError(died)))


def test_a_group_whose_workers_do_not_find_each_other_is_tried_again() -> None:
    unreachable = RayTaskError(
        "setup",
        "Traceback\nRuntimeError: gloo: connection refused",
        RuntimeError("gloo: connection refused"),
    )
    assert is_of_the_start(ControllerError(unreachable))
    assert not any(
        is_of_the_start(ControllerError(lasting))
        for lasting in (RetriesSpent("x"), PlainError("no room"), RuntimeError("a bug"))
    )
    # Nobody went away there.
    board = Told()
    with pytest.raises(
        RetriesSpent,
        match=(
            "^failed after 0 retries: the start of the workers: RuntimeError: gloo: connection"
            " refused$"
        ),
    ):
        Retries("/nowhere", allowed=0, board=board).spend_on_start(unreachable)


def test_nodes_are_waited_for_and_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch, told = watching(tmp_path)
    clock, slept, looked = [1000.0], [], []
    monkeypatch.setattr(watch, "look_again", lambda: looked.append(clock[0]))
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
    assert [event["seconds"] for event in told if event["kind"] == "waiting"] == [12, 40]
    assert told[-1]["wanted"] == "2 workers of 1 CPUs"
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
    watch.after_worker_group_training_start(watch.group)
    watch.after_controller_state_update(states[0], states[1])
