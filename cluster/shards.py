"""The shard set: Parquet shards of encoded images with their boxes, and the index.json that makes them a data set.

    shard-00007-of-00064.parquet   image_id int64, file_name string, image binary (encoded), height int32, width int32, boxes list<float[4]>
                                   XYXY px of the upright image, labels list<int32> 0..K-1, crowd list<bool>, area list<float> px^2,
                                   source int32 (place in the index's `sources`), sha256 binary[32] (of the source file, before any turning)
    quarantine.parquet             what was left out: what (image | annotation | duplicate), where (file name or id), why, raw (JSON)
    index.json                     written last; without it there is no data set

A digest is a sha256 in hex. The set digest covers the schema version, the categories and the digests of the shards, in order,
so two sets of one digest hold the same bytes in the same order.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster import storage
from cluster.errors import DataError, UsageError

SCHEMA_VERSION = 2
INDEX = "index.json"
QUARANTINE = "quarantine.parquet"
SCHEMA = pa.schema(
    [
        ("image_id", pa.int64()),
        ("file_name", pa.string()),
        ("image", pa.binary()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("boxes", pa.list_(pa.list_(pa.float32(), 4))),
        ("labels", pa.list_(pa.int32())),
        ("crowd", pa.list_(pa.bool_())),
        ("area", pa.list_(pa.float32())),
        ("source", pa.int32()),
        ("sha256", pa.binary(32)),
    ]
)
QUARANTINE_SCHEMA = pa.schema([(name, pa.string()) for name in ("what", "where", "why", "raw")])
# pa.binary counts its bytes in int32; a row group is cut before it comes near.
MAX_GROUP_BYTES = 1 << 30


class Category(NamedTuple):
    """`label` 0..K-1 is ours, `id` is the one of the COCO JSON."""

    label: int
    id: int
    name: str


class Shard(NamedTuple):
    name: str
    rows: int
    bytes: int
    sha256: str
    row_groups: tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """One image as stored. boxes_N4 float32 XYXY px of the upright image; labels_N, crowd_N, area_N beside it; sha256 of the source file."""

    image_id: int
    file_name: str
    image: bytes
    height: int
    width: int
    boxes_N4: np.ndarray
    labels_N: Sequence[int]
    crowd_N: Sequence[bool]
    area_N: Sequence[float]
    source: int
    sha256: bytes


@dataclass(frozen=True)
class ShardSet:
    """An opened index. Row groups are numbered over all shards in order."""

    uri: str
    categories: tuple[Category, ...]
    shards: tuple[Shard, ...]
    digest: str
    counts: dict[str, int]

    @cached_property
    def rows_per_group(self) -> list[int]:
        return [rows for shard in self.shards for rows in shard.row_groups]

    @property
    def num_rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    @property
    def class_names(self) -> list[str]:
        return [category.name for category in self.categories]

    @cached_property
    def first_groups(self) -> list[int]:
        return [0, *itertools.accumulate(len(shard.row_groups) for shard in self.shards)]

    def locate_group(self, group: int) -> tuple[str, int]:
        """(URI of the shard, number of the row group inside it). `IndexError` outside 0..groups-1."""
        if not 0 <= group < self.first_groups[-1]:
            raise IndexError(f"row group {group} of {self.first_groups[-1]}")
        shard = bisect_right(self.first_groups, group) - 1
        return storage.join(self.uri, self.shards[shard].name), group - self.first_groups[shard]


def shard_name(number: int, total: int) -> str:
    return f"shard-{number:05d}-of-{total:05d}.parquet"


def encode_shard(rows: Sequence[Row], *, row_group_rows: int) -> tuple[pa.Buffer, tuple[int, ...]]:
    """The bytes of one shard and its rows per row group. The same rows give the same bytes: the options are fixed and nothing tells the time."""
    sink = pa.BufferOutputStream()
    groups = list(cut_groups(rows, row_group_rows))
    # Compressing encoded images costs time and saves nothing, and the other columns are small.
    # Statistics of image bytes would copy whole images into the footer.
    with pq.ParquetWriter(sink, SCHEMA, compression="none", use_dictionary=False, write_statistics=False) as writer:
        for group in groups:
            writer.write_table(to_table(group), row_group_size=len(group))
    return sink.getvalue(), tuple(len(group) for group in groups)


def cut_groups(rows: Sequence[Row], row_group_rows: int) -> list[list[Row]]:
    groups: list[list[Row]] = []
    size = 0
    for row in rows:
        if not groups or len(groups[-1]) == row_group_rows or size + len(row.image) > MAX_GROUP_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(row)
        size += len(row.image)
    return groups


def to_table(rows: Sequence[Row]) -> pa.Table:
    offsets = pa.array([0, *itertools.accumulate(len(row.boxes_N4) for row in rows)], pa.int32())
    # (N, 4) of every row -> (4 * all N)
    corners = np.concatenate([np.asarray(row.boxes_N4, np.float32).reshape(-1) for row in rows]) if rows else np.zeros(0, np.float32)

    def ragged(values: list[Any], kind: pa.DataType) -> pa.ListArray:
        return pa.ListArray.from_arrays(offsets, pa.array(values, kind))

    columns = [
        pa.array([row.image_id for row in rows], pa.int64()),
        pa.array([row.file_name for row in rows], pa.string()),
        pa.array([row.image for row in rows], pa.binary()),
        pa.array([row.height for row in rows], pa.int32()),
        pa.array([row.width for row in rows], pa.int32()),
        pa.ListArray.from_arrays(offsets, pa.FixedSizeListArray.from_arrays(pa.array(corners, pa.float32()), 4)),
        ragged([int(label) for row in rows for label in row.labels_N], pa.int32()),
        ragged([bool(crowd) for row in rows for crowd in row.crowd_N], pa.bool_()),
        ragged([float(area) for row in rows for area in row.area_N], pa.float32()),
        pa.array([row.source for row in rows], pa.int32()),
        pa.array([row.sha256 for row in rows], pa.binary(32)),
    ]
    return pa.Table.from_arrays([column.cast(field.type) for column, field in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)


def write_shard(folder: str, name: str, rows: Sequence[Row], *, row_group_rows: int) -> Shard:
    """Publish one shard and say what the index will say about it."""
    data, row_groups = encode_shard(rows, row_group_rows=row_group_rows)
    storage.write_bytes(storage.join(folder, name), data)
    return Shard(name, len(rows), data.size, hashlib.sha256(data).hexdigest(), row_groups)


def write_quarantine(folder: str, records: Sequence[dict[str, str]]) -> None:
    """`records` hold what, where, why and raw."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(records), schema=QUARANTINE_SCHEMA), sink)
    storage.write_bytes(storage.join(folder, QUARANTINE), sink.getvalue())


