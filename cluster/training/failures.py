"""What ended a training or a part of it: which failures a restart may cure, which rank's is the
cause, and what the person who typed the command is told.
"""

from __future__ import annotations

from collections.abc import Mapping

from cluster.errors import DataError, DiskFull, PlainError, UsageError

LASTING = (UsageError, DataError, DiskFull, ArithmeticError)
"""Errors of a worker that its restart would meet again: a configuration or data that cannot be
used, a full disk, and `NonFiniteLoss`.
"""

BROKEN_OFF = (
    "gloo",
    "nccl",
    "connection closed by peer",
    "connection reset by peer",
    "process group",
)
"""What a rank says whose neighbour went away in the middle of an exchange."""


class RetriesSpent(PlainError):
    """A worker failed, and so did the restarts that were allowed."""


def plain_failure(error: BaseException, name: str) -> PlainError:
    """What Ray Train's `TrainingFailedError` means to the person who typed the command, with the
    exit code of the worker's own error.
    """
    cause = getattr(error, "controller_failure", error)
    if isinstance(cause, RetriesSpent):
        return PlainError(f"training {name} {cause}")
    if isinstance(cause, (PlainError, *LASTING)):
        kind = type(cause) if isinstance(cause, PlainError) else PlainError
        return kind(f"training {name} stopped: {cause}")
    return PlainError(f"training {name} failed: {what_happened(cause)}")


def culprit(errors: Mapping[int, BaseException]) -> int:
    """The rank whose error is the cause: of several the first that raised by itself, then one whose
    process ended, then one that was left alone.
    """

    def order(rank: int) -> tuple[int, int]:
        return (2 if is_broken_off(errors[rank]) else 1 if has_died(errors[rank]) else 0), rank

    return min(errors, key=order)


def is_broken_off(error: BaseException) -> bool:
    return (
        not isinstance(error, PlainError)
        and not has_died(error)
        and any(words in str(error).lower() for words in BROKEN_OFF)
    )


def has_died(error: BaseException) -> bool:
    """Whether the worker's process is gone, as Ray Train tells it."""
    return getattr(error, "health_check_failure", None) is not None


def what_happened(error: BaseException) -> str:
    """One line."""
    if has_died(error):
        return how_it_died(error.health_check_failure)
    return (
        f"{last_line(error)} (another rank went away)" if is_broken_off(error) else last_line(error)
    )


def how_it_died(error: BaseException) -> str:
    """What Ray says of a worker whose process is gone, in a few words."""
    text = str(error)
    if "OutOfMemory" in text or "OUT_OF_MEMORY" in text:
        return "Ray ended its process, the node was out of memory"
    return (
        "its node went away"
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
