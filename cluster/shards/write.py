"""Rows to the bytes of a shard. The same rows give the same bytes."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.shards.format import FEDERATED, SCHEMA, Row, RowGroup, Shard
from cluster.storage import files
from cluster.storage.uris import join

MAX_GROUP_BYTES = 4 << 20
"""A row group ends before its images exceed this size; a larger image is a group of its own. A
stream reads a window of four groups as one block.
"""


def encode_shard(rows: Sequence[Row], *, row_group_rows: int) -> pa.Buffer:
    """The bytes of one shard. The same rows give the same bytes: the options are fixed and no
    timestamp is stored.
    """
    sink = pa.BufferOutputStream()
    federated = any(row.federated is not None for row in rows)
    schema = pa.schema([*SCHEMA, *FEDERATED]) if federated else SCHEMA
    # Compressing encoded images costs time and saves nothing, and the other columns are small.
    # Statistics of image bytes would copy whole images into the footer. Page checksums protect
    # reads of single columns, see `read_columns`.
    with pq.ParquetWriter(
        sink,
        schema,
        compression="none",
        use_dictionary=False,
        write_statistics=False,
        write_page_checksum=True,
    ) as writer:
        for group in _cut_groups(rows, row_group_rows):
            writer.write_table(_to_table(group, schema), row_group_size=len(group))
    return sink.getvalue()


def _cut_groups(rows: Sequence[Row], row_group_rows: int) -> list[list[Row]]:
    groups: list[list[Row]] = []
    size = 0
    for row in rows:
        if (
            not groups
            or len(groups[-1]) == row_group_rows
            or size + len(row.image) > MAX_GROUP_BYTES
        ):
            groups.append([])
            size = 0
        groups[-1].append(row)
        size += len(row.image)
    return groups


def _to_table(rows: Sequence[Row], schema: pa.Schema) -> pa.Table:
    offsets = pa.array([0, *itertools.accumulate(len(row.boxes_N4) for row in rows)], pa.int32())
    # (N, 4) of every row -> (4 * all N)
    corners = (
        np.concatenate([np.asarray(row.boxes_N4, np.float32).reshape(-1) for row in rows])
        if rows
        else np.zeros(0, np.float32)
    )

    def ragged(values: list[Any], kind: pa.DataType) -> pa.ListArray:
        return pa.ListArray.from_arrays(offsets, pa.array(values, kind))

    columns = [
        pa.array([row.image_id for row in rows], pa.int64()),
        pa.array([row.file_name for row in rows], pa.string()),
        pa.array([row.image for row in rows], pa.binary()),
        pa.array([row.height for row in rows], pa.int32()),
        pa.array([row.width for row in rows], pa.int32()),
        pa.ListArray.from_arrays(
            offsets, pa.FixedSizeListArray.from_arrays(pa.array(corners, pa.float32()), 4)
        ),
        ragged([int(label) for row in rows for label in row.labels_N], pa.int32()),
        ragged([bool(crowd) for row in rows for crowd in row.crowd_N], pa.bool_()),
        ragged([float(area) for row in rows for area in row.area_N], pa.float32()),
        pa.array([row.source for row in rows], pa.int32()),
        pa.array([row.sha256 for row in rows], pa.binary(32)),
    ]
    if len(schema) > len(SCHEMA):
        columns += [
            pa.array([row.federated and getattr(row.federated, field.name) for row in rows])
            for field in FEDERATED
        ]
    return pa.Table.from_arrays(
        [column.cast(field.type) for column, field in zip(columns, schema, strict=True)],
        schema=schema,
    )


def write_shard(folder: str, name: str, rows: Sequence[Row], *, row_group_rows: int) -> Shard:
    """Publish one shard and return its row of the index."""
    data = encode_shard(rows, row_group_rows=row_group_rows)
    files.write_bytes(join(folder, name), data)
    return _describe_shard(name, data)


def _describe_shard(name: str, data: pa.Buffer) -> Shard:
    """The row of the index for a shard of these bytes."""
    metadata, content = pq.read_metadata(pa.BufferReader(data)), memoryview(data)

    def digest(start: int, stop: int) -> str:
        return hashlib.sha256(content[start:stop]).hexdigest()

    # The columns of a row group follow each other. It begins at the first page of its first column,
    # because there are no dictionaries.
    starts = [
        metadata.row_group(number).column(0).data_page_offset
        for number in range(metadata.num_row_groups)
    ]
    last = metadata.row_group(metadata.num_row_groups - 1).column(metadata.num_columns - 1)
    starts.append(last.data_page_offset + last.total_compressed_size)
    groups = [
        RowGroup(metadata.row_group(number).num_rows, start, stop - start, digest(start, stop))
        for number, (start, stop) in enumerate(itertools.pairwise(starts))
    ]
    return Shard(
        name,
        metadata.num_rows,
        data.size,
        digest(0, data.size),
        tuple(groups),
        digest(starts[-1], data.size),
    )
