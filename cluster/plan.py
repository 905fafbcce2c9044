"""Who reads which rows when: pure integer arithmetic over (counts, seed, epoch, ranks, what is left). No Ray, no storage.

An epoch is a sequence of all rows: a seeded permutation of the row groups, dealt into windows of a few groups, rows mixed inside each window; then,
where the images prefer several canvases, arranged in runs that prefer one. The data position is the list of half-open intervals of that sequence
that are not yet consumed. Ranks read contiguous cuts of whole batches of what is left, so every row is read exactly once an epoch, whatever failed
and however the number of ranks changed on the way.
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


def arrange(sequence: Sequence[Row], preferred: Sequence[Sequence[int]], *, run: int) -> list[Row]:
    """The same rows in runs of `run` that prefer one canvas; where all prefer the same one, the same order.

    `preferred` has the number of a canvas for each row group and row. A row waits for the run of its canvas to fill; what has not filled one at the
    end comes last, canvas by canvas. With the global batch as `run`, which stays when the number of ranks changes, the whole batches of every rank's
    cut of a whole epoch prefer one canvas, up to the last (canvases x run) rows.
    """
    waiting: dict[int, list[Row]] = {}
    arranged: list[Row] = []
    for row in sequence:
        filling = waiting.setdefault(preferred[row.group][row.row], [])
        filling.append(row)
        if len(filling) == run:
            arranged += filling
            filling.clear()
    return arranged + [row for canvas in sorted(waiting) for row in waiting[canvas]]


def batch_canvases(rows: Sequence[Row], preferred: Sequence[Sequence[int]], *, batch: int) -> list[int]:
    """The canvas of each batch of a rank's rows: what most of its images prefer, the first of those that tie."""
    chosen = []
    for start in range(0, len(rows), batch):
        votes = [preferred[row.group][row.row] for row in rows[start : start + batch]]
        chosen.append(max(sorted(set(votes)), key=votes.count))
    return chosen


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


def cut(left: Intervals, *, rank: int, ranks: int, batch: int = 1) -> Intervals:
    """The contiguous share of one rank, in whole batches: shares differ by at most one batch, the first ranks have the longer ones."""
    batches = -(-size(left) // batch)
    return take(left, *(batch * (r * (batches // ranks) + min(r, batches % ranks)) for r in (rank, rank + 1)))


def steps(left: Intervals, *, ranks: int, batch: int) -> int:
    """Steps every rank makes to consume what is left: those of the longest share. Shorter shares end with fillers that carry no loss."""
    return -(-size(left) // (ranks * batch))


def advance(left: Intervals, *, ranks: int, batch: int, done: int) -> Intervals:
    """What is left after every rank has made `done` steps of `batch` rows over its cut of `left`."""
    remaining: Intervals = []
    for rank in range(ranks):
        share = cut(left, rank=rank, ranks=ranks, batch=batch)
        for low, high in take(share, done * batch, size(share)):
            if remaining and remaining[-1][1] == low:
                remaining[-1] = (remaining[-1][0], high)
            else:
                remaining.append((low, high))
    return remaining


def rows_of(sequence: Sequence[Row], share: Intervals) -> list[Row]:
    """The rows at these places of the sequence."""
    return [row for low, high in share for row in sequence[low:high]]


def units(rows: Sequence[Row], *, rows_per_unit: int = 64) -> list[Unit]:
    """Rows as read units in order. Neighbouring units of one window read the same row groups, so a unit should hold most of a window."""
    chunks = [tuple(rows[i : i + rows_per_unit]) for i in range(0, len(rows), rows_per_unit)]
    return [Unit(tuple(sorted({row.group for row in chunk})), chunk) for chunk in chunks]
