"""Who reads which rows when: pure integer arithmetic over (counts, seed, epoch, ranks, what is
left). No Ray, no storage.

A row is called by its number in stored order, 0..N-1. An epoch is a sequence of row numbers: a
seeded permutation of the row groups, dealt into windows of a few groups, rows mixed inside each
window, each row once or, where rows are weighted, as often as its share says; then, where the
images prefer several canvases, arranged in runs that prefer one. The data position is the list of
half-open intervals of places in that sequence that are not yet consumed. Ranks read contiguous cuts
of whole batches of what is left, so every place is read exactly once an epoch, whatever failed and
however the number of ranks changed on the way. Ranks may take batches of different sizes, so that a
global batch of 16 is one on 3 ranks too.

Shapes: N rows of the set, L places of an epoch (N unless rows are weighted), R row groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cluster.shards.format import first_rows

WINDOW = 4
"""Row groups that are read together and mixed."""
COPIED_ROWS = 512
"""Rows of a unit at the most where an epoch repeats some; without repeats its row groups bound it."""
Intervals = list[tuple[int, int]]
"""Sorted, disjoint, half-open [start, stop) ranges of places in the epoch's sequence."""


class Unit(NamedTuple):
    """What one read task fetches: rows of a few row groups, in the order in which they are to come
    out.
    """

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

    A window of `window` row groups is read together and mixed; `window` 0 keeps the stored order
    (evaluation). `copies_N` says how often each row occurs, else once; copies of a row are in one
    window, so that it is fetched once.
    """
    first = first_rows(rows_per_group)
    if window == 0:
        return np.arange(first[-1])
    random = np.random.default_rng((seed, epoch))
    groups = random.permutation(len(rows_per_group))
    windows = []
    for start in range(0, len(groups), window):
        rows = np.concatenate(
            [np.arange(first[group], first[group + 1]) for group in groups[start : start + window]]
        )
        if copies_N is not None:
            rows = rows.repeat(copies_N[rows])
        windows.append(rows[random.permutation(len(rows))])
    return np.concatenate(windows) if windows else np.zeros(0, np.int64)


def copies(shares_N: np.ndarray, *, total: int, seed: int, epoch: int) -> np.ndarray:
    """int64 (N,): how often each row occurs in this epoch: in proportion to its share, `total`
    times in all, in every epoch.

    Systematic sampling: the shares are laid end to end and a comb of `total` teeth with a random
    offset is put over them. So a row of the expected count c occurs floor(c) or ceil(c) times, c on
    average over the epochs.
    """
    ends = np.cumsum(shares_N, dtype=np.float64)
    offset = np.random.default_rng((seed, epoch, 1)).random()
    teeth = np.floor(np.concatenate([[0.0], ends / ends[-1] * total]) + offset)
    # The last end is exactly `total`, whatever the sum was rounded to.
    teeth[-1] = total
    return np.diff(teeth.clip(max=total)).astype(np.int64)


def repeat_factors(
    labels: Sequence[Sequence[int]], *, classes: int, threshold: float
) -> np.ndarray:
    """float64 (N,): how often an image should occur so that rare classes are seen; `labels` are
    those of its objects, 0..K-1.

    Gupta et al., LVIS (2019), section 5.2: r = max over its classes of max(1, sqrt(threshold / f)),
    f being the share of the images with the class. An image without objects has 1.
    """
    present = [np.unique(np.asarray(image, np.int64)) for image in labels]
    counts = np.bincount(np.concatenate([*present, np.zeros(0, np.int64)]), minlength=classes)
    factors_K = np.maximum(1.0, np.sqrt(threshold * len(labels) / np.maximum(counts, 1)))
    return np.array([factors_K[image].max() if len(image) else 1.0 for image in present])


def copy_numbers(sequence_L: np.ndarray) -> np.ndarray:
    """int64 (L,): 0 where a row occurs for the first time in the sequence, 1 where for the second
    time, ...
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
    """int64 (L,): the places of the epoch's sequence in the order of runs of `run` that prefer one
    canvas; 0, 1, 2, ... where all do.

    `canvas_L` is the number of the canvas that the row at each place prefers. A row waits for the
    run of its canvas to fill; what has not filled one at the end comes last, canvas by canvas. With
    the global batch as `run`, which stays when the number of ranks changes, the whole batches of
    every rank's cut of a whole epoch prefer one canvas, up to the last (canvases x run) rows.
    """
    count = len(canvas_L)
    # The place at which its run is full, or behind everything else.
    filled = np.empty(count, np.int64)
    for canvas in np.unique(canvas_L):
        places = np.flatnonzero(canvas_L == canvas)
        whole = len(places) // run * run
        filled[places[:whole]] = np.repeat(places[run - 1 : whole : run], run)
        filled[places[whole:]] = count + canvas
    return np.argsort(filled, kind="stable")


