"""Every row is read exactly once per epoch, whatever fails and however many ranks there are."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.loading import epoch_plan
from cluster.loading.epoch_plan import (
    Intervals,
    advance,
    arrangement,
    batch_canvases,
    copies,
    copy_numbers,
    cut,
    epoch_sequence,
    evaluation_share,
    places_of,
    repeat_factors,
    size,
    split_batch,
    steps,
    take,
    units,
)
from cluster.shards.format import first_rows

GROUPS = st.lists(st.integers(1, 9), min_size=1, max_size=12)


@st.composite
def positions(draw: st.DrawFn) -> Intervals:
    """Any data position: sorted, disjoint, non-empty intervals, as failures and changes of the rank
    count leave them.
    """
    places = sorted(draw(st.sets(st.integers(0, 60), max_size=12)))
    return [(low, high) for low, high in zip(places[::2], places[1::2], strict=False)]


def group_of(rows: np.ndarray, rows_per_group: list[int]) -> np.ndarray:
    return np.repeat(np.arange(len(rows_per_group)), rows_per_group)[rows]


@settings(deadline=None)
@given(GROUPS, st.integers(0, 2**62), st.integers(0, 1000), st.integers(0, 5))
def test_an_epoch_is_all_rows_once(rows_per_group, seed, epoch, window):
    sequence = epoch_sequence(rows_per_group, seed=seed, epoch=epoch, window=window)
    assert sorted(sequence.tolist()) == list(range(sum(rows_per_group)))
    assert (sequence == epoch_sequence(rows_per_group, seed=seed, epoch=epoch, window=window)).all()


def test_the_order_changes_with_seed_and_epoch_and_with_nothing_else():
    groups = [8] * 12
    orders = [
        epoch_sequence(groups, seed=seed, epoch=epoch).tolist()
        for seed in range(3)
        for epoch in range(3)
    ]
    assert len({tuple(order) for order in orders}) == 9
    # Neighbouring (seed, epoch) pairs are not each other's orders: (0, 1) is not (1, 0).
    assert orders[1] != orders[3]


def test_orders_and_copies_stay_the_same_between_versions():
    """A run that the version before began is continued in the same sequence: another order would
    read some rows twice and others never. The numbers were computed by the version before.
    """
    sequence = epoch_sequence([2, 1, 3, 1, 2, 1], seed=7, epoch=3)
    assert sequence.tolist() == [6, 0, 3, 7, 5, 1, 4, 8, 9, 2]
    shares = np.array([1.0, 0.5, 0.25, 2.25])
    found = [copies(shares, total=6, seed=7, epoch=epoch).tolist() for epoch in range(2)]
    assert found == [[2, 1, 0, 3], [2, 0, 1, 3]]


def test_an_empty_set_has_an_empty_epoch_and_no_units():
    assert epoch_sequence([], seed=0, epoch=0).tolist() == []
    assert units(np.zeros(0, np.int64), []) == []


def test_a_unit_has_four_row_groups_by_default():
    first, second = units(np.arange(10), [2] * 5)
    assert first.groups == (0, 1, 2, 3) and second.groups == (4,)
    assert second.rows == ((0, 0), (0, 1))


def test_without_a_window_the_order_is_the_stored_one():
    assert epoch_sequence([2, 1, 3], seed=5, epoch=7, window=0).tolist() == [0, 1, 2, 3, 4, 5]


def test_a_window_shuffles_its_own_groups_alone():
    counts = [10] * 12
    sequence = epoch_sequence(counts, seed=1, epoch=0, window=4)
    groups = [set(group_of(sequence[start : start + 40], counts).tolist()) for start in (0, 40, 80)]
    assert [len(some) for some in groups] == [4, 4, 4] and set().union(*groups) == set(range(12))
    # Shuffled: the first ten rows come from several groups.
    assert len(set(group_of(sequence[:10], counts).tolist())) > 1
    assert groups[0] != {0, 1, 2, 3}


@pytest.mark.parametrize(("window", "least"), [(1, 0.0), (4, 0.7), (16, 0.9)])
def test_neighbours_in_the_stream_are_far_apart_in_the_shards(window, least):
    """The mean distance in the shards between two neighbours in the stream, relative to that of a
    full shuffle, which is N / 3.

    With four groups per window three neighbours of four come from different, random groups: 0.75.
    """
    counts = [32] * 256
    shares = []
    for epoch in range(4):
        sequence = epoch_sequence(counts, seed=0, epoch=epoch, window=window)
        shares.append(np.abs(np.diff(sequence)).mean() / (len(sequence) / 3))
    assert np.mean(shares) == pytest.approx(1 - 1 / window, abs=0.05) and np.mean(shares) >= least


SHARES = st.lists(st.floats(0.01, 100), min_size=1, max_size=40).map(np.array)


@settings(deadline=None)
@given(SHARES, st.integers(1, 200), st.integers(0, 2**62), st.integers(0, 1000))
def test_copies_follow_the_shares_and_sum_to_the_total(shares, total, seed, epoch):
    found = copies(shares, total=total, seed=seed, epoch=epoch)
    expected = shares / shares.sum() * total
    assert found.sum() == total
    assert (np.abs(found - expected) < 1 + 1e-9).all()
    assert (found == copies(shares, total=total, seed=seed, epoch=epoch)).all()


def test_an_offset_just_below_one_adds_no_copy(monkeypatch):
    # 1e5 + (1 - 2 ** -53) is 100001 in floating point.
    class Late:
        def random(self):
            return 1 - 2**-53

    monkeypatch.setattr(np.random, "default_rng", lambda seed: Late())
    found = copies(np.array([1.0, 2.0, 0.0]), total=10**5, seed=0, epoch=0)
    assert found.sum() == 10**5 and found.min() >= 0


def test_copies_are_right_on_average_over_the_epochs():
    shares = np.array([1.0, 0.5, 0.25, 2.25])
    mean = np.mean([copies(shares, total=4, seed=3, epoch=epoch) for epoch in range(4000)], axis=0)
    assert mean == pytest.approx(shares, abs=0.03)


def test_whole_numbers_of_copies_are_exact():
    for epoch in range(50):
        assert copies(np.array([1, 3, 1, 2]), total=7, seed=0, epoch=epoch).tolist() == [1, 3, 1, 2]


def test_rare_classes_repeat_their_images():
    # Class 0 is in 4 of 8 images, class 1 in 1, class 2 in none. sqrt(0.5 / (4/8)) = 1, sqrt(0.5 /
    # (1/8)) = 2.
    labels = [[0], [0, 0], [0], [0, 1], [], [], [], []]
    assert repeat_factors(labels, classes=3, threshold=0.5).tolist() == [1, 1, 1, 2, 1, 1, 1, 1]
    assert repeat_factors(labels, classes=3, threshold=0.001).tolist() == [1] * 8
    assert repeat_factors([[], []], classes=2, threshold=0.5).tolist() == [1, 1]


@settings(deadline=None)
@given(GROUPS, st.integers(0, 99), st.integers(0, 9))
def test_an_epoch_has_the_requested_copies_of_each_row(rows_per_group, seed, epoch):
    wanted = np.random.default_rng(seed).integers(0, 4, sum(rows_per_group))
    sequence = epoch_sequence(rows_per_group, seed=seed, epoch=epoch, copies_N=wanted)
    assert np.bincount(sequence, minlength=len(wanted)).tolist() == wanted.tolist()
    numbers: dict[int, int] = {}
    for row, number in zip(sequence.tolist(), copy_numbers(sequence).tolist(), strict=True):
        assert number == numbers.setdefault(row, 0)
        numbers[row] += 1


def test_a_global_batch_is_split_as_evenly_as_possible():
    assert split_batch(16, ranks=4) == [4, 4, 4, 4]
    assert split_batch(16, ranks=3) == [6, 5, 5]
    assert split_batch(3, ranks=3) == [1, 1, 1]


def test_cuts_by_hand():
    left = [(2, 6), (10, 13)]
    # 7 places for 3 ranks: 3, 2, 2. Places 2 3 4 | 5 10 | 11 12.
    assert [cut(left, rank=rank, batches=[1, 1, 1]) for rank in range(3)] == [
        [(2, 5)],
        [(5, 6), (10, 11)],
        [(11, 13)],
    ]
    assert steps(left, batches=[2, 2, 2]) == 2  # ceil(7 / 6)
    assert take(left, 3, 6) == [(5, 6), (10, 12)]
    # In whole batches of 2 that is 4 batches for 3 ranks: 2, 1, 1. Places 2 3 4 5 | 10 11 | 12.
    assert [cut(left, rank=rank, batches=[2, 2, 2]) for rank in range(3)] == [
        [(2, 6)],
        [(10, 12)],
        [(12, 13)],
    ]
    # One step of 2 reads 2 3 | 10 11 | 12; 4 5 remain.
    assert advance(left, batches=[2, 2, 2], done=1) == [(4, 6)]
    assert advance(left, batches=[2, 2, 2], done=0) == left
    # A global batch of 5 on 2 ranks: 3 and 2. The first step reads 5 places, the second the last
    # 2, which rank 0 has. Places 2 3 4 5 10 | 11 12.
    assert [cut(left, rank=rank, batches=[3, 2]) for rank in range(2)] == [
        [(2, 6), (10, 12)],
        [(12, 13)],
    ]
    assert steps(left, batches=[3, 2]) == 2
    assert advance(left, batches=[3, 2], done=1) == [(5, 6), (10, 12)]


BATCHES = st.one_of(
    st.tuples(st.integers(1, 9), st.integers(1, 7)).map(lambda pair: [pair[1]] * pair[0]),
    st.tuples(st.integers(1, 9), st.integers(0, 40)).map(
        lambda pair: split_batch(pair[0] + pair[1], ranks=pair[0])
    ),
)
"""Images of each rank's batch: all the same, or as even as a global batch can be split."""


