"""Reads the list of images and writes the plan while the workers work already."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import pyarrow as pa

from cluster.prediction import plan as plans
from cluster.prediction.plan import Plan, PlannedPart


class Planner:
    """A thread that writes one part of the plan after another. Parts that an earlier run wrote must
    be the same.

    `next_part` gives their numbers; the thread needs memory for the numbers and for one part.
    """

    def __init__(
        self,
        output: str,
        plan: Plan,
        parts: Callable[[], Iterator[pa.Table]],
        passed_over: Callable[[], Mapping[str, int]],
    ):
        self.output, self.plan = output, plan
        self.total: int | None = plan.images
        """Images of all parts, as soon as it is known."""
        self._parts, self._passed_over = parts, passed_over
        self._ready: queue.SimpleQueue[tuple[int, int] | BaseException | None] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True, name="planner")

    def __enter__(self) -> Planner:
        if self.plan.parts is None:
            self._thread.start()
        else:
            for number, part in enumerate(self.plan.parts):
                self._ready.put((number, part.rows))
            self._ready.put(None)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=10)

    def next_part(self) -> tuple[int, int] | None:
        """(number, images) of the next part; None after the last one. `queue.Empty` where the plan
        is not so far yet. Errors of the thread are raised here.
        """
        found = self._ready.get_nowait()
        if isinstance(found, BaseException):
            raise found
        if found is None:
            self._ready.put(None)
        return found

    def _work(self) -> None:
        try:
            planned = []
            for number, part in enumerate(self._parts()):
                if self._stopped.is_set():
                    return
                former, digest = plans.find_part(self.output, number), plans.digest_of(part)
                if former is None:
                    plans.write_part(self.output, number, part)
                elif plans.digest_of(former) != digest:
                    plans.refuse_part(self.output, former, part)
                planned.append(PlannedPart(part.num_rows, digest))
                self._ready.put((number, part.num_rows))
            if (former := plans.find_part(self.output, len(planned))) is not None:
                plans.refuse_part(self.output, former, None)
            self.plan = replace(
                self.plan, parts=tuple(planned), passed_over=dict(self._passed_over())
            )
            plans.write_plan(self.output, self.plan)
            self.total = self.plan.images
            self._ready.put(None)
        except BaseException as error:
            self._ready.put(error)
