"""The parts of a plan on Ray actors that hold the network. A part goes to whichever actor is free;
an actor that dies is replaced, and its part is done again. After them the overlays, on tasks.

The only file of prediction that knows Ray.
"""

from __future__ import annotations

import queue
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Protocol, cast

import torch

from cluster.compute.resources import booked, task_options
from cluster.errors import PlainError
from cluster.prediction.overlays import DrawnPart, OverlayJob, draw_part
from cluster.prediction.part import PartJob, PartReport, predict_part
from cluster.runs.package_files import PackageFiles, load_predictor, stored_classes
from detector.predict import CLASSES_FILE

LOOK_S = 0.5
"""Between two looks at the plan and at what the driver was told."""
DEATHS_TOGETHER, DEATHS_ALONE = 2, 2
"""Deaths at one part before its images are decoded in child processes, and after that before the
command gives up.
"""
FAILED_STARTS = 3
"""In a row, without a part that was finished."""
FINISH_S = 60
"""Seconds that parts in work get to finish after one has failed."""


class Worker:
    """The actor: a predictor, loaded once."""

    def __init__(self, package: PackageFiles, threads: int, device: str):
        # On CPUs the threads run the network, beside a GPU they decode.
        self.threads = 1 if device == "cpu" else threads
        torch.set_num_threads(threads if device == "cpu" else 1)
        self.predictor = load_predictor(package, device)
        self.class_names = [category.name for category in stored_classes(package[CLASSES_FILE])]

    def ready(self) -> None:
        """Returns when the network is loaded."""

    def predict(self, job: PartJob) -> PartReport:
        return predict_part(job, self.predictor, self.class_names, threads=self.threads)


@dataclass(frozen=True)
class Workers:
    """How many actors there are, what each books, and what each is made with."""

    number: int
    cpus: float
    gpus: float
    package: PackageFiles
    kind: type = Worker


Done = Callable[[int, int], bool]


class Feed(Protocol):
    def next_part(self) -> tuple[int, int] | None:
        """See `planner.Planner.next_part`."""
        ...


def run_parts(
    workers: Workers,
    feed: Feed,
    job: PartJob,
    *,
    done: Done,
    look: Callable[[int], None] = lambda living: None,
) -> Iterator[PartReport]:
    """Reports of the parts of `feed` that are not `done` (by number and images), in the order in
    which they finish. `job` is that of any part. `look` is called again and again with the
    number of workers that have loaded the network; what it raises ends the work.

    `PlainError` where the storage fails, or workers die again and again.
    """
    pool = _Pool(workers, feed, job, done)
    try:
        yield from pool.reports(look)
    finally:
        pool.end()