@settings(deadline=None)
@given(positions(), BATCHES)
def test_cuts_are_even_in_whole_batches(left, batches):
    cuts = [cut(left, rank=rank, batches=batches) for rank in range(len(batches))]
    assert [place for share in cuts for place in places_of(share).tolist()] == places_of(
        left
    ).tolist()
    made = [-(-size(share) // images) for share, images in zip(cuts, batches, strict=True)]
    assert made == sorted(made, reverse=True)
    # The same number of batches, or one more. Where batch sizes differ, a rank may have one less
    # at the very end.
    assert max(made) - min(made) <= (1 if len(set(batches)) == 1 else 2)
    # Only the very last batch of all may be short.
    assert sum(size(share) % images > 0 for share, images in zip(cuts, batches, strict=True)) <= 1


@settings(deadline=None)
@given(positions(), BATCHES)
def test_all_ranks_make_the_same_number_of_steps_and_no_step_is_without_rows(left, batches):
    cuts = [size(cut(left, rank=rank, batches=batches)) for rank in range(len(batches))]
    count = steps(left, batches=batches)
    assert count == -(-size(left) // sum(batches))
    assert all(share <= count * images for share, images in zip(cuts, batches, strict=True))
    assert count == 0 or cuts[0] > (count - 1) * batches[0]
    assert advance(left, batches=batches, done=count) == []


@settings(deadline=None)
@given(positions(), BATCHES, st.integers(0, 12))
def test_advance_removes_what_the_steps_read(left, batches, done):
    read = [
        place
        for rank, images in enumerate(batches)
        for place in places_of(cut(left, rank=rank, batches=batches))[: done * images].tolist()
    ]
    after = advance(left, batches=batches, done=done)
    assert sorted(read + places_of(after).tolist()) == places_of(left).tolist()
    # Every step before the last two reads a whole global batch, so images seen grow by the same
    # number whatever the ranks.
    if done < steps(left, batches=batches) - 1:
        assert len(read) == done * sum(batches)
    # A position has one normal form: sorted, disjoint, not touching, none empty.
    assert all(low < high for low, high in after)
    assert all(before[1] < behind[0] for before, behind in itertools.pairwise(after))


def preferred_of(rows_per_group: list[int], canvases: int, seed: int) -> np.ndarray:
    """The number of the canvas that each row prefers; low numbers are more frequent."""
    return (canvases * np.random.default_rng(seed).random(sum(rows_per_group)) ** 2).astype(
        np.int64
    )


@settings(deadline=None)
@given(
    GROUPS,
    st.integers(1, 3),
    st.integers(0, 99),
    st.booleans(),
    st.lists(st.tuples(st.integers(1, 6), st.integers(0, 4)), max_size=6),
    st.integers(1, 6),
)
def test_every_row_has_its_copies_over_a_history_of_failures(
    rows_per_group, canvases, seed, weighted, attempts, last_ranks
):
    """Attempts are (ranks, steps until a failure); the last one ends the epoch. The global batch is
    6 whatever the ranks.
    """
    preferred = preferred_of(rows_per_group, canvases, seed)
    wanted = (
        np.random.default_rng(seed).integers(0, 3, len(preferred))
        if weighted
        else np.ones(len(preferred), np.int64)
    )
    stored = epoch_sequence(rows_per_group, seed=seed, epoch=0, copies_N=wanted)
    order = arrangement(preferred[stored], run=6)
    first = first_rows(rows_per_group)
    left: Intervals = [(0, len(order))] if len(order) else []
    seen: Counter[int] = Counter()
    for ranks, until in [*attempts, (last_ranks, None)]:
        batches = split_batch(6, ranks=ranks)
        planned = steps(left, batches=batches)
        done = planned if until is None else min(until, planned)
        for rank, batch in enumerate(batches):
            # A rank reads ahead; only the rows that its steps used count.
            rows = stored[order[places_of(cut(left, rank=rank, batches=batches))]]
            read = [
                int(first[unit.groups[group]]) + row
                for unit in units(rows, rows_per_group)
                for group, row in unit.rows
            ]
            assert read == rows.tolist()
            assert len(batch_canvases(preferred[rows], batch=batch)) <= planned
            seen.update(read[: done * batch])
        left = advance(left, batches=batches, done=done)
    assert left == []
    assert seen == Counter(dict(enumerate(wanted.tolist())))


@settings(deadline=None)
@given(
    GROUPS,
    st.integers(1, 3),
    st.integers(0, 99),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(0, 5),
)
def test_whole_batches_prefer_one_canvas(
    rows_per_group, canvases, seed, ranks, batch, failed_after
):
    preferred = preferred_of(rows_per_group * 3, canvases, seed)
    stored = epoch_sequence(rows_per_group * 3, seed=seed, epoch=1)
    run = ranks * batch
    order = arrangement(preferred[stored], run=run)
    assert sorted(order.tolist()) == list(range(len(stored)))
    arranged = preferred[stored[order]]
    # Places that fill no run come at the end, canvas by canvas.
    tail = sum(count % run for count in Counter(preferred.tolist()).values())
    assert tail <= canvases * (run - 1)
    left: Intervals = [(0, len(order))]
    # After a failure the rest is cut at the same borders, as long as the number of ranks stays.
    for start in (left, advance(left, batches=[batch] * ranks, done=failed_after)):
        mixed = 0
        for rank in range(ranks):
            share = places_of(cut(start, rank=rank, batches=[batch] * ranks))
            for i, canvas in enumerate(batch_canvases(arranged[share], batch=batch)):
                votes = arranged[share][i * batch : (i + 1) * batch].tolist()
                assert votes.count(canvas) == max(Counter(votes).values())
                if len(set(votes)) > 1:
                    mixed += 1
                    assert share[min((i + 1) * batch, len(share)) - 1] >= len(order) - tail
        # There is one border less than there are canvases.
        assert mixed <= canvases - 1


def test_arrangement_by_hand():
    # Runs of 2: places 0 2 fill a run of canvas 0 at place 2, 1 3 of canvas 1 at place 3, 5 6 of
    # canvas 1 at place 6. Place 4 of canvas 0 and 7 of canvas 2 remain.
    preferred = np.array([0, 1, 0, 1, 0, 1, 1, 2])
    assert arrangement(preferred, run=2).tolist() == [0, 2, 1, 3, 5, 6, 4, 7]
    assert arrangement(np.zeros(8, np.int64), run=3).tolist() == list(range(8))
    # Rows 0 1 2 prefer 0, 1, 0: canvas 0. Rows 3 4 tie: the lower number. Row 7 is alone.
    assert batch_canvases(preferred[:3], batch=3) == [0]
    assert batch_canvases(preferred[3:5], batch=2) == [0]
    assert batch_canvases(preferred[[1, 3, 7]], batch=2) == [1, 2]
    assert batch_canvases(preferred[:0], batch=2) == []


@settings(deadline=None)
@given(GROUPS, st.integers(1, 5), st.integers(1, 40))
def test_units_read_each_window_once(rows_per_group, window, copied_rows):
    counts = rows_per_group * 5
    sequence = epoch_sequence(counts, seed=0, epoch=0, window=window)
    first = first_rows(counts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epoch_plan, "COPIED_ROWS", copied_rows)
        found = units(sequence, counts, window=window)
    assert [
        int(first[unit.groups[group]]) + row for unit in found for group, row in unit.rows
    ] == sequence.tolist()
    for unit in found:
        assert {group for group, _ in unit.rows} == set(range(len(unit.groups))) and len(
            set(unit.groups)
        ) == len(unit.groups) <= window
        assert 0 < len(unit.rows) <= sum(counts[group] for group in unit.groups)
    if copied_rows >= 9 * window:
        # A unit is a whole window, so every row group is in one unit alone.
        assert sorted(group for unit in found for group in unit.groups) == list(range(len(counts)))


@pytest.mark.parametrize("rows_per_group", [[400] * 9, [32] * 40, [3000, 1, 700] * 3])
def test_large_row_groups_are_read_once(rows_per_group):
    found = units(epoch_sequence(rows_per_group, seed=0, epoch=0), rows_per_group)
    assert sorted(group for unit in found for group in unit.groups) == list(
        range(len(rows_per_group))
    )


def test_repeated_rows_do_not_exceed_the_limit_of_a_unit():
    """Eight groups of 32 rows, some of which occur 90 times. An image is in memory as often as it
    occurs.
    """
    counts = [32] * 8
    sequence = epoch_sequence(
        counts, seed=0, epoch=0, copies_N=np.where(np.arange(256) % 16, 1, 90)
    )
    assert max(len(unit.rows) for unit in units(sequence, counts)) == 512


@pytest.mark.parametrize(
    ("rows", "ranks", "batch"), [(1, 4, 2), (3, 4, 1), (11, 4, 2), (103, 2, 8), (0, 3, 2)]
)
def test_few_rows_and_many_ranks(rows, ranks, batch):
    # 103 rows on 2 ranks are 56 + 47 in 7 steps of 8; 11 rows on 4 ranks are 4 + 4 + 2 + 1; with 1
    # row on 4 ranks three ranks get fillers alone.
    left = [(0, rows)] if rows else []
    cuts = [size(cut(left, rank=rank, batches=[batch] * ranks)) for rank in range(ranks)]
    assert (
        cuts
        == {
            (1, 4, 2): [1, 0, 0, 0],
            (3, 4, 1): [1, 1, 1, 0],
            (11, 4, 2): [4, 4, 2, 1],
            (103, 2, 8): [56, 47],
            (0, 3, 2): [0] * 3,
        }[rows, ranks, batch]
    )
    expected = {(1, 4, 2): 1, (3, 4, 1): 1, (11, 4, 2): 2, (103, 2, 8): 7, (0, 3, 2): 0}[
        rows, ranks, batch
    ]
    assert steps(left, batches=[batch] * ranks) == expected


@given(st.lists(st.integers(0, 2), max_size=60), st.integers(1, 5), st.integers(1, 7))
def test_evaluation_batches_are_the_same_for_any_number_of_ranks(
    canvases: list[int], ranks: int, batch: int
) -> None:
    canvas_N = np.array(canvases, np.int64)

    def batches(ranks: int) -> list[list[int]]:
        """As `collate_by_canvas` fills them: the rows of one canvas in their order."""
        filled = []
        for rank in range(ranks):
            share = evaluation_share(canvas_N, rank=rank, ranks=ranks, batch=batch)
            for canvas in range(3):
                rows = share[canvas_N[share] == canvas].tolist()
                filled += [rows[start : start + batch] for start in range(0, len(rows), batch)]
        return sorted(filled)

    assert batches(ranks) == batches(1)
    assert sorted(row for rows in batches(ranks) for row in rows) == list(range(len(canvases)))


@pytest.mark.parametrize(("images", "ranks"), [(64, 4), (61, 4), (9, 2), (5, 3)])
def test_every_rank_evaluates_as_many_batches_as_the_others_or_one_more(
    images: int, ranks: int
) -> None:
    canvas_N = np.zeros(images, np.int64)
    shares = [
        len(evaluation_share(canvas_N, rank=rank, ranks=ranks, batch=1)) for rank in range(ranks)
    ]
    assert sum(shares) == images and max(shares) - min(shares) <= 1
