"""Names the ranks that slow the others down, from the times that every rank reports."""

from __future__ import annotations

import statistics
import time

from cluster.runs.events import RankTiming

SLOW = 1.5
"""A rank is slow if its forward pass takes more than this many times the median."""
STARVED = 0.2
"""A rank is starved if it waits for data longer than this share of the interval."""
LEAST_WAIT_S = 1.0
"""Shorter waits are not reported, whatever their share."""
REPEAT_S = 600.0
"""The same ranks are named again after this many seconds."""


class Stragglers:
    """Compares the ranks' times of one interval once all have arrived. Each call returns lines that
    say which rank is slow and which waits for data.

    A rank is slow if its forward pass takes more than `SLOW` times the median in two intervals in a
    row: in a single one a busy neighbour may be the cause. Of two ranks the faster is the median.
    """

    def __init__(self, ranks: int):
        self._ranks = ranks
        self._arrived: dict[int, dict[int, RankTiming]] = {}
        self._slow_before: set[int] = set()
        self._named_at: dict[tuple[str, tuple[int, ...]], float] = {}

    def __call__(self, timing: RankTiming) -> list[str]:
        images = timing.images_seen
        self._arrived.setdefault(images, {})[timing.worker.rank] = timing
        if len(self._arrived[images]) < self._ranks:
            return []
        interval = self._arrived[images]
        # Every rank reports its intervals in order, so older incomplete ones stay incomplete.
        self._arrived = {
            later: timings for later, timings in self._arrived.items() if later > images
        }
        return [*self._starved(interval), *self._slow(interval)]

    def _starved(self, interval: dict[int, RankTiming]) -> list[str]:
        waiting = [
            rank
            for rank, timing in sorted(interval.items())
            if timing.data_seconds > max(STARVED * timing.seconds, LEAST_WAIT_S)
        ]
        if not waiting or self._named_lately("data", waiting):
            return []
        worst = max((interval[rank] for rank in waiting), key=lambda timing: timing.data_seconds)
        others = f" (and {len(waiting) - 1} more)" if len(waiting) > 1 else ""
        return [
            f"data stall: rank {worst.worker.rank} on {worst.worker.node} waited"
            f" {worst.data_seconds:.1f} of {worst.seconds:.1f} s for its data{others}; more"
            " training.decode_threads, or faster storage"
        ]

    def _slow(self, interval: dict[int, RankTiming]) -> list[str]:
        passes = {rank: timing.forward_seconds for rank, timing in interval.items()}
        median = statistics.median_low(passes.values())
        slow = {rank for rank in passes if passes[rank] > SLOW * median > 0}
        slow, self._slow_before = slow & self._slow_before, slow
        if not slow or self._named_lately("slow", sorted(slow)):
            return []
        slowest = sorted(slow, key=lambda rank: passes[rank], reverse=True)[:4]
        return [
            f"straggler: rank {rank} on {interval[rank].worker.node} takes {passes[rank]:.2f} s for"
            f" a forward pass, the median is {median:.2f} s; every step waits for it"
            for rank in slowest
        ]

    def _named_lately(self, reason: str, ranks: list[int]) -> bool:
        now, key = time.monotonic(), (reason, tuple(ranks))
        if now - self._named_at.get(key, -REPEAT_S) < REPEAT_S:
            return True
        self._named_at[key] = now
        return False
