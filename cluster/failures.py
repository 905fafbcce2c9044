"""What ended a training: which failures of a worker a restart may cure, and what the person who typed the command is told."""

from __future__ import annotations

from typing import Any

from cluster.errors import DataError, DiskFull, PlainError, UsageError

LASTING = (UsageError, DataError, DiskFull, ArithmeticError)
"""Errors of a worker that its restart would meet again: a configuration or data that cannot be used, a full disk, and `NonFiniteLoss`."""


def stop_at_lasting_errors() -> Any:
    """Ray Train's `FailureConfig` counts all failures alike. What a callback raises in the controller is not retried."""
    from ray.train import UserCallback

    class StopAtLastingErrors(UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            for rank in sorted(worker_exceptions):
                # Ray wraps what the training function raised, to keep its traceback.
                raised = getattr(worker_exceptions[rank], "_base_exc", worker_exceptions[rank])
                if isinstance(raised, LASTING):
                    raise raised

    return StopAtLastingErrors()


def plain_failure(error: BaseException, name: str, *, retries: int) -> PlainError:
    """What `TrainingFailedError` means to the person who typed the command, with the exit code of the worker's own error."""
    lasting = getattr(error, "controller_failure", None)
    if isinstance(lasting, LASTING):
        kind = type(lasting) if isinstance(lasting, PlainError) else PlainError
        return kind(f"training {name} stopped: {lasting}")
    return PlainError(f"training {name} failed after {retries} retries: {root_cause(error)}")


def root_cause(error: BaseException) -> str:
    """The last line of the first worker's traceback: what actually went wrong."""
    failures = getattr(error, "worker_failures", None) or {}
    first = failures[min(failures)] if failures else error
    lines = [line for line in str(first).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(first).__name__
