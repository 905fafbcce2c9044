"""Sorts failures of a training: which ones a restart can fix, which rank caused them, and what the
user is told.
"""

from __future__ import annotations

from collections.abc import Mapping

from cluster.errors import DataError, DiskFull, PlainError, UsageError

LASTING = (UsageError, DataError, DiskFull, ArithmeticError)
"""Errors of a worker that a restart cannot fix: an unusable configuration or data set, a full disk,
and `NonFiniteLoss`. They stop the run immediately.
"""

_LOST_PEER = (
    "gloo",
    "nccl",
    "connection closed by peer",
    "connection reset by peer",
    "process group",
)
"""Words in the error of a rank that lost another rank in the middle of an exchange."""


class RetriesSpent(PlainError):
    """A worker failed, and so did the restarts that were allowed."""


def plain_failure(error: BaseException, name: str) -> PlainError:
    """Ray Train's `TrainingFailedError` as one plain line for the user, with the exit code of the
    worker's own error.
    """
    cause = getattr(error, "controller_failure", error)
    if isinstance(cause, RetriesSpent):
        return PlainError(f"training {name} {cause}")
    if isinstance(cause, (PlainError, *LASTING)):
        kind = type(cause) if isinstance(cause, PlainError) else PlainError
        return kind(f"training {name} stopped: {cause}")
    return PlainError(f"training {name} failed: {what_happened(cause)}")


def culprit(errors: Mapping[int, BaseException]) -> int:
    """The rank that most likely caused the failure: the first that raised its own error, else one
    whose process died, else one that lost its peers.
    """

    def order(rank: int) -> tuple[int, int]:
        error = errors[rank]
        return 2 if _lost_a_peer(error) else 1 if _death(error) is not None else 0, rank

    return min(errors, key=order)


def what_happened(error: BaseException) -> str:
    """One line."""
    death = _death(error)
    if death is not None:
        return describe_death(death)
    return f"{last_line(error)} (another rank is gone)" if _lost_a_peer(error) else last_line(error)


def describe_death(error: BaseException) -> str:
    """In a few words what Ray says about a worker whose process is gone."""
    text = str(error)
    if "OutOfMemory" in text or "OUT_OF_MEMORY" in text:
        return "Ray ended its process, the node was out of memory"
    return (
        "its node is gone"
        if "node has died" in text or "node died" in text
        else "its process ended (killed, or out of memory)"
    )


def last_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    last = lines[-1].strip() if lines else ""
    # Ray repeats a traceback, whose last line has the class already.
    return (
        last
        if isinstance(error, PlainError) or type(error).__name__ in last
        else f"{type(error).__name__}: {last}"
    )


def _lost_a_peer(error: BaseException) -> bool:
    return (
        not isinstance(error, PlainError)
        and _death(error) is None
        and any(words in str(error).lower() for words in _LOST_PEER)
    )


def _death(error: BaseException) -> BaseException | None:
    """Ray Train's reason why the worker's process is gone; None where the worker itself raised."""
    return getattr(error, "health_check_failure", None)
