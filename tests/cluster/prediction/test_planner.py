"""The plan is written while the workers work; of the list one part is in memory."""

from __future__ import annotations

import queue
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from cluster.errors import DataError
from cluster.prediction import plan as plans
from cluster.prediction.image_list import LISTED
from cluster.prediction.plan import OtherPrediction, Plan
from cluster.prediction.planner import Planner

BEGUN = Plan({"images": "/a"}, "digest")


def part(number: int, rows: int = 3) -> pa.Table:
    uris = [f"/{number}-{row}.jpg" for row in range(rows)]
    return pa.Table.from_pylist([{"uri": uri, "size": 5} for uri in uris], schema=LISTED)


def planner(folder: Path, parts: Callable[[], Iterator[pa.Table]], plan: Plan = BEGUN) -> Planner:
    return Planner(str(folder), plan, parts, lambda: {"a .txt file": 1})


def numbers(of: Planner) -> list[tuple[int, int]]:
    found = []
    while True:
        try:
            planned = of.next_part()
        except queue.Empty:
            time.sleep(0.001)
            continue
        if planned is None:
            return found
        found.append(planned)


def test_the_parts_and_the_finished_plan_are_written(tmp_path: Path) -> None:
    tables = [part(0), part(1, rows=2)]
    with planner(tmp_path, lambda: iter(tables)) as running:
        assert numbers(running) == [(0, 3), (1, 2)]
        assert running.next_part() is None and running.total == 5
    stored = plans.read_plan(str(tmp_path))
    assert stored == running.plan and stored is not None
    assert (stored.images, stored.passed_over) == (5, {"a .txt file": 1})
    assert [plans.read_part(str(tmp_path), number) for number in range(2)] == tables
    # A finished plan is not made again.
    with planner(tmp_path, lambda: pytest.fail("is read"), stored) as again:
        assert again.total == 5 and numbers(again) == [(0, 3), (1, 2)]


def test_a_plan_that_was_begun_goes_on_where_the_list_is_the_same(tmp_path: Path) -> None:
    plans.write_part(str(tmp_path), 0, part(0))
    with planner(tmp_path, lambda: iter([part(0), part(1)])) as running:
        assert numbers(running) == [(0, 3), (1, 3)]
    for changed in ([part(7), part(1)], [part(0)]):
        with planner(tmp_path, lambda: iter(changed)) as other:  # noqa: B023
            with pytest.raises(OtherPrediction, match="0.jpg is not there any more"):
                numbers(other)


def test_an_error_of_the_list_is_raised_in_the_driver_and_the_parts_before_it_stay(
    tmp_path: Path,
) -> None:
    def parts() -> Iterator[pa.Table]:
        yield part(0)
        raise DataError("list.csv: line 99 names no image")

    with planner(tmp_path, parts) as running, pytest.raises(DataError, match="line 99"):
        numbers(running)
    assert plans.find_part(str(tmp_path), 0) == part(0) and plans.read_plan(str(tmp_path)) is None


def test_of_a_long_list_few_parts_are_in_memory(tmp_path: Path) -> None:
    alive: list[weakref.ref[pa.Table]] = []
    most = 0

    def parts() -> Iterator[pa.Table]:
        nonlocal most
        for number in range(50):
            table = part(number)
            alive.append(weakref.ref(table))
            most = max(most, sum(each() is not None for each in alive))
            yield table
            del table

    with planner(tmp_path, parts) as running:
        assert len(numbers(running)) == 50
    assert most <= 2