class _Pool:
    def __init__(self, workers: Workers, feed: Feed, job: PartJob, done: Done):
        import ray

        self.workers, self.feed, self.job, self.done = workers, feed, job, done
        self.actor_class = ray.remote(workers.kind).options(
            **task_options(booked(workers.cpus, workers.gpus)), max_restarts=0, max_task_retries=0
        )
        # One copy for all: each node fetches it once.
        self.package = ray.put(workers.package)
        self.starting: dict[Any, Any] = {}
        """Actors by what Ray will answer."""
        self.working: dict[Any, tuple[Any, PartJob]] = {}
        self.idle: list[Any] = []
        self.pending: list[PartJob] = []
        """The next jobs, as many as there are workers and not more."""
        self.planned = False
        """Whether `feed` has no more parts."""
        self.deaths: Counter[int] = Counter()
        self.failed_starts = 0

    def reports(self, look: Callable[[int], None]) -> Iterator[PartReport]:
        """See `run_parts`."""
        import ray

        while True:
            self._take_jobs()
            self._give_out()
            if self.planned and not self.pending and not self.working:
                return
            look(len(self.working) + len(self.idle))
            answers = [*self.working, *self.starting]
            if not answers:
                time.sleep(LOOK_S / 5)
                continue
            ready, _ = ray.wait(answers, num_returns=1, timeout=LOOK_S)
            for answer in ready:
                if (report := self._answer(answer)) is not None:
                    yield report

    def _take_jobs(self) -> None:
        while not self.planned and len(self.pending) < self.workers.number:
            try:
                part = self.feed.next_part()
            except queue.Empty:
                return
            if part is None:
                self.planned = True
            elif not self.done(*part):
                self.pending.append(replace(self.job, number=part[0]))

    def _give_out(self) -> None:
        """Jobs to idle workers; where jobs are left, more workers."""
        while self.pending and self.idle:
            actor, job = self.idle.pop(), self.pending.pop(0)
            self.working[actor.predict.remote(job)] = (actor, job)
        device = "cuda" if self.workers.gpus else "cpu"
        room = self.workers.number - len(self.working) - len(self.starting)
        for _ in range(min(room, len(self.pending) - len(self.starting))):
            actor = self.actor_class.remote(self.package, max(1, int(self.workers.cpus)), device)
            self.starting[actor.ready.remote()] = actor

    def _answer(self, answer: Any) -> PartReport | None:
        import ray
        from ray.exceptions import RayError, RayTaskError

        if answer in self.starting:
            actor, job = self.starting.pop(answer), None
        else:
            actor, job = self.working.pop(answer)
        try:
            # Ray's type is that of a list too.
            report = cast("PartReport | None", ray.get(answer))
        except RayTaskError as error:
            if job is not None and isinstance(error.cause, MemoryError):
                self.idle.append(actor)
                self._died(job, repr(error.cause))
                return None
            self._finish_working()
            if isinstance(error.cause, PlainError):
                raise error.cause from None
            raise
        except RayError as error:
            # A process that was killed, or a node that is gone. One that only seems to be gone
            # must not work beside its successor.
            ray.kill(actor)
            lines = str(error).strip().splitlines() or [""]
            if job is None:
                self._failed_to_start(lines[-1])
            else:
                self._died(job, f"{type(error).__name__}: {lines[0]}")
            return None
        self.idle.append(actor)
        if job is not None:
            self.failed_starts = 0
        return report

    def _failed_to_start(self, reason: str) -> None:
        self.failed_starts += 1
        if self.failed_starts >= FAILED_STARTS:
            self._finish_working()
            raise PlainError(
                f"{FAILED_STARTS} workers ended while they loaded the network ({reason}); check"
                " their memory and the nodes, then run the command again"
            )

    def _died(self, job: PartJob, reason: str) -> None:
        """Do the part again, more carefully each time. `PlainError` after the last one."""
        self.deaths[job.number] += 1
        deaths = self.deaths[job.number]
        if deaths >= DEATHS_TOGETHER + DEATHS_ALONE:
            self._finish_working()
            raise PlainError(
                f"{deaths} workers ended at part {job.number}, also with each image decoded in a"
                f" process of its own ({reason}); give each worker more memory, then run the"
                " command again"
            )
        self.pending.insert(0, replace(job, isolated=deaths >= DEATHS_TOGETHER))

    def _finish_working(self) -> None:
        """Let parts in work finish, so that they need not be done again."""
        import ray

        if self.working:
            ray.wait(list(self.working), num_returns=len(self.working), timeout=FINISH_S)

    def end(self) -> None:
        import ray

        at_work = (actor for actor, _ in self.working.values())
        for actor in (*self.idle, *self.starting.values(), *at_work):
            ray.kill(actor)


def draw_overlays(
    jobs: Iterable[OverlayJob], *, number: int, cpus: float, look: Callable[[], None]
) -> Iterator[DrawnPart]:
    """Draw with so many tasks, each of which books `cpus`; reports in the order of the parts.
    `look` is called again and again; what it raises ends the work.
    """
    import ray
    from ray.exceptions import RayError

    # A task that dies is done again by Ray.
    draw = ray.remote(draw_part).options(**task_options(booked(cpus, 0)))
    running: deque[tuple[OverlayJob, Any]] = deque()
    rest = iter(jobs)
    while True:
        running.extend((job, draw.remote(job)) for job in islice(rest, number - len(running)))
        if not running:
            return
        job, answer = running[0]
        look()
        if not ray.wait([answer], timeout=LOOK_S)[0]:
            continue
        running.popleft()
        try:
            yield cast("DrawnPart", ray.get(answer))
        except RayError as error:  # pictures are not worth the results
            lost = f"overlays of part {job.number}: {str(error).strip().splitlines()[-1]}"
            yield DrawnPart(job.number, 0, job.count, 0.0, (lost,))
