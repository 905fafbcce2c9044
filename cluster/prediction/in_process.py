"""The parts of a plan, and the overlays, on threads of this process: a few images take less time
than Ray takes to start. The results are those of `pool`, to the last bit.

An image that crashes its decoder ends this process. So a prediction that was cut off is never
continued here: the workers of `pool` decode such an image apart.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any

from cluster.compute.resources import FEW_IMAGES, usable_cpus
from cluster.errors import PlainError
from cluster.prediction.image_list import ImageList
from cluster.prediction.overlays import DrawnPart, OverlayJob, draw_part
from cluster.prediction.part import PartJob, PartReport
from cluster.prediction.pool import LOOK_S, Crew, Done, Feed, Look, Workers

MOST_THREADS = 4
"""Each has a copy of the network."""


def is_few(images: ImageList) -> bool:
    """Whether the list has at most `FEW_IMAGES`. No more of it is read than that takes."""
    count = 0
    for table in images.rows():
        count += table.num_rows
        if count > FEW_IMAGES:
            return False
    return True


def thread_count() -> int:
    """As many as this process may use cores."""
    return min(MOST_THREADS, usable_cpus())


def run_parts(
    workers: Workers, feed: Feed, job: PartJob, *, done: Done, look: Look = lambda crew: None
) -> Iterator[PartReport]:
    """As `pool.run_parts`, with threads in place of actors. What ends the work, Ctrl-C too, lets
    the parts in work finish.
    """
    idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for _ in range(workers.most):
        idle.put(None)

    def do(number: int) -> PartReport:
        worker = idle.get()
        try:
            if worker is None:
                worker = workers.kind(workers.package, 1, "cpu")
            return worker.predict(replace(job, number=number))
        except MemoryError:
            raise PlainError(
                f"part {number} does not fit into memory; give --workers 1: then each image is"
                " decoded in a process of its own"
            ) from None
        finally:
            idle.put(worker)

    planned, running = False, set[Future[PartReport]]()
    with ThreadPoolExecutor(workers.most, thread_name_prefix="predict") as threads:
        while True:
            while not planned and len(running) < workers.most:
                try:
                    part = feed.next_part()
                except queue.Empty:
                    break
                planned = part is None
                if part is not None and not done(*part):
                    running.add(threads.submit(do, part[0]))
            if planned and not running:
                return
            look(Crew(len(running), 0))
            finished, running = wait(running, timeout=LOOK_S / 5, return_when=FIRST_COMPLETED)
            for one in finished:
                yield one.result()


def draw_overlays(
    jobs: Iterable[OverlayJob], *, number: int, cpus: float, look: Callable[[], None]
) -> Iterator[DrawnPart]:
    """As `pool.draw_overlays`, one after another."""
    for job in jobs:
        look()
        yield draw_part(job)
