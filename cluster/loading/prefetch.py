"""Threads that work ahead of the consumer and keep the order of the items."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from threadpoolctl import threadpool_limits

WHOLE_BATCHES_AHEAD = 2
"""Batches that are ready before the consumer asks for them."""


def in_order(keys: Iterable[Any], arriving: Iterator[tuple[Any, Any]]) -> Iterator[Any]:
    """The values in the order of `keys`, from (key, value) pairs that arrive in another order."""
    waiting: dict[Any, Any] = {}
    for key in keys:
        while key not in waiting:
            arrived, value = next(arriving)
            waiting[arrived] = value
        yield waiting.pop(key)
    # Read to the end, so that the generator closes its files.
    for arrived, _ in arriving:
        raise ValueError(f"{arrived}: arrived and was not asked for")


def ordered_map(
    function: Callable[[Any], Any], items: Iterator[Any], *, threads: int
) -> Iterator[Any]:
    """`map` on a few threads, in order, with at most four items per thread in progress."""
    with ThreadPoolExecutor(threads, initializer=_single_threaded) as pool:
        pending = []
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= 4 * threads:
                yield pending.pop(0).result()
        for future in pending:
            yield future.result()


def _single_threaded() -> None:
    """Run torch's operations of this thread in this thread alone. `torch.set_num_threads` would
    take the model's threads away too.

    OpenMP threads for a resize make more threads than cores, which then sleep at every barrier
    instead of spinning: a training step beside the stream took 12 % longer on the clock with the
    same CPU time (2 cores; 30,000 sleeps instead of 500 in 12 steps).
    """
    # The first call of `get_num_threads` sets the number of threads. After the limit below it would
    # undo the limit.
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
    """The items of an iterator, made by a thread that starts at once and stays up to `depth` items
    ahead. An error in the thread is raised in the consumer.
    """

    def __init__(self, items: Iterator[Any], *, depth: int):
        self._items = items
        self._ready: queue.Queue[tuple[Any, BaseException | None, bool]] = queue.Queue(depth)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True, name="stream")
        self._thread.start()

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the thread and drop the items it made."""
        self._stopped.set()
        self._thread.join(timeout=10)

    def __iter__(self) -> Iterator[Any]:
        while True:
            item, error, last = self._ready.get()
            if error is not None:
                raise error
            if last:
                return
            yield item

    def _work(self) -> None:
        _single_threaded()
        try:
            for item in self._items:
                self._put((item, None, False))
                if self._stopped.is_set():
                    # Close it here and not at garbage collection: it must release its source now.
                    if isinstance(self._items, Generator):
                        self._items.close()
                    return
            self._put((None, None, True))
        except BaseException as error:
            self._put((None, error, True))

    def _put(self, entry: tuple[Any, BaseException | None, bool]) -> None:
        while not self._stopped.is_set():
            try:
                return self._ready.put(entry, timeout=0.1)
            except queue.Full:
                continue
