"""Who reads which rows when: every row exactly once an epoch, whatever fails and however many ranks there are."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.plan import Intervals, Row, advance, arrange, batch_canvases, cut, epoch_sequence, rows_of, size, steps, take, units

GROUPS = st.lists(st.integers(1, 9), min_size=1, max_size=12)


@st.composite
def positions(draw: st.DrawFn) -> Intervals:
    """Any data position: sorted, disjoint, non-empty intervals, as failures and changes of the rank count leave them."""
    places = sorted(draw(st.sets(st.integers(0, 60), max_size=12)))
    return [(low, high) for low, high in zip(places[::2], places[1::2], strict=False)]


def places_of(left: Intervals) -> list[int]:
    return [place for low, high in left for place in range(low, high)]


def all_rows(rows_per_group: list[int]) -> list[Row]:
    return [Row(group, row) for group, count in enumerate(rows_per_group) for row in range(count)]


@settings(deadline=None)
@given(GROUPS, st.integers(0, 2**62), st.integers(0, 1000), st.integers(0, 5))
def test_an_epoch_is_all_rows_once(rows_per_group, seed, epoch, window):
    sequence = epoch_sequence(rows_per_group, seed=seed, epoch=epoch, window=window)
    assert sorted(sequence) == all_rows(rows_per_group)
    assert sequence == epoch_sequence(rows_per_group, seed=seed, epoch=epoch, window=window)


def test_the_order_changes_with_seed_and_epoch_and_with_nothing_else():
    groups = [8] * 12
    orders = [epoch_sequence(groups, seed=seed, epoch=epoch) for seed in range(3) for epoch in range(3)]
    assert len({tuple(order) for order in orders}) == 9
    # Neighbouring (seed, epoch) pairs are not each other's orders: (0, 1) is not (1, 0).
    assert epoch_sequence(groups, seed=0, epoch=1) != epoch_sequence(groups, seed=1, epoch=0)


def test_without_a_window_the_stored_order_is_kept():
    assert epoch_sequence([2, 1, 3], seed=5, epoch=7, window=0) == all_rows([2, 1, 3])


def test_a_window_mixes_its_groups_and_no_others():
    sequence = epoch_sequence([10] * 12, seed=1, epoch=0, window=4)
    groups = [{row.group for row in sequence[start : start + 40]} for start in (0, 40, 80)]
    assert [len(some) for some in groups] == [4, 4, 4] and set().union(*groups) == set(range(12))
    # Mixed: the first ten rows are not one group's.
    assert len({row.group for row in sequence[:10]}) > 1
    assert groups[0] != {0, 1, 2, 3}


def test_cuts_by_hand():
    left = [(2, 6), (10, 13)]
    # 7 places for 3 ranks: 3, 2, 2. Places 2 3 4 | 5 10 | 11 12.
    assert [cut(left, rank=rank, ranks=3) for rank in range(3)] == [[(2, 5)], [(5, 6), (10, 11)], [(11, 13)]]
    assert steps(left, ranks=3, batch=2) == 2  # ceil(3 / 2)
    assert take(left, 3, 6) == [(5, 6), (10, 12)]
    # In whole batches of 2 these are 4, for 3 ranks: 2, 1, 1. Places 2 3 4 5 | 10 11 | 12.
    assert [cut(left, rank=rank, ranks=3, batch=2) for rank in range(3)] == [[(2, 6)], [(10, 12)], [(12, 13)]]
    # One step of 2: 2 3 | 10 11 | 12 are gone, 4 5 are left.
    assert advance(left, ranks=3, batch=2, done=1) == [(4, 6)]
    assert advance(left, ranks=3, batch=2, done=0) == left


@settings(deadline=None)
@given(positions(), st.integers(1, 9), st.integers(1, 7))
def test_cuts_share_what_is_left_evenly_in_whole_batches(left, ranks, batch):
    shares = [cut(left, rank=rank, ranks=ranks, batch=batch) for rank in range(ranks)]
    assert [place for share in shares for place in places_of(share)] == places_of(left)
    sizes = [size(share) for share in shares]
    assert max(sizes) - min(sizes) <= 2 * batch - 1 and sizes == sorted(sizes, reverse=True)
    # Only the very last batch of all may be short.
    assert sum(count % batch > 0 for count in sizes) <= 1
    batches = [-(-count // batch) for count in sizes]
    assert max(batches) - min(batches) <= 1


@settings(deadline=None)
@given(positions(), st.integers(1, 9), st.integers(1, 7))
def test_all_ranks_make_the_same_steps_and_none_is_idle_for_a_whole_one_more_than_needed(left, ranks, batch):
    shares = [size(cut(left, rank=rank, ranks=ranks, batch=batch)) for rank in range(ranks)]
    count = steps(left, ranks=ranks, batch=batch)
    assert all(share <= count * batch for share in shares)
    assert count == 0 or max(shares) > (count - 1) * batch
    assert advance(left, ranks=ranks, batch=batch, done=count) == []


@settings(deadline=None)
@given(positions(), st.integers(1, 9), st.integers(1, 7), st.integers(0, 12))
def test_advance_takes_what_the_steps_read(left, ranks, batch, done):
    read = [place for rank in range(ranks) for place in places_of(cut(left, rank=rank, ranks=ranks, batch=batch))[: done * batch]]
    after = advance(left, ranks=ranks, batch=batch, done=done)
    assert sorted(read + places_of(after)) == places_of(left)
    # In normal form: sorted, disjoint, not touching, none empty; so that a position is written in one way only.
    assert all(low < high for low, high in after)
    assert all(before[1] < behind[0] for before, behind in itertools.pairwise(after))


def kinds_of(rows_per_group: list[int], canvases: int, seed: int) -> list[list[int]]:
    """For each row the number of the canvas it prefers; low numbers are more frequent."""
    random = np.random.default_rng(seed)
    return [[int(kind) for kind in (canvases * random.random(count) ** 2).astype(int)] for count in rows_per_group]


@settings(deadline=None)
@given(
    GROUPS,
    st.integers(1, 3),
    st.integers(0, 99),
    st.lists(st.tuples(st.sampled_from([1, 2, 3, 6]), st.integers(0, 4)), max_size=6),
    st.sampled_from([1, 2, 3, 6]),
)
def test_every_row_once_over_a_history_of_failures(rows_per_group, canvases, seed, attempts, last_ranks):
    """Attempts are (ranks, steps until a failure); the last one ends the epoch. The global batch is 6 whatever the ranks."""
    preferred = kinds_of(rows_per_group, canvases, seed)
    sequence = arrange(epoch_sequence(rows_per_group, seed=seed, epoch=0), preferred, run=6)
    left: Intervals = [(0, len(sequence))]
    seen: Counter[Row] = Counter()
    for ranks, until in [*attempts, (last_ranks, None)]:
        batch = 6 // ranks
        planned = steps(left, ranks=ranks, batch=batch)
        done = planned if until is None else min(until, planned)
        for rank in range(ranks):
            # A rank reads ahead, but what counts is what its steps have used.
            share = rows_of(sequence, cut(left, rank=rank, ranks=ranks, batch=batch))
            rows = [row for unit in units(share, rows_per_unit=5) for row in unit.rows]
            assert len(batch_canvases(rows, preferred, batch=batch)) <= planned
            seen.update(rows[: done * batch])
        left = advance(left, ranks=ranks, batch=batch, done=done)
    assert left == []
    assert seen == Counter(all_rows(rows_per_group))


@settings(deadline=None)
@given(GROUPS, st.integers(1, 3), st.integers(0, 99), st.integers(1, 5), st.integers(1, 4), st.integers(0, 5))
def test_whole_batches_prefer_one_canvas(rows_per_group, canvases, seed, ranks, batch, failed_after):
    preferred = kinds_of(rows_per_group * 3, canvases, seed)
    stored = epoch_sequence(rows_per_group * 3, seed=seed, epoch=1)
    run = ranks * batch
    sequence = arrange(stored, preferred, run=run)
    assert sorted(sequence) == sorted(stored)
    counts = Counter(preferred[row.group][row.row] for row in stored)
    # Runs that did not fill lie at the end, canvas by canvas.
    tail = sum(count % run for count in counts.values())
    assert tail <= canvases * (run - 1)
    left: Intervals = [(0, len(sequence))]
    # Also what a failure leaves is cut at the same borders, as long as the number of ranks stays.
    for start in (left, advance(left, ranks=ranks, batch=batch, done=failed_after)):
        mixed = 0
        for rank in range(ranks):
            share = cut(start, rank=rank, ranks=ranks, batch=batch)
            rows = rows_of(sequence, share)
            chosen = batch_canvases(rows, preferred, batch=batch)
            for i, canvas in enumerate(chosen):
                votes = [preferred[row.group][row.row] for row in rows[i * batch : (i + 1) * batch]]
                assert votes.count(canvas) == max(Counter(votes).values())
                if len(set(votes)) > 1:
                    mixed += 1
                    assert places_of(share)[min((i + 1) * batch, len(rows)) - 1] >= len(sequence) - tail
        # One border less than there are canvases.
        assert mixed <= canvases - 1


def test_arrangement_by_hand():
    rows = [Row(0, i) for i in range(8)]
    # Runs of 2: 0 2 fill canvas 0 at row 2, 1 3 canvas 1 at row 3, 5 6 canvas 1 at row 6; 4 of canvas 0 and 7 of canvas 2 are left.
    preferred = [[0, 1, 0, 1, 0, 1, 1, 2]]
    assert [row.row for row in arrange(rows, preferred, run=2)] == [0, 2, 1, 3, 5, 6, 4, 7]
    assert arrange(rows, [[0] * 8], run=3) == rows
    # 0 1 2 tie between 0, 0, 1: canvas 0; 3 4: one each, the first; 7 alone.
    assert batch_canvases(rows[:3], preferred, batch=3) == [0]
    assert batch_canvases([rows[3], rows[4]], preferred, batch=2) == [0]
    assert batch_canvases([rows[1], rows[3], rows[7]], preferred, batch=2) == [1, 2]


@settings(deadline=None)
@given(GROUPS, positions(), st.integers(1, 20))
def test_units_are_the_share_in_order(rows_per_group, share, rows_per_unit):
    sequence = epoch_sequence(rows_per_group * 5, seed=0, epoch=0)
    rows = rows_of(sequence, share)
    assert rows == [sequence[place] for place in places_of(share) if place < len(sequence)]
    found = units(rows, rows_per_unit=rows_per_unit)
    assert [row for unit in found for row in unit.rows] == rows
    for unit in found:
        assert set(unit.groups) == {row.group for row in unit.rows} and list(unit.groups) == sorted(set(unit.groups))
        assert 0 < len(unit.rows) <= rows_per_unit


@pytest.mark.parametrize(("rows", "ranks", "batch"), [(1, 4, 2), (3, 4, 1), (11, 4, 2), (103, 2, 8), (0, 3, 2)])
def test_few_rows_and_many_ranks(rows, ranks, batch):
    # 103 rows on 2 ranks are 56 + 47 and 7 steps of 8 each; 11 on 4 are 4 + 4 + 2 + 1; 1 on 4 gives three ranks fillers.
    left = [(0, rows)] if rows else []
    shares = [size(cut(left, rank=rank, ranks=ranks, batch=batch)) for rank in range(ranks)]
    assert (
        shares
        == {(1, 4, 2): [1, 0, 0, 0], (3, 4, 1): [1, 1, 1, 0], (11, 4, 2): [4, 4, 2, 1], (103, 2, 8): [56, 47], (0, 3, 2): [0] * 3}[rows, ranks, batch]
    )
    expected = {(1, 4, 2): 1, (3, 4, 1): 1, (11, 4, 2): 2, (103, 2, 8): 7, (0, 3, 2): 0}[rows, ranks, batch]
    assert steps(left, ranks=ranks, batch=batch) == expected
