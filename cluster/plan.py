"""Who reads which rows when: pure integer arithmetic over (counts, seed, epoch, ranks, what is left). No Ray, no storage.

An epoch is a sequence of all rows: a seeded permutation of the row groups, dealt into windows of a few groups, rows mixed inside each window. The
data
position is the list of half-open intervals of that sequence that are not yet consumed. Ranks read contiguous cuts of what is left, so every row is
read
exactly once an epoch, whatever failed and however the number of ranks changed on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

READ_CPUS = 0.25
"""CPUs that a read task books: it waits for storage most of its time."""

Intervals = list[tuple[int, int]]
"""Sorted, disjoint, half-open [start, stop) ranges of places in the epoch's sequence."""


class Row(NamedTuple):
    group: int
    """Number of the row group in the whole shard set."""
    row: int
    """Place inside the row group."""


class Unit(NamedTuple):
    """What one read task fetches: rows of a few row groups, in the order in which they are to come out."""

    groups: tuple[int, ...]
    rows: tuple[Row, ...]


def epoch_sequence(rows_per_group: Sequence[int], *, seed: int, epoch: int, window: int = 4) -> list[Row]:
    """All rows in the reading order of this epoch, which depends on (seed, epoch) alone.

    A window of `window` row groups is read together and mixed; `window` 0 keeps the stored order (evaluation).
    """
    if window == 0:
        return [Row(g, r) for g, count in enumerate(rows_per_group) for r in range(count)]
    random = np.random.default_rng((seed, epoch))
    groups = random.permutation(len(rows_per_group))
    sequence: list[Row] = []
    for start in range(0, len(groups), window):
        rows = [Row(int(g), r) for g in groups[start : start + window] for r in range(rows_per_group[g])]
        sequence += [rows[i] for i in random.permutation(len(rows))]
    return sequence


def size(left: Intervals) -> int:
    return sum(stop - start for start, stop in left)


def take(left: Intervals, start: int, stop: int) -> Intervals:
    """The part of `left` between its `start`-th and `stop`-th place, counted over the intervals laid end to end."""
    taken, offset = [], 0
    for low, high in left:
        first, last = max(start - offset, 0), min(stop - offset, high - low)
        if first < last:
            taken.append((low + first, low + last))
        offset += high - low
    return taken


def cut(left: Intervals, *, rank: int, ranks: int) -> Intervals:
    """The contiguous share of one rank; shares differ by at most one row, the first ranks have the longer ones."""
    total = size(left)
    return take(left, *(r * (total // ranks) + min(r, total % ranks) for r in (rank, rank + 1)))


def steps(left: Intervals, *, ranks: int, batch: int) -> int:
    """Steps every rank makes to consume what is left: those of the longest share. Shorter shares end with fillers that carry no loss."""
    longest = -(-size(left) // ranks)
    return -(-longest // batch)


def advance(left: Intervals, *, ranks: int, batch: int, done: int) -> Intervals:
    """What is left after every rank has made `done` steps of `batch` rows over its cut of `left`."""
    remaining: Intervals = []
    for rank in range(ranks):
        share = cut(left, rank=rank, ranks=ranks)
        for low, high in take(share, done * batch, size(share)):
            if remaining and remaining[-1][1] == low:
                remaining[-1] = (remaining[-1][0], high)
            else:
                remaining.append((low, high))
    return remaining


def units(sequence: Sequence[Row], share: Intervals, *, rows_per_unit: int = 64) -> list[Unit]:
    """A rank's share as read units in order. Neighbouring units of one window read the same row groups, so a unit should hold most of a window."""
    rows = [row for low, high in share for row in sequence[low:high]]
    chunks = [rows[i : i + rows_per_unit] for i in range(0, len(rows), rows_per_unit)]
    return [Unit(tuple(sorted({row.group for row in chunk})), tuple(chunk)) for chunk in chunks]
