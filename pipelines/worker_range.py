"""The option `--workers` of a work that grows and shrinks: N, or MIN,MAX."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BeforeValidator

MOST_WORKERS = 4096


def _as_text(workers: object) -> object:
    """What YAML has as a number or a list."""
    if isinstance(workers, list | tuple):
        return ",".join(map(str, workers))
    return str(workers) if isinstance(workers, int) else workers


def _checked(workers: str) -> str:
    worker_range(workers)
    return workers


def worker_range(workers: str) -> tuple[int, int]:
    """The fewest workers and the most. `ValueError` where the text says something else."""
    numbers = [number.strip() for number in workers.split(",")]
    if len(numbers) <= 2 and all(number.isdecimal() for number in numbers):
        fewest, most = int(numbers[0]), int(numbers[-1])
        if 1 <= fewest <= most <= MOST_WORKERS:
            return fewest, most
    raise ValueError(
        f"must be a whole number N of 1..{MOST_WORKERS}, or MIN,MAX with MIN at most MAX, such as"
        " 2,8"
    )


WorkerRange = Annotated[str, BeforeValidator(_as_text), AfterValidator(_checked)]