def read_quarantine(uri: str) -> list[dict[str, str]]:
    with storage.open_input(storage.join(uri, QUARANTINE)) as file:
        return pq.read_table(file).to_pylist()


def set_digest(categories: Sequence[Category], shards: Sequence[Shard]) -> str:
    identity = [SCHEMA_VERSION, [list(category) for category in categories], [shard.sha256 for shard in shards]]
    return hashlib.sha256(json.dumps(identity, ensure_ascii=False).encode()).hexdigest()


def write_index(
    folder: str, *, categories: Sequence[Category], shards: Sequence[Shard], counts: dict[str, int], source_digest: str, **more: Any
) -> ShardSet:
    """Make the shards a data set. To be called after everything else is written. `more` goes into the index as it is."""
    digest = set_digest(categories, shards)
    index = {
        "schema_version": SCHEMA_VERSION,
        "set_digest": digest,
        "source_digest": source_digest,
        "counts": counts,
        "categories": [category._asdict() for category in categories],
        **more,
        "shards": [shard._asdict() for shard in shards],
    }
    storage.write_json(storage.join(folder, INDEX), index)
    return ShardSet(folder, tuple(categories), tuple(shards), digest, dict(counts))


def read_index(uri: str) -> dict[str, Any]:
    """The content of index.json. `UsageError` when there is none, `DataError` when it is of another schema version or not an index."""
    try:
        index = storage.read_json(storage.join(uri, INDEX))
    except FileNotFoundError:
        raise UsageError(f"{uri}: not a shard set, or its prepare was not finished (no {INDEX}); run `python -m pipelines.prepare` first") from None
    version = index.get("schema_version") if isinstance(index, dict) else None
    if not isinstance(version, int):
        raise DataError(f"{uri}/{INDEX}: holds no schema_version, so it is not the index of a shard set; check the path")
    if version > SCHEMA_VERSION:
        raise DataError(f"{uri}/{INDEX}: schema version {version} is newer than {SCHEMA_VERSION}, the newest this program knows; update the program")
    if version < SCHEMA_VERSION:
        remedy = f"run prepare again with this program and --overwrite true, its sets have version {SCHEMA_VERSION}"
        raise DataError(f"{uri}/{INDEX}: schema version {version} lacks the digests of the images; {remedy}")
    return index


