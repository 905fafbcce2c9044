from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from cluster.loading.prefetch import Ahead, in_order, ordered_map


def test_values_come_in_the_order_that_was_asked_for() -> None:
    arriving = iter([(1, "a"), (2, "b"), (3, "c"), (4, "d")])
    assert list(in_order([3, 1, 4, 2], arriving)) == ["c", "a", "d", "b"]
    assert list(in_order([], iter([]))) == []
    # Nothing is read before it is needed.
    arriving = iter([(1, "a"), (2, "b"), (3, "c")])
    assert next(in_order([2, 1, 3], arriving)) == "b" and next(arriving) == (3, "c")
    with pytest.raises(ValueError, match="5: arrived and was not asked for"):
        list(in_order([1], iter([(1, "a"), (5, "e")])))


def test_ordered_map_keeps_order_on_several_threads() -> None:
    assert list(ordered_map(lambda x: x * x, iter(range(50)), threads=3)) == [
        x * x for x in range(50)
    ]


def test_an_error_in_the_reading_thread_reaches_the_loop() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise OSError("the disk is gone")

    items = iter(Ahead(broken(), depth=2))
    assert next(items) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(items)


def test_leaving_early_stops_the_reading_thread() -> None:
    made: list[int] = []

    def endless() -> Iterator[int]:
        while True:
            made.append(1)
            yield 1

    with Ahead(endless(), depth=2) as items:
        next(iter(items))
    count = len(made)
    assert np.array_equal([len(made) for _ in range(1000)], [count] * 1000)


def test_threads_beside_the_model_work_alone_and_leave_the_model_its_own() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        beside = list(ordered_map(lambda _: torch.get_num_threads(), iter(range(8)), threads=2))
        with Ahead((torch.get_num_threads() for _ in range(3)), depth=1) as made:
            beside += list(made)
        assert (beside, torch.get_num_threads()) == ([1] * 11, 2)
    finally:
        torch.set_num_threads(before)
