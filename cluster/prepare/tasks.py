"""Shard jobs as Ray tasks: one task a shard. The only file of this room that knows Ray.

The driver makes a job only when a task is free for it, so that it never holds all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from cluster.errors import PlainError
from cluster.prepare.shard_job import ShardJob, ShardReport, find_report, noted_shards, run_job

FINISH_S = 60
"""Seconds that running tasks get to finish after one has failed."""


def run_jobs(
    make_job: Callable[[int], ShardJob],
    numbers: Sequence[int],
    *,
    total: int,
    say: Callable[[str], None],
) -> dict[int, ShardReport]:
    """Run the jobs of these numbers, as many tasks at a time as there are CPUs, and one that waits.
    `total` counts all shards, for the lines of progress.
    """
    if not numbers:
        return {}
    import ray
    from ray.exceptions import RayError, RayTaskError

    # Decoding keeps a core busy. With less than one CPU a task Ray would start more workers, each
    # with seconds of imports, and be no faster.
    task = ray.remote(num_cpus=1)(run_job)
    waiting = list(reversed(numbers))
    running: dict[Any, int] = {}
    reports: dict[int, ShardReport] = {}
    try:
        while waiting or running:
            # Asked again each time: nodes come and go.
            in_flight = int(ray.cluster_resources().get("CPU", 1)) + 1
            while waiting and len(running) < in_flight:
                number = waiting.pop()
                running[task.remote(make_job(number))] = number
            (done,), _ = ray.wait(list(running), num_returns=1)
            reports[running.pop(done)] = ray.get(done)
            finished = total - len(numbers) + len(reports)
            # About twenty lines however many shards there are.
            if finished == total or finished * 20 // total > (finished - 1) * 20 // total:
                say(f"{finished} of {total} shards")
    except RayTaskError as error:
        # Wait for the others, so that their shards are kept and nothing is written after the error.
        # Do not cancel them: in Ray 2.60 `ray.cancel` of a task that is just beginning can end the
        # driver ("Check failed: Tried to complete task that was not pending", seen in one of our
        # test runs).
        if running:
            ray.wait(list(running), num_returns=len(running), timeout=FINISH_S)
        if isinstance(error.cause, PlainError):
            # The cause alone: Ray's own text is the traceback of the worker.
            raise error.cause from None
        raise _failed(repr(error.cause)) from error
    except RayError as error:
        # A process that was killed, mostly for its memory, or a node that is gone; Ray has already
        # retried.
        reason = str(error).strip().splitlines()[0]
        raise _failed(f"{type(error).__name__}: {reason}") from error
    return reports


def _failed(reason: str) -> PlainError:
    return PlainError(
        f"preparing a shard failed ({reason}); run the command again, finished shards are kept"
    )


def run_or_find(
    make_job: Callable[[int], ShardJob],
    *,
    total: int,
    output: str | None,
    say: Callable[[str], None],
) -> list[ShardReport]:
    """The reports of shards 0..total-1: those of a former run where they are still valid, the
    others from jobs that run now.
    """
    noted = noted_shards(output) if output is not None else set()
    former: dict[int, ShardReport] = {}
    for number in range(total if noted else 0):
        job = make_job(number)
        if job.name in noted and (report := find_report(job)) is not None:
            former[number] = report
    if former:
        say(f"{output}: reusing {len(former)} of {total} shards from a run that did not finish")
    missing = [number for number in range(total) if number not in former]
    reports = former | run_jobs(make_job, missing, total=total, say=say)
    return [reports[number] for number in range(total)]


def drop_images(
    make_job: Callable[[int], ShardJob],
    reports: Sequence[ShardReport],
    drop: set[int],
    *,
    say: Callable[[str], None],
) -> list[ShardReport]:
    """The reports after exactly the images whose ids are in `drop` are left out: shards that still
    hold one of them, or left out another, are written again.
    """
    wanted = [
        tuple(sorted(drop & {picture.image_id for picture in report.pictures}))
        for report in reports
    ]
    outdated = [number for number, report in enumerate(reports) if report.drop != wanted[number]]
    if outdated:
        say(f"{len(outdated)} of {len(reports)} shards are written again, for duplicates")
    again = run_jobs(
        lambda number: replace(make_job(number), drop=wanted[number]),
        outdated,
        total=len(outdated),
        say=say,
    )
    return [again.get(number, report) for number, report in enumerate(reports)]