def open_shard_set(uri: str) -> ShardSet:
    """Read the index alone. Errors: see `read_index`."""
    uri = storage.absolute(uri)
    index = read_index(uri)
    try:
        return ShardSet(
            uri=uri,
            categories=tuple(Category(**category) for category in index["categories"]),
            shards=tuple(Shard(**{**shard, "row_groups": tuple(shard["row_groups"])}) for shard in index["shards"]),
            digest=index["set_digest"],
            counts=index["counts"],
        )
    except (KeyError, TypeError) as error:
        raise DataError(f"{uri}/{INDEX}: is damaged ({error}); run prepare with --overwrite") from error


def read_row_group(shard_uri: str, row_group: int, columns: list[str] | None = None) -> pa.Table:
    """One row group of one shard, whole or some `columns` of it."""
    with storage.open_input(shard_uri) as file:
        return pq.ParquetFile(file, pre_buffer=True).read_row_group(row_group, columns=columns)


def read_annotations(shard_set: ShardSet) -> pa.Table:
    """All columns but `image`, all rows in stored order; no pixel is read."""
    return read_columns(shard_set, [name for name in SCHEMA.names if name != "image"])


def read_columns(shard_set: ShardSet, columns: list[str]) -> pa.Table:
    """These columns alone of all rows, in stored order."""

    def read(shard: Shard) -> pa.Table:
        with storage.open_input(storage.join(shard_set.uri, shard.name)) as file:
            return pq.read_table(file, columns=columns)

    with ThreadPoolExecutor(storage.TRANSFER_THREADS) as pool:
        return pa.concat_tables([pa.schema([SCHEMA.field(name) for name in columns]).empty_table(), *pool.map(read, shard_set.shards)])


def verify_shard_set(shard_set: ShardSet) -> None:
    """Read every shard again. `DataError` naming the first one that is missing or whose bytes are not those of the index."""
    for shard in shard_set.shards:
        uri = storage.join(shard_set.uri, shard.name)
        try:
            digest = hashlib.sha256(storage.read_bytes(uri)).hexdigest()
        except FileNotFoundError:
            raise DataError(f"{uri}: is in the index but not in the folder; run prepare with --overwrite") from None
        if digest != shard.sha256:
            raise DataError(f"{uri}: has sha256 {digest[:12]}..., the index names {shard.sha256[:12]}...; run prepare with --overwrite")
    if set_digest(shard_set.categories, shard_set.shards) != shard_set.digest:
        raise DataError(f"{shard_set.uri}/{INDEX}: the set digest does not fit its shards; run prepare with --overwrite")


def read_rows(groups: Sequence[tuple[str, int]], rows: Sequence[tuple[int, int]]) -> pa.Table:
    """Chosen rows in the given order. `groups` are (shard URI, row group in it); `rows` are (index into `groups`, row inside that group)."""
    tables = [read_row_group(uri, number) for uri, number in groups]
    offsets = [0, *itertools.accumulate(table.num_rows for table in tables)]
    return pa.concat_tables(tables).take(pa.array([offsets[group] + row for group, row in rows], pa.int64()))
