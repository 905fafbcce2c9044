from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.shards import write
from tests.support.shard_sets import row


def test_the_same_rows_give_the_same_bytes_and_other_rows_others() -> None:
    rows = [row(1, 2), row(2, 0), row(3, 1)]
    first = write.encode_shard(rows, row_group_rows=2)
    assert write.encode_shard(list(rows), row_group_rows=2).to_pybytes() == first.to_pybytes()
    assert write.encode_shard(rows[::-1], row_group_rows=2).to_pybytes() != first.to_pybytes()


def test_a_row_group_is_cut_by_bytes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    # Ten bytes an image and 25 bytes a group: two, two and one.
    monkeypatch.setattr(write, "MAX_GROUP_BYTES", 25)
    data = write.encode_shard([row(n, 0) for n in range(5)], row_group_rows=100)
    metadata = pq.read_metadata(pa.BufferReader(data))
    assert [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)] == [2, 2, 1]
