"""Failures of a group's start, counted without a cluster."""

from __future__ import annotations

import pytest
from ray.exceptions import RayTaskError
from ray.train import ControllerError

from cluster.errors import PlainError
from cluster.training.failures import RetriesSpent
from cluster.training.retries import Retries, is_start_failure


def test_a_group_whose_workers_do_not_find_each_other_counts_as_a_failed_start() -> None:
    unreachable = RayTaskError(
        "setup",
        "Traceback\nRuntimeError: gloo: connection refused",
        RuntimeError("gloo: connection refused"),
    )
    assert is_start_failure(ControllerError(unreachable))
    assert not any(
        is_start_failure(ControllerError(lasting))
        for lasting in (RetriesSpent("x"), PlainError("no room"), RuntimeError("a bug"))
    )
    # No rank is gone there.
    with pytest.raises(
        RetriesSpent,
        match=(
            "^failed after 0 retries: the start of the workers: RuntimeError: gloo: connection"
            " refused$"
        ),
    ):
        Retries("/nowhere", allowed=0, tell=lambda event: None).spend_on_start(unreachable)
