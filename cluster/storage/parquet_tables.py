"""Small Parquet files as tables."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq


def read_table(data: bytes) -> pa.Table:
    """The table in the content of a file. `pa.ArrowInvalid` where it is none."""
    # Not `pq.read_table`: its threads were at times still there when a short command ended, and it
    # ended with 134 after its work (3 of 25 times on one busy core, 0 of 70 like this).
    return pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
