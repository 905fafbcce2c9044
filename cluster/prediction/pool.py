"""The parts of a plan on Ray actors that hold the network, as many as the cluster has room for. A
part goes to whichever actor is free; an actor that dies is replaced, and its parts are done again.
After them the overlays, on tasks.

Ray is known here and in `worker`, and in no other file of prediction.
"""

from __future__ import annotations

import queue
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Protocol, cast

from cluster.compute.resources import alive_nodes, booked, reading_worker, task_options
from cluster.errors import PlainError
from cluster.prediction.overlays import DrawnPart, OverlayJob, draw_part
from cluster.prediction.part import PartJob, PartReport
from cluster.prediction.worker import Worker
from cluster.runs.package_files import PackageFiles

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
PARTS_EACH = 2
"""Parts of an actor at a time: while one uses the network the next is read and decoded."""


@dataclass(frozen=True)
class Workers:
    """How many actors there are, what each books, and what each is made with."""

    fewest: int
    """Before the first part there are so many, or one for each part."""
    most: int
    cpus: float
    """Of the network and the decoder; reading books more, see `reading_worker`."""
    gpus: float
    package: PackageFiles
    kind: type = Worker


@dataclass(frozen=True)
class Crew:
    """The workers at one moment."""

    loaded: int
    """Those that have loaded the network."""
    missing: int
    """How many more there should be at least."""


Done = Callable[[int, int], bool]
Look = Callable[[Crew], None]


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
    look: Look = lambda crew: None,
) -> Iterator[PartReport]:
    """Reports of the parts of `feed` that are not `done` (by number and images), in the order in
    which they finish. `job` is that of any part. `look` is called again and again; what it raises
    ends the work.

    `PlainError` where the storage fails, or workers die again and again. A worker that is lost with
    its node is no death of its parts.
    """
    pool = _Pool(workers, feed, job, done)
    try:
        yield from pool.reports(look)
    finally:
        pool.end()


@dataclass(eq=False)
class _Actor:
    handle: Any
    nodes: frozenset[str]
    """That it runs on; while it starts, those that it may run on."""
    jobs: list[PartJob] = field(default_factory=list)


