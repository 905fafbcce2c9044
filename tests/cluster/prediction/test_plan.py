"""The parts of a plan depend on the list alone, and hold every image once."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import DataError
from cluster.prediction import plan as plans
from cluster.prediction.image_list import LISTED


def listed(sizes: list[int | None]) -> pa.Table:
    names = [f"/{number}.jpg" for number in range(len(sizes))]
    columns = {"uri": names, "image_id": None, "size": sizes, "changed": None}
    rows = [{**columns, "uri": name, "size": size} for name, size in zip(names, sizes, strict=True)]
    return pa.Table.from_pylist(rows, schema=LISTED)


SIZES = st.lists(st.one_of(st.none(), st.integers(0, plans.PART_BYTES // 3)), min_size=1)


@settings(deadline=None)
@given(st.one_of(SIZES, st.integers(1, 900).map(lambda count: [10] * count)), st.data())
def test_every_image_is_in_one_part_however_the_list_arrives(sizes, data) -> None:
    table = listed(sizes)
    parts = list(plans.cut([table]))
    assert pa.concat_tables(parts).equals(table)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sizes)), max_size=5)))
    slices = [
        table.slice(start, stop - start)
        for start, stop in zip([0, *cuts], [*cuts, len(sizes)], strict=True)
    ]
    again = list(plans.cut(slices))
    assert [plans.digest_of(part) for part in again] == [plans.digest_of(part) for part in parts]
    for number, part in enumerate(parts):
        known = [plans.UNKNOWN_BYTES if size is None else size for size in part["size"].to_pylist()]
        assert part.num_rows <= plans.images_of(number)
        assert part.num_rows == 1 or sum(known) <= plans.PART_BYTES


def test_first_parts_are_small_and_later_ones_are_not() -> None:
    assert [plans.images_of(n) for n in (0, 7, 8, 47, 48, 1000, 10**9)] == [
        16,
        16,
        32,
        512,
        1024,
        1024,
        1024,
    ]
    # 8 x (16 + ... + 512) + 1024 n = 1,000,000.
    assert len(list(plans.cut([listed([10] * 20_000)]))) == 48 + -(-(20_000 - 8 * 1008) // 1024)


def test_a_large_image_has_a_part_of_its_own() -> None:
    sizes = [10, plans.PART_BYTES + 1, 10]
    assert [part.num_rows for part in plans.cut([listed(sizes)])] == [1, 1, 1]


def test_a_plan_is_read_as_written(tmp_path: Path) -> None:
    output = str(tmp_path)
    assert plans.read_plan(output) is None
    plan = plans.Plan({"images": "/a"}, "abc", (plans.PlannedPart(3, "d"),), {"a .txt file": 1})
    plans.write_plan(output, plan)
    assert plans.read_plan(output) == plan and plan.images == 3
    begun = plans.Plan({"images": "/a"}, "abc")
    plans.write_plan(output, begun)
    assert plans.read_plan(output) == begun and begun.images is None


@pytest.mark.parametrize("content", ["{", "[]", '{"version": 2}', '{"version": 1}'])
def test_a_damaged_plan_is_refused_with_the_remedy(tmp_path: Path, content: str) -> None:
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(DataError, match="plan.json: .*"):
        plans.read_plan(str(tmp_path))