def batch_canvases(canvas: np.ndarray, *, batch: int) -> list[int]:
    """The canvas of each batch of a rank's rows, whose preferred canvases are given: what most of
    its images prefer, the first of those that tie.
    """
    return [
        int(np.bincount(canvas[start : start + batch]).argmax())
        for start in range(0, len(canvas), batch)
    ]


def size(left: Intervals) -> int:
    return sum(stop - start for start, stop in left)


def take(left: Intervals, start: int, stop: int) -> Intervals:
    """The part of `left` between its `start`-th and `stop`-th place, counted over the intervals
    laid end to end.
    """
    taken, offset = [], 0
    for low, high in left:
        first, last = max(start - offset, 0), min(stop - offset, high - low)
        if first < last:
            taken.append((low + first, low + last))
        offset += high - low
    return taken


def split_batch(batch: int, *, ranks: int) -> list[int]:
    """Images of each rank's part of a global batch: as even as whole images allow, the larger parts
    first; 16 on 3 ranks are 6, 5, 5.
    """
    return [batch // ranks + (rank < batch % ranks) for rank in range(ranks)]


def borders(count: int, batches: Sequence[int]) -> list[int]:
    """Where the cuts of `count` places begin and end, of ranks whose batches hold these many
    images: in whole batches, the same number of them on every rank or, on the first ranks, one
    more; what the last of them is short of lies at the end.
    """
    # The places before the last step of all, and those of that step but one; -1 and a whole step
    # but one where there is nothing.
    steps, rest = divmod(count - 1, sum(batches))
    ends, before = [0], 0
    for images in batches:
        ends.append(min(ends[-1] + images * (steps + (rest >= before)), count))
        before += images
    return ends


def cut(left: Intervals, *, rank: int, batches: Sequence[int]) -> Intervals:
    """The contiguous share of one rank, see `borders`; `batches` are the images of every rank's
    batch.
    """
    return take(left, *borders(size(left), batches)[rank : rank + 2])


def evaluation_share(canvas_N: np.ndarray, *, rank: int, ranks: int, batch: int) -> np.ndarray:
    """int64: one rank's rows of a whole set, in stored order; `canvas_N` is the number of the
    canvas that each row prefers.

    The set is dealt into batches of one canvas first, and ranks share these out whole, so the
    batches are the same ones for any number of ranks.
    """
    of_canvas = [np.flatnonzero(canvas_N == canvas) for canvas in np.unique(canvas_N)]
    batches = [
        rows[start : start + batch] for rows in of_canvas for start in range(0, len(rows), batch)
    ]
    batches.sort(key=lambda rows: rows[0])
    first, stop = (len(batches) * r // ranks for r in (rank, rank + 1))
    return np.sort(np.concatenate([np.zeros(0, np.int64), *batches[first:stop]]))


def steps(left: Intervals, *, batches: Sequence[int]) -> int:
    """Steps every rank makes to consume what is left: those of the longest share. Shorter shares
    end with fillers that carry no loss.
    """
    return -(-size(left) // sum(batches))


def advance(left: Intervals, *, batches: Sequence[int], done: int) -> Intervals:
    """What is left after every rank has made `done` steps of its batch over its cut of `left`."""
    remaining: Intervals = []
    for rank, images in enumerate(batches):
        share = cut(left, rank=rank, batches=batches)
        for low, high in take(share, done * images, size(share)):
            if remaining and remaining[-1][1] == low:
                remaining[-1] = (remaining[-1][0], high)
            else:
                remaining.append((low, high))
    return remaining


def places_of(share: Intervals) -> np.ndarray:
    """int64: the places, one by one."""
    return np.concatenate([np.zeros(0, np.int64), *(np.arange(low, high) for low, high in share)])


def units(
    rows: np.ndarray,
    rows_per_group: Sequence[int],
    *,
    window: int = WINDOW,
    most_rows: int | None = None,
) -> list[Unit]:
    """Rows, by number, as read units in order: each as long as its rows come from at most `window`
    row groups and are at most `most_rows`.

    Without `most_rows` they are no more than its row groups hold, or than `COPIED_ROWS` where rows
    are repeated. So in an epoch's sequence a unit is a window, and a row group is read once by the
    rank to which its window falls.
    """
    first = first_rows(rows_per_group)
    groups = np.searchsorted(first, rows, side="right") - 1
    inside = rows - first[groups]
    found: list[Unit] = []
    held: dict[int, int] = {}
    picked: list[tuple[int, int]] = []
    room = 0
    for group, row in zip(groups.tolist(), inside.tolist(), strict=True):
        full = len(picked) >= (max(room, COPIED_ROWS) if most_rows is None else most_rows)
        if picked and (full or (group not in held and len(held) == window)):
            found.append(Unit(tuple(held), tuple(picked)))
            held, picked, room = {}, [], 0
        if group not in held:
            held[group] = len(held)
            room += rows_per_group[group]
        picked.append((held[group], row))
    return [*found, Unit(tuple(held), tuple(picked))] if picked else found
