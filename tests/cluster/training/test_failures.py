"""Which rank caused a failure, and what is said about it."""

from __future__ import annotations

import pytest
from ray.exceptions import RayActorError
from ray.train import ControllerError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from cluster.errors import DataError, PlainError
from cluster.training.failures import RetriesSpent, culprit, plain_failure, what_happened
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
def test_the_culprit_is_the_rank_that_raised_its_own_error(
    errors: dict[int, Exception], rank: int
) -> None:
    assert culprit(errors) == rank


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (DIED, "its process ended (killed, or out of memory)"),
        (GONE, "its node is gone"),
        (ValueError("a bug"), "ValueError: a bug"),
        (ValueError(""), "ValueError: "),
        (RuntimeError("Traceback ...\n  File\nRuntimeError: deep down"), "RuntimeError: deep down"),
        (PlainError("the bucket is gone"), "the bucket is gone"),
        (LEFT_ALONE, f"RuntimeError: {LEFT_ALONE} (another rank is gone)"),
    ],
)
def test_what_happened_is_one_line(error: Exception, words: str) -> None:
    assert what_happened(error) == words


def test_the_drivers_line_has_the_workers_exit_code() -> None:
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
