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
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.errors import DataError, UsageError
from cluster.storage import files as storage

SCHEMA_VERSION = 2
INDEX = "index.json"
QUARANTINE = "quarantine.parquet"
REPORT = "report.html"
REMEDY = "run prepare with --overwrite true"
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
MAX_GROUP_BYTES = 4 << 20
"""A row group is cut before its images pass this, one larger picture being a group of its own: a window of four of them is one block of a stream."""


class Category(NamedTuple):
    """`label` 0..K-1 is ours, `id` is the one of the COCO JSON."""

    label: int
    id: int
    name: str


class RowGroup(NamedTuple):
    """A stretch of the file: `bytes` from byte `start` on, and their digest."""

    rows: int
    start: int
    bytes: int
    sha256: str


class Shard(NamedTuple):
    """One file: row groups one after another and, from the end of the last one to the end of the file, Parquet's footer."""

    name: str
    rows: int
    bytes: int
    sha256: str
    row_groups: tuple[RowGroup, ...]
    footer_sha256: str

    @property
    def footer_start(self) -> int:
        return self.row_groups[-1].start + self.row_groups[-1].bytes

    @staticmethod
    def of(fields: dict[str, Any]) -> Shard:
        """The shard that `_asdict` gave, also after a round trip through JSON."""
        return Shard(**{**fields, "row_groups": tuple(RowGroup(*group) for group in fields["row_groups"])})


class Place(NamedTuple):
    """All that is needed to read one row group and to know that it is the right one; plain values that travel as JSON."""

    uri: str
    number: int
    start: int
    bytes: int
    sha256: str
    footer_start: int
    footer_bytes: int
    footer_sha256: str


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
    source_names: tuple[str, ...] = ()
    """By the number in the column `source`."""

    @cached_property
    def rows_per_group(self) -> list[int]:
        return [group.rows for shard in self.shards for group in shard.row_groups]

    @property
    def num_rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    @property
    def class_names(self) -> list[str]:
        return [category.name for category in self.categories]

    @cached_property
    def first_groups(self) -> list[int]:
        return [0, *itertools.accumulate(len(shard.row_groups) for shard in self.shards)]

    def locate_group(self, group: int) -> Place:
        """Where a row group is. `IndexError` outside 0..groups-1."""
        if not 0 <= group < self.first_groups[-1]:
            raise IndexError(f"row group {group} of {self.first_groups[-1]}")
        number = bisect_right(self.first_groups, group) - 1
        shard = self.shards[number]
        uri, inside, end = storage.join(self.uri, shard.name), group - self.first_groups[number], shard.footer_start
        found = shard.row_groups[inside]
        return Place(uri, inside, found.start, found.bytes, found.sha256, end, shard.bytes - end, shard.footer_sha256)


def shard_name(number: int, total: int) -> str:
    return f"shard-{number:05d}-of-{total:05d}.parquet"


def encode_shard(rows: Sequence[Row], *, row_group_rows: int) -> pa.Buffer:
    """The bytes of one shard. The same rows give the same bytes: the options are fixed and nothing tells the time."""
    sink = pa.BufferOutputStream()
    # Compressing encoded images costs time and saves nothing, and the other columns are small.
    # Statistics of image bytes would copy whole images into the footer.
    # Checksums of pages guard what is read of a row group without the whole of it, see `read_columns`.
    options = dict(compression="none", use_dictionary=False, write_statistics=False, write_page_checksum=True)
    with pq.ParquetWriter(sink, SCHEMA, **options) as writer:
        for group in cut_groups(rows, row_group_rows):
            writer.write_table(to_table(group), row_group_size=len(group))
    return sink.getvalue()


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
    data = encode_shard(rows, row_group_rows=row_group_rows)
    storage.write_bytes(storage.join(folder, name), data)
    return describe_shard(name, data)


def describe_shard(name: str, data: pa.Buffer) -> Shard:
    """What the index says about a shard of these bytes."""
    metadata, content = pq.read_metadata(pa.BufferReader(data)), memoryview(data)

    def digest(start: int, stop: int) -> str:
        return hashlib.sha256(content[start:stop]).hexdigest()

    # Columns lie one after another; a row group begins where its first one does, without dictionaries at its first page.
    starts = [metadata.row_group(number).column(0).data_page_offset for number in range(metadata.num_row_groups)]
    last = metadata.row_group(metadata.num_row_groups - 1).column(metadata.num_columns - 1)
    starts.append(last.data_page_offset + last.total_compressed_size)
    groups = [
        RowGroup(metadata.row_group(number).num_rows, start, stop - start, digest(start, stop))
        for number, (start, stop) in enumerate(itertools.pairwise(starts))
    ]
    return Shard(name, metadata.num_rows, data.size, digest(0, data.size), tuple(groups), digest(starts[-1], data.size))


