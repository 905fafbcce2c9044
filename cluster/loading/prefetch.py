"""Work ahead of its use: threads that keep the order of what they make."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from threadpoolctl import threadpool_limits


def in_order(keys: Iterable[Any], arriving: Iterator[tuple[Any, Any]]) -> Iterator[Any]:
    """The values of these keys, from (key, value) pairs of the same keys that arrive in another
    order.
    """
    waiting: dict[Any, Any] = {}
    for key in keys:
        while key not in waiting:
            found, value = next(arriving)
            waiting[found] = value
        yield waiting.pop(key)
    # Read to its end, so that whoever sends them closes what he has open.
    for found, _ in arriving:
        raise ValueError(f"{found}: arrived and was not asked for")


def ordered_map(
    function: Callable[[Any], Any], items: Iterator[Any], *, threads: int
) -> Iterator[Any]:
    """`map` on a few threads, in order, with at most four items a thread under way."""
    with ThreadPoolExecutor(threads, initializer=alone) as pool:
        pending = []
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= 4 * threads:
                yield pending.pop(0).result()
        for future in pending:
            yield future.result()


def alone() -> None:
    """Keep torch's operations in this thread to this thread; `torch.set_num_threads` would take the
    model's threads from it too.

    A team of threads for a resize makes more threads than cores, and OpenMP's then sleep at every
    barrier instead of spinning: a training step beside the stream took 12 % longer by the clock
    with the same CPU time (2 cores; 30,000 sleeps instead of 500 in 12 steps).
    """
    # The first question settles the number that the limit then replaces; asked later, it would
    # replace the limit.
    torch.get_num_threads()
    threadpool_limits(1, user_api="openmp")


def chunks(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    chunk: list[Any] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


class Ahead:
    """The same items, made by a thread that starts at once and stays up to `depth` ahead. An error
    in the thread is raised where they are used.
    """

    def __init__(self, items: Generator[Any], *, depth: int):
        self.items = items
        self.ready: queue.Queue = queue.Queue(maxsize=depth)
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.work, daemon=True, name="stream")
        self.thread.start()

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the thread; what it has made is dropped."""
        self.stopped.set()
        self.thread.join(timeout=10)

    def __iter__(self) -> Iterator[Any]:
        while True:
            item, error, last = self.ready.get()
            if error is not None:
                raise error
            if last:
                return
            yield item

    def work(self) -> None:
        alone()
        try:
            for item in self.items:
                self.put((item, None, False))
                if self.stopped.is_set():
                    # Here and not whenever it is collected: what it reads from is to be let go.
                    return self.items.close()
            self.put((None, None, True))
        except BaseException as error:
            self.put((None, error, True))

    def put(self, entry: tuple[Any, BaseException | None, bool]) -> None:
        while not self.stopped.is_set():
            try:
                return self.ready.put(entry, timeout=0.1)
            except queue.Full:
                continue


WHOLE_BATCHES_AHEAD = 2
