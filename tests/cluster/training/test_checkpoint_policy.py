"""When a checkpoint is due: by images, by time, by notice, by request."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from ray.train import PreemptionInfo

from cluster.runs.events import Event, TrainingWarning
from cluster.training.checkpoint_policy import NOTICE_STEPS, CheckpointPolicy, CheckpointRequest


def policy(told: list[Event] | None = None, **changes: Any) -> CheckpointPolicy:
    settings: dict[str, Any] = {
        "every_images": 0,
        "every_minutes": 0,
        "writes": True,
        "tell": [].append if told is None else told.append,
        "request": CheckpointRequest(),
        "find_notice": lambda: None,
    }
    return CheckpointPolicy(**settings | changes)


def test_by_images_one_is_due_where_a_multiple_is_reached() -> None:
    by_images = policy(every_images=8, writes=False)
    assert [now for now in range(4, 44, 4) if by_images.is_due(now - 4, now)] == [8, 16, 24, 32, 40]
    by_tens = policy(every_images=10)
    assert [now for now in range(4, 44, 4) if by_tens.is_due(now - 4, now)] == [12, 20, 32, 40]


@pytest.mark.parametrize("writes", [True, False])
def test_by_time_only_the_rank_that_writes_says_so(writes: bool) -> None:
    clock = [0.0]
    by_time = policy(every_minutes=1, writes=writes, clock=lambda: clock[0])
    clock[0] = 59.0
    assert not by_time.is_due(0, 4)
    clock[0] = 60.0
    assert by_time.is_due(4, 8) == writes
    by_time.saved()
    assert not by_time.is_due(8, 12)


def test_by_request_one_is_due_until_it_is_accepted() -> None:
    request = CheckpointRequest()
    on_request = policy(request=request)
    assert not on_request.is_due(0, 4)
    answers: list[bool] = []
    asking = threading.Thread(target=lambda: answers.append(request.make(patience_s=30)))
    asking.start()
    while not request.is_pending():
        pass
    assert on_request.is_due(4, 8) and not policy(request=request, writes=False).is_due(4, 8)
    request.accept()
    assert not on_request.is_due(8, 12)
    request.fulfil()
    asking.join()
    assert answers == [True]
    assert not request.make(patience_s=0)


def test_a_notice_means_one_more_checkpoint_on_every_rank_at_the_same_step() -> None:
    """`PreemptionInfo` is what Ray gives all ranks once a node is being drained."""
    notice: list[PreemptionInfo | None] = [None]
    told: list[list[Event]] = [[], []]
    ranks = [
        policy(told[rank], writes=rank == 0, find_notice=lambda: notice[0]) for rank in range(2)
    ]

    def due_at(steps: int) -> list[list[int]]:
        return [
            [step for step in range(steps) if rank.is_due(4 * step, 4 * step + 4)] for rank in ranks
        ]

    assert due_at(NOTICE_STEPS + 1) == [[], []]
    notice[0] = PreemptionInfo(deadline_ms=None, preempted_node_to_ranks={"a1b2c3d4e5f6": [0]})
    # The next look comes after NOTICE_STEPS - 1 more; the same notice asks for no second one.
    assert due_at(3 * NOTICE_STEPS) == [[NOTICE_STEPS - 2], [NOTICE_STEPS - 2]]
    assert told[0] == [
        TrainingWarning(
            "node a1b2c3d4 will be taken away; one more checkpoint is taken at 28 images"
        )
    ]