def write_quarantine(folder: str, records: Sequence[dict[str, str]]) -> None:
    """`records` hold what, where, why and raw."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(records), schema=QUARANTINE_SCHEMA), sink)
    storage.write_bytes(storage.join(folder, QUARANTINE), sink.getvalue())


def read_quarantine(uri: str) -> list[dict[str, str]]:
    """The records left out. Errors: see `storage.content_errors`."""
    uri = storage.join(uri, QUARANTINE)
    with storage.content_errors(uri, REMEDY):
        return pq.read_table(pa.BufferReader(storage.read_bytes(uri))).to_pylist()


def set_digest(categories: Sequence[Category], shards: Sequence[Shard]) -> str:
    identity = [SCHEMA_VERSION, [list(category) for category in categories], [shard.sha256 for shard in shards]]
    return hashlib.sha256(json.dumps(identity, ensure_ascii=False).encode()).hexdigest()


def write_index(
    folder: str,
    *,
    categories: Sequence[Category],
    shards: Sequence[Shard],
    counts: dict[str, int],
    source_digest: str,
    sources: Sequence[dict[str, Any]] = (),
    **more: Any,
) -> ShardSet:
    """Make the shards a data set. To be called after everything else is written.

    `sources` are what the column `source` counts, each with its `name`. `more` goes into the index as it is.
    """
    digest = set_digest(categories, shards)
    index = {
        "schema_version": SCHEMA_VERSION,
        "set_digest": digest,
        "source_digest": source_digest,
        "counts": counts,
        "categories": [category._asdict() for category in categories],
        "sources": list(sources),
        **more,
        "shards": [shard._asdict() for shard in shards],
    }
    storage.write_json(storage.join(folder, INDEX), index)
    return ShardSet(folder, tuple(categories), tuple(shards), digest, dict(counts), tuple(source["name"] for source in sources))


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
        raise DataError(f"{uri}/{INDEX}: schema version {version} lacks the digests of the images; run prepare again with --overwrite true")
    return index


def open_shard_set(uri: str) -> ShardSet:
    """Read the index alone. Errors: see `read_index`."""
    uri = storage.absolute(uri)
    index = read_index(uri)
    try:
        return ShardSet(
            uri=uri,
            categories=tuple(Category(**category) for category in index["categories"]),
            shards=tuple(Shard.of(shard) for shard in index["shards"]),
            digest=index["set_digest"],
            counts=index["counts"],
            source_names=tuple(source["name"] for source in index["sources"]),
        )
    except (KeyError, TypeError) as error:
        raise DataError(f"{uri}/{INDEX}: is damaged ({error}); {REMEDY}") from error


def read_row_group(place: Place) -> pa.Table:
    """One row group in one request, the footer in another one, once a process. `DataError` naming the shard when the bytes are not the index's."""
    # On 100 kB images reading costs 45 CPU us an image and the digest 60, where decoding costs 1,500.
    footer = read_footer(place.uri, place.footer_start, place.footer_bytes, place.footer_sha256)
    data = pa.py_buffer(read_verified(place.uri, place.start, place.bytes, place.sha256))
    # Only this part of the file is here, and with the footer given Parquet asks for no other.
    file = storage.fetched_file(place.footer_start + place.footer_bytes, lambda start, count: data.slice(start - place.start, count))
    return pq.ParquetFile(file, metadata=footer).read_row_group(place.number, use_threads=False)


@lru_cache(maxsize=512)
def read_footer(uri: str, start: int, count: int, sha256: str) -> pq.FileMetaData:
    # A footer alone is a file whose row groups are elsewhere.
    return pq.read_metadata(pa.BufferReader(read_verified(uri, start, count, sha256)))


def read_verified(uri: str, start: int, count: int, sha256: str) -> bytes:
    with storage.content_errors(uri, REMEDY):
        data = storage.read_range(uri, start, count)
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        where = f"{count} bytes from {start} on have sha256 {found[:12]}..., the index names {sha256[:12]}..."
        raise DataError(f"{uri}: is not the shard of the index: {where}; {REMEDY}")
    return data


def read_annotations(shard_set: ShardSet) -> pa.Table:
    """All columns but `image`, all rows in stored order; no pixel is read."""
    return read_columns(shard_set, [name for name in SCHEMA.names if name != "image"])


def read_columns(shard_set: ShardSet, columns: list[str]) -> pa.Table:
    """These columns alone of all rows, in stored order. Errors: see `read_row_group` and `storage.content_errors`."""

    def read(shard: Shard) -> pa.Table:
        uri, end = storage.join(shard_set.uri, shard.name), shard.footer_start
        # Pages carry checksums; what lies where is believed of the footer alone that the index knows.
        footer = read_footer(uri, end, shard.bytes - end, shard.footer_sha256)
        with storage.content_errors(uri, REMEDY), storage.open_input(uri) as file:
            return pq.ParquetFile(file, metadata=footer, page_checksum_verification=True).read(columns=columns)

    with ThreadPoolExecutor(storage.TRANSFER_THREADS) as pool:
        return pa.concat_tables([pa.schema([SCHEMA.field(name) for name in columns]).empty_table(), *pool.map(read, shard_set.shards)])


def read_rows(places: Sequence[Place], rows: Sequence[tuple[int, int]]) -> pa.Table:
    """Chosen rows in the given order: each is (index into `places`, row inside that group). Row groups are fetched side by side."""
    with ThreadPoolExecutor(storage.TRANSFER_THREADS) as pool:
        tables = list(pool.map(read_row_group, places))
    offsets = [0, *itertools.accumulate(table.num_rows for table in tables)]
    return pa.concat_tables(tables).take(pa.array([offsets[group] + row for group, row in rows], pa.int64()))
