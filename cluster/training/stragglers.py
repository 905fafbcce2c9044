"""Which ranks hold the others up, found in the driver from what each rank says of its own time."""

from __future__ import annotations

import statistics
import time
from typing import Any

SLOW = 1.5
"""Times the median forward pass."""
STARVED = 0.2
"""Share of the interval spent waiting for data."""
LEAST_WAIT_S = 1.0
"""Shorter waits are not worth a line, whatever their share."""
REPEAT_S = 600.0
"""The same ranks are named again after this long."""


class Stragglers:
    """Compares the ranks' `timing` events of one interval when all have come, and says in a line
    each who is slow and who waits for data.

    A rank is slow when its forward pass takes more than `SLOW` times the median, two intervals in a
    row: one alone may be a neighbour's doing. Of two ranks the faster is the median.
    """

    def __init__(self, ranks: int):
        self.ranks = ranks
        self.arrived: dict[int, dict[int, dict[str, Any]]] = {}
        self.slow_before: set[int] = set()
        self.said: dict[tuple[str, tuple[int, ...]], float] = {}

    def __call__(self, event: dict[str, Any]) -> list[str]:
        images = event["images_seen"]
        self.arrived.setdefault(images, {})[event["rank"]] = event
        if len(self.arrived[images]) < self.ranks:
            return []
        interval = self.arrived[images]
        # Ranks tell their intervals in order, so what is older stays incomplete.
        self.arrived = {later: events for later, events in self.arrived.items() if later > images}
        return [*self.starved(interval), *self.slow(interval)]

    def starved(self, interval: dict[int, dict[str, Any]]) -> list[str]:
        waits = {rank: event["data_seconds"] for rank, event in interval.items()}
        waiting = [
            rank
            for rank in sorted(waits)
            if waits[rank] > max(STARVED * interval[rank]["seconds"], LEAST_WAIT_S)
        ]
        if not waiting or self.lately("data", waiting):
            return []
        worst = max(waiting, key=waits.get)
        event, others = (
            interval[worst],
            f" (and {len(waiting) - 1} more)" if len(waiting) > 1 else "",
        )
        return [
            f"data stall: rank {worst} on {event['node']} waited {event['data_seconds']:.1f} of"
            f" {event['seconds']:.1f} s for its data{others}; more training.decode_threads, or"
            " faster storage"
        ]

    def slow(self, interval: dict[int, dict[str, Any]]) -> list[str]:
        passes = {rank: event["forward_seconds"] for rank, event in interval.items()}
        median = statistics.median_low(passes.values())
        slow = {rank for rank in passes if passes[rank] > SLOW * median > 0}
        slow, self.slow_before = slow & self.slow_before, slow
        if not slow or self.lately("slow", sorted(slow)):
            return []
        return [
            f"straggler: rank {rank} on {interval[rank]['node']} takes {passes[rank]:.2f} s for a"
            f" forward pass, the median is {median:.2f} s; every step waits for it"
            for rank in sorted(slow, key=passes.get, reverse=True)[:4]
        ]

    def lately(self, what: str, ranks: list[int]) -> bool:
        now, key = time.monotonic(), (what, tuple(ranks))
        if now - self.said.get(key, -REPEAT_S) < REPEAT_S:
            return True
        self.said[key] = now
        return False
