"""Who reads which rows when: every row exactly once an epoch, whatever fails and however many ranks there are."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.plan import Intervals, Row, advance, cut, epoch_sequence, size, steps, take, units

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
    # One step of 2: 2 3 | 5 10 | 11 12 are gone, 4 is left.
    assert advance(left, ranks=3, batch=2, done=1) == [(4, 5)]
    assert advance(left, ranks=3, batch=2, done=0) == left


@settings(deadline=None)
@given(positions(), st.integers(1, 9))
def test_cuts_share_what_is_left_evenly(left, ranks):
    shares = [cut(left, rank=rank, ranks=ranks) for rank in range(ranks)]
    assert [place for share in shares for place in places_of(share)] == places_of(left)
    sizes = [size(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1 and sizes == sorted(sizes, reverse=True)


@settings(deadline=None)
@given(positions(), st.integers(1, 9), st.integers(1, 7))
def test_all_ranks_make_the_same_steps_and_none_is_idle_for_a_whole_one_more_than_needed(left, ranks, batch):
    shares = [size(cut(left, rank=rank, ranks=ranks)) for rank in range(ranks)]
    count = steps(left, ranks=ranks, batch=batch)
    assert all(share <= count * batch for share in shares)
    assert count == 0 or max(shares) > (count - 1) * batch
    assert advance(left, ranks=ranks, batch=batch, done=count) == []


@settings(deadline=None)
@given(positions(), st.integers(1, 9), st.integers(1, 7), st.integers(0, 12))
def test_advance_takes_what_the_steps_read(left, ranks, batch, done):
    read = [place for rank in range(ranks) for place in places_of(cut(left, rank=rank, ranks=ranks))[: done * batch]]
    after = advance(left, ranks=ranks, batch=batch, done=done)
    assert sorted(read + places_of(after)) == places_of(left)
    # In normal form: sorted, disjoint, not touching, none empty; so that a position is written in one way only.
    assert all(low < high for low, high in after)
    assert all(before[1] < behind[0] for before, behind in itertools.pairwise(after))


@settings(deadline=None)
@given(
    GROUPS,
    st.integers(0, 99),
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(0, 4)), max_size=6),
    st.integers(1, 6),
    st.integers(1, 5),
)
def test_every_row_once_over_a_history_of_failures(rows_per_group, seed, attempts, last_ranks, last_batch):
    """Attempts are (ranks, batch, steps until a failure); the last one ends the epoch."""
    sequence = epoch_sequence(rows_per_group, seed=seed, epoch=0)
    left: Intervals = [(0, len(sequence))]
    seen: Counter[Row] = Counter()
    for ranks, batch, until in [*attempts, (last_ranks, last_batch, None)]:
        planned = steps(left, ranks=ranks, batch=batch)
        done = planned if until is None else min(until, planned)
        for rank in range(ranks):
            # A rank reads ahead, but what counts is what its steps have used.
            rows = [row for unit in units(sequence, cut(left, rank=rank, ranks=ranks), rows_per_unit=5) for row in unit.rows]
            seen.update(rows[: done * batch])
        left = advance(left, ranks=ranks, batch=batch, done=done)
    assert left == []
    assert seen == Counter(all_rows(rows_per_group))


@settings(deadline=None)
@given(GROUPS, positions(), st.integers(1, 20))
def test_units_are_the_share_in_order(rows_per_group, share, rows_per_unit):
    sequence = epoch_sequence(rows_per_group * 5, seed=0, epoch=0)
    found = units(sequence, share, rows_per_unit=rows_per_unit)
    assert [row for unit in found for row in unit.rows] == [sequence[place] for place in places_of(share) if place < len(sequence)]
    for unit in found:
        assert set(unit.groups) == {row.group for row in unit.rows} and list(unit.groups) == sorted(set(unit.groups))
        assert 0 < len(unit.rows) <= rows_per_unit


@pytest.mark.parametrize(("rows", "ranks", "batch"), [(1, 4, 2), (3, 4, 1), (11, 4, 2), (103, 2, 8), (0, 3, 2)])
def test_few_rows_and_many_ranks(rows, ranks, batch):
    # 103 rows on 2 ranks are 52 + 51 and 7 steps of 8 each (51 + 51 would lose one); 11 on 4 are 3 + 3 + 3 + 2; 1 on 4 gives three ranks fillers.
    left = [(0, rows)] if rows else []
    shares = [size(cut(left, rank=rank, ranks=ranks)) for rank in range(ranks)]
    assert sum(shares) == rows
    expected = {(1, 4, 2): 1, (3, 4, 1): 1, (11, 4, 2): 2, (103, 2, 8): 7, (0, 3, 2): 0}[rows, ranks, batch]
    assert steps(left, ranks=ranks, batch=batch) == expected
