"""Who reads which rows when: pure integer arithmetic over (row counts, seed, epoch, ranks, data
position). No Ray, no storage.

A row is its number in stored order, 0..N-1. The sequence of an epoch is a list of row numbers: a
seeded permutation of the row groups, divided into windows of a few groups, with the rows of each
window shuffled. Each row occurs once or, where rows are weighted, as often as its share says. Where
images prefer several canvases, the sequence is then arranged in runs of one preferred canvas.

A place is a position in the sequence. The data position is the list of half-open intervals of
places that no step has consumed yet. The ranks read contiguous cuts of it, in whole batches, so
every place is read exactly once per epoch, whatever fails and however the number of ranks changes.
Ranks may have batches of different sizes, so a global batch of 16 stays one on 3 ranks.

Shapes: N rows of the set, L places of an epoch (N unless rows are weighted), R row groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cluster.shards.format import first_rows

WINDOW = 4
"""Row groups that are read together and shuffled."""
COPIED_ROWS = 512
"""Most rows of a unit where an epoch repeats rows; otherwise its row groups are the limit."""
Intervals = list[tuple[int, int]]
"""Sorted, disjoint, half-open [start, stop) ranges of places in the epoch's sequence."""


class Unit(NamedTuple):
    """The work of one read task: rows of a few row groups, in output order."""

    groups: tuple[int, ...]
    """Numbers of row groups in the whole set."""
    rows: tuple[tuple[int, int], ...]
    """(index into `groups`, row inside that group)."""


def epoch_sequence(
    rows_per_group: Sequence[int],
    *,
    seed: int,
    epoch: int,
    window: int = WINDOW,
    copies_N: np.ndarray | None = None,
) -> np.ndarray:
    """int64 (L,): row numbers in the reading order of this epoch, which depends on (seed, epoch)
    alone.

    `window` row groups are shuffled together; `window` 0 keeps the stored order (evaluation).
    `copies_N` is how often each row occurs, once by default. The copies of a row are in one window,
    so it is fetched once.
    """
    first = first_rows(rows_per_group)
    if window == 0:
        return np.arange(first[-1])
    random = np.random.default_rng((seed, epoch))
    groups = random.permutation(len(rows_per_group))
    windows = []
    for start in range(0, len(groups), window):
        together = groups[start : start + window].tolist()
        rows = np.concatenate(
            [np.arange(int(first[group]), int(first[group + 1])) for group in together]
        )
        if copies_N is not None:
            rows = rows.repeat(copies_N[rows])
        windows.append(rows[random.permutation(len(rows))])
    return np.concatenate(windows) if windows else np.zeros(0, np.int64)


def copies(shares_N: np.ndarray, *, total: int, seed: int, epoch: int) -> np.ndarray:
    """int64 (N,): how often each row occurs in this epoch, in proportion to its share. The counts
    of every epoch sum to `total`.

    Systematic sampling: the shares are segments of a line of length `total`, and a row occurs once
    for every point of a grid of spacing 1 with a random offset that lies in its segment. So a row
    with the expected count c occurs floor(c) or ceil(c) times, and c times on average over epochs.
    """
    ends = np.cumsum(shares_N, dtype=np.float64)
    offset = np.random.default_rng((seed, epoch, 1)).random()
    points = np.floor(np.concatenate([[0.0], ends / ends[-1] * total]) + offset)
    # Rounding must not change the number of points before the end of the line.
    points[-1] = total
    return np.diff(points.clip(max=total)).astype(np.int64)


def repeat_factors(
    labels: Sequence[Sequence[int]], *, classes: int, threshold: float
) -> np.ndarray:
    """float64 (N,): how often each image should occur so that rare classes are seen; `labels` are
    those of the objects in each image, 0..K-1.

    Gupta et al., LVIS (2019), section 5.2: r = max over its classes of max(1, sqrt(threshold / f)),
    where f is the share of images with the class. An image without objects has r = 1.
    """
    present = [np.unique(np.asarray(image, np.int64)) for image in labels]
    counts = np.bincount(np.concatenate([*present, np.zeros(0, np.int64)]), minlength=classes)
    factors_K = np.maximum(1.0, np.sqrt(threshold * len(labels) / np.maximum(counts, 1)))
    return np.array([factors_K[image].max() if len(image) else 1.0 for image in present])


def copy_numbers(sequence_L: np.ndarray) -> np.ndarray:
    """int64 (L,): 0 where a row occurs for the first time in the sequence, 1 for the second time,
    and so on.
    """
    order = np.argsort(sequence_L, kind="stable")
    ordered = sequence_L[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=-1))
    numbers = np.empty(len(sequence_L), np.int64)
    numbers[order] = np.arange(len(ordered)) - np.repeat(
        starts, np.diff(starts, append=len(ordered))
    )
    return numbers


def arrangement(canvas_L: np.ndarray, *, run: int) -> np.ndarray:
    """int64 (L,): the places of the sequence, reordered into runs of `run` places that prefer one
    canvas; 0, 1, 2, ... where all prefer the same.

    `canvas_L` is the number of the canvas that the row at each place prefers. A run comes where its
    last place was; places that fill no run come last, canvas by canvas. With the global batch as
    `run`, which stays when the number of ranks changes, the whole batches of every rank's cut of a
    whole epoch prefer one canvas, except in the last (canvases x run) rows.
    """
    count = len(canvas_L)
    # Of each place: the last place of its run, or a number behind all places.
    sort_key = np.empty(count, np.int64)
    for canvas in np.unique(canvas_L):
        places = np.flatnonzero(canvas_L == canvas)
        whole = len(places) // run * run
        sort_key[places[:whole]] = np.repeat(places[run - 1 : whole : run], run)
        sort_key[places[whole:]] = count + canvas
    return np.argsort(sort_key, kind="stable")