class _Pool:
    def __init__(self, workers: Workers, feed: Feed, job: PartJob, done: Done):
        import ray

        self.workers, self.feed, self.job, self.done = workers, feed, job, done
        self.actor_class = ray.remote(workers.kind).options(
            **task_options(reading_worker(workers.cpus, workers.gpus)),
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=PARTS_EACH,
        )
        # One copy for all: each node fetches it once.
        self.package = ray.put(workers.package)
        self.starting: dict[Any, _Actor] = {}
        """Actors by what Ray will answer. Ray starts each as soon as a node has room; an autoscaler
        sees them wait.
        """
        self.loaded: list[_Actor] = []
        self.working: dict[Any, tuple[_Actor, PartJob]] = {}
        self.pending: list[PartJob] = []
        """The next jobs, as many as the workers can take and not more."""
        self.planned = False
        """Whether `feed` has no more parts."""
        self.begun = False
        self.deaths: defaultdict[int, list[frozenset[str]]] = defaultdict(list)
        """The nodes of the workers that died at each part."""
        self.failed_starts: list[frozenset[str]] = []

    def reports(self, look: Look) -> Iterator[PartReport]:
        """See `run_parts`."""
        import ray

        while True:
            self._take_jobs()
            self._give_out()
            self._start_workers()
            if self.planned and not self.pending and not self.working:
                return
            look(Crew(len(self.loaded), max(0, self._needed() - len(self.loaded))))
            answers = [*self.working, *self.starting]
            if not answers:
                time.sleep(LOOK_S / 5)
                continue
            ready, _ = ray.wait(answers, num_returns=1, timeout=LOOK_S)
            for answer in ready:
                if (report := self._answer(answer)) is not None:
                    yield report

    def _take_jobs(self) -> None:
        while not self.planned and len(self.pending) < PARTS_EACH * self.workers.most:
            try:
                part = self.feed.next_part()
            except queue.Empty:
                return
            if part is None:
                self.planned = True
            elif not self.done(*part):
                self.pending.append(replace(self.job, number=part[0]))

    def _needed(self) -> int:
        """The fewest workers that there should be: not more than there are parts for."""
        return min(self.workers.fewest, len(self.pending) + len(self.working))

    def _give_out(self) -> None:
        """Jobs to workers, first to those without one."""
        self.begun = self.begun or 0 < self._needed() <= len(self.loaded)
        while self.begun and self.pending and self.loaded:
            actor, job = min(self.loaded, key=lambda one: len(one.jobs)), self.pending[0]
            if actor.jobs and not self._may_share(actor, job):
                return
            actor.jobs.append(self.pending.pop(0))
            self.working[actor.handle.predict.remote(job)] = (actor, job)

    def _may_share(self, actor: _Actor, job: PartJob) -> bool:
        """Whether an actor that has a job gets one more. A part at which a worker died has its
        worker alone, so that the next death is its own; and the last parts wait for whoever is free
        first.
        """
        alone = any(one.number in self.deaths for one in (job, *actor.jobs))
        room = len(actor.jobs) < PARTS_EACH
        return room and not alone and len(self.pending) > len(self.loaded)

    def _start_workers(self) -> None:
        """As many as there is work for. When the last parts are given out idle workers end, and the
        cluster can take their nodes back.
        """
        idle = [actor for actor in self.loaded if not actor.jobs]
        if self.planned and not self.pending:
            for actor in (*idle, *self.starting.values()):
                self._end(actor)
            self.starting.clear()
            return
        device = "cuda" if self.workers.gpus else "cpu"
        room = self.workers.most - len(self.loaded) - len(self.starting)
        for _ in range(min(room, len(self.pending) - len(idle) - len(self.starting))):
            actor = self.actor_class.remote(self.package, max(1, int(self.workers.cpus)), device)
            self.starting[actor.ready.remote()] = _Actor(actor, _nodes())

    def _answer(self, answer: Any) -> PartReport | None:
        import ray
        from ray.exceptions import RayError, RayTaskError

        if answer in self.starting:
            actor, job = self.starting.pop(answer), None
        else:
            actor, job = self.working.pop(answer)
            actor.jobs.remove(job)
        try:
            # Ray's type is that of a list too.
            found = cast("PartReport | str", ray.get(answer))
        except RayTaskError as error:
            if job is not None and isinstance(error.cause, MemoryError):
                self._died(job, actor, repr(error.cause))
                return None
            self._finish_working()
            if isinstance(error.cause, PlainError):
                raise error.cause from None
            raise
        except RayError as error:
            # A process that was killed, or a node that is gone. One that only seems to be gone
            # must not work beside its successor.
            self._end(actor)
            lines = str(error).strip().splitlines() or [""]
            if job is None:
                self._failed_to_start(actor, lines[-1])
            else:
                self._died(job, actor, f"{type(error).__name__}: {lines[0]}")
            return None
        if isinstance(found, str):
            actor.nodes = frozenset([found])
            self.loaded.append(actor)
            return None
        self.failed_starts.clear()
        return found

    def _failed_to_start(self, actor: _Actor, reason: str) -> None:
        self.failed_starts.append(actor.nodes)
        if _without_node_losses(self.failed_starts) >= FAILED_STARTS:
            self._finish_working()
            raise PlainError(
                f"{FAILED_STARTS} workers ended while they loaded the network ({reason}); check"
                " their memory and the nodes, then run the command again"
            )

    def _died(self, job: PartJob, actor: _Actor, reason: str) -> None:
        """Do the part again, more carefully each time. `PlainError` after the last one."""
        self.deaths[job.number].append(actor.nodes)
        deaths = _without_node_losses(self.deaths[job.number])
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

    def _end(self, actor: _Actor) -> None:
        import ray

        if actor in self.loaded:
            self.loaded.remove(actor)
        ray.kill(actor.handle)

    def end(self) -> None:
        at_work = (actor for actor, _ in self.working.values())
        for actor in {*self.loaded, *self.starting.values(), *at_work}:
            self._end(actor)


def _nodes() -> frozenset[str]:
    """The ids of the nodes that are up."""
    return frozenset(node["NodeID"] for node in alive_nodes())


def _without_node_losses(deaths: list[frozenset[str]]) -> int:
    """How many workers died on nodes that are all still there. Ray may know that a node is gone
    only seconds after its workers.
    """
    here = _nodes()
    return sum(nodes <= here for nodes in deaths)


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
