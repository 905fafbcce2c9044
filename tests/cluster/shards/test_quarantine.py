from __future__ import annotations

import contextlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import DataError
from cluster.shards import quarantine
from cluster.shards.quarantine import Quarantined


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else request.getfixturevalue("bucket")


def test_a_missing_or_damaged_quarantine_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"quarantine.parquet: is not in the folder of its set; run prepare"
    ):
        quarantine.read_quarantine(str(tmp_path))
    quarantine.write_quarantine(str(tmp_path), [Quarantined("image", "ä.jpg", "it is empty", "{}")])
    whole = (tmp_path / "quarantine.parquet").read_bytes()
    for position in range(0, len(whole), 7):
        (tmp_path / "quarantine.parquet").write_bytes(
            whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :]
        )
        # Some bytes carry no content; damage to any other must not raise anything else.
        with contextlib.suppress(DataError):
            quarantine.read_quarantine(str(tmp_path))
    (tmp_path / "quarantine.parquet").write_bytes(whole[:-20])
    with pytest.raises(DataError, match=r"quarantine.parquet: is damaged \(.*\); run prepare"):
        quarantine.read_quarantine(str(tmp_path))


def test_quarantine_round_trip(root: str) -> None:
    rows = [Quarantined("image", "ä.jpg", "it is empty", '{"id": 1}')]
    quarantine.write_quarantine(root, rows)
    assert quarantine.read_quarantine(root) == rows
    quarantine.write_quarantine(root, [])
    assert quarantine.read_quarantine(root) == []


def test_reasons_that_differ_in_details_count_as_one() -> None:
    rows = [
        Quarantined("image", "a", "it is truncated", "", "10 bytes"),
        Quarantined("image", "b", "it is empty", ""),
        Quarantined("image", "c", "it is truncated", "", "20 bytes"),
    ]
    assert quarantine.by_reason(rows) == [
        ("it is truncated", [rows[0], rows[2]]),
        ("it is empty", [rows[1]]),
    ]
    assert quarantine.example_of([rows[0], rows[2]]) == "such as a: 10 bytes"
    assert quarantine.example_of(rows[1:2]) == "such as b"


def test_a_file_of_the_version_before_is_read(tmp_path: Path) -> None:
    names = ["what", "where", "why", "raw"]
    row = ["image", "a", "it is truncated (10 bytes)", "{}"]
    table = pa.table({name: [value] for name, value in zip(names, row, strict=True)})
    pq.write_table(table, tmp_path / "quarantine.parquet")
    assert quarantine.read_quarantine(str(tmp_path)) == [Quarantined(*row)]