def batch_canvases(canvas: np.ndarray, *, batch: int) -> list[int]:
    """The canvas of each batch of a rank's rows: the one that most of its images prefer, on a tie
    the one with the lowest number. `canvas` is the preferred canvas of each row.
    """
    return [
        int(np.bincount(canvas[start : start + batch]).argmax())
        for start in range(0, len(canvas), batch)
    ]


def size(position: Intervals) -> int:
    """The number of places."""
    return sum(stop - start for start, stop in position)


def take(position: Intervals, start: int, stop: int) -> Intervals:
    """The places number `start` to `stop` of `position`, counted over all its intervals."""
    taken, offset = [], 0
    for low, high in position:
        first, last = max(start - offset, 0), min(stop - offset, high - low)
        if first < last:
            taken.append((low + first, low + last))
        offset += high - low
    return taken


def split_batch(batch: int, *, ranks: int) -> list[int]:
    """Images of each rank's part of a global batch, as even as possible, larger parts first: 16 on
    3 ranks are 6, 5, 5.
    """
    return [batch // ranks + (rank < batch % ranks) for rank in range(ranks)]


def _borders(count: int, batches: Sequence[int]) -> list[int]:
    """Where the cuts of `count` places begin and end; `batches` are the images of each rank's
    batch. Every rank gets the same number of whole batches, the first ranks one more. Only the last
    batch of all may be short.
    """
    # The number of steps before the last one, and the places of the last step minus one. Without
    # places it is -1 step and a whole step minus one.
    steps, rest = divmod(count - 1, sum(batches))
    ends, before = [0], 0
    for images in batches:
        ends.append(min(ends[-1] + images * (steps + (rest >= before)), count))
        before += images
    return ends


def cut(position: Intervals, *, rank: int, batches: Sequence[int]) -> Intervals:
    """The contiguous share of one rank in the places that are left; `batches` are the images of
    each rank's batch.
    """
    start, stop = _borders(size(position), batches)[rank : rank + 2]
    return take(position, start, stop)


def evaluation_share(canvas_N: np.ndarray, *, rank: int, ranks: int, batch: int) -> np.ndarray:
    """int64: one rank's rows of a whole set, in stored order; `canvas_N` is the number of the
    canvas that each row prefers.

    The set is first divided into batches of one canvas. Each rank gets whole batches, so the
    batches are the same for any number of ranks.
    """
    of_canvas = [np.flatnonzero(canvas_N == canvas) for canvas in np.unique(canvas_N)]
    batches = [
        rows[start : start + batch] for rows in of_canvas for start in range(0, len(rows), batch)
    ]
    batches.sort(key=lambda rows: rows[0])
    first, stop = (len(batches) * r // ranks for r in (rank, rank + 1))
    return np.sort(np.concatenate([np.zeros(0, np.int64), *batches[first:stop]]))


def steps(position: Intervals, *, batches: Sequence[int]) -> int:
    """Steps that every rank makes to consume all places: those of the longest share. Shorter shares
    end with fillers, which have no loss.
    """
    return -(-size(position) // sum(batches))


def advance(position: Intervals, *, batches: Sequence[int], done: int) -> Intervals:
    """The data position after every rank has made `done` steps over its cut of `position`."""
    remaining: Intervals = []
    for rank, images in enumerate(batches):
        share = cut(position, rank=rank, batches=batches)
        for low, high in take(share, done * images, size(share)):
            if remaining and remaining[-1][1] == low:
                remaining[-1] = (remaining[-1][0], high)
            else:
                remaining.append((low, high))
    return remaining


def places_of(share: Intervals) -> np.ndarray:
    """int64: the single places."""
    return np.concatenate([np.zeros(0, np.int64), *(np.arange(low, high) for low, high in share)])


def units(
    rows: np.ndarray,
    rows_per_group: Sequence[int],
    *,
    window: int = WINDOW,
) -> list[Unit]:
    """Row numbers divided into read units, in order. A unit has rows of at most `window` groups. It
    has at most as many rows as these groups, or `COPIED_ROWS` where that is more.

    So in an epoch's sequence a unit is a window, and a row group is read once, by the rank that has
    its window.
    """
    first = first_rows(rows_per_group)
    groups = np.searchsorted(first, rows, side="right") - 1
    inside = rows - first[groups]
    finished: list[Unit] = []
    # Of the current unit: the index of each row group, the rows, and the rows of its row groups.
    index_of: dict[int, int] = {}
    picked: list[tuple[int, int]] = []
    room = 0
    for group, row in zip(groups.tolist(), inside.tolist(), strict=True):
        full = len(picked) >= max(room, COPIED_ROWS)
        if picked and (full or (group not in index_of and len(index_of) == window)):
            finished.append(Unit(tuple(index_of), tuple(picked)))
            index_of, picked, room = {}, [], 0
        if group not in index_of:
            index_of[group] = len(index_of)
            room += rows_per_group[group]
        picked.append((index_of[group], row))
    return [*finished, Unit(tuple(index_of), tuple(picked))] if picked else finished
