"""Row groups, columns and chosen rows of a set; every byte is compared with the digests of the
index.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.errors import DataError
from cluster.shards.format import REMEDY, SCHEMA, Place, Shard
from cluster.shards.index import ShardSet
from cluster.storage import files
from cluster.storage.fetched_file import open_fetched
from cluster.storage.uris import join


def read_row_group(place: Place) -> pa.Table:
    """One row group in one request, the footer in another one, once a process. `DataError` naming
    the shard when the bytes are not the index's.
    """
    # On 100 kB images reading costs 45 CPU us an image and the digest 60, where decoding costs
    # 1,500.
    footer = read_footer(place.uri, place.footer_start, place.footer_bytes, place.footer_sha256)
    data = pa.py_buffer(read_verified(place.uri, place.start, place.bytes, place.sha256))
    # Only this part of the file is here, and with the footer given Parquet asks for no other.
    file = open_fetched(
        place.footer_start + place.footer_bytes,
        lambda start, count: data.slice(start - place.start, count),
    )
    return pq.ParquetFile(file, metadata=footer).read_row_group(place.number, use_threads=False)


@lru_cache(maxsize=512)
def read_footer(uri: str, start: int, count: int, sha256: str) -> pq.FileMetaData:
    # A footer alone is a file whose row groups are elsewhere.
    return pq.read_metadata(pa.BufferReader(read_verified(uri, start, count, sha256)))


def read_verified(uri: str, start: int, count: int, sha256: str) -> bytes:
    with files.content_errors(uri, REMEDY):
        data = files.read_range(uri, start, count)
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        where = (
            f"{count} bytes from {start} on have sha256 {found[:12]}..., the index names"
            f" {sha256[:12]}..."
        )
        raise DataError(f"{uri}: is not the shard of the index: {where}; {REMEDY}")
    return data


def read_annotations(shard_set: ShardSet) -> pa.Table:
    """All columns but `image`, all rows in stored order; no pixel is read."""
    return read_columns(shard_set, [name for name in SCHEMA.names if name != "image"])


def read_columns(shard_set: ShardSet, columns: list[str]) -> pa.Table:
    """These columns alone of all rows, in stored order. Errors: see `read_row_group` and
    `files.content_errors`.
    """

    def read(shard: Shard) -> pa.Table:
        uri, end = join(shard_set.uri, shard.name), shard.footer_start
        # Pages carry checksums; what lies where is believed of the footer alone that the index
        # knows.
        footer = read_footer(uri, end, shard.bytes - end, shard.footer_sha256)
        with files.content_errors(uri, REMEDY), files.open_input(uri) as file:
            return pq.ParquetFile(file, metadata=footer, page_checksum_verification=True).read(
                columns=columns
            )

    with ThreadPoolExecutor(files.TRANSFER_THREADS) as pool:
        return pa.concat_tables(
            [
                pa.schema([SCHEMA.field(name) for name in columns]).empty_table(),
                *pool.map(read, shard_set.shards),
            ]
        )


def read_rows(places: Sequence[Place], rows: Sequence[tuple[int, int]]) -> pa.Table:
    """Chosen rows in the given order: each is (index into `places`, row inside that group). Row
    groups are fetched side by side.
    """
    with ThreadPoolExecutor(files.TRANSFER_THREADS) as pool:
        tables = list(pool.map(read_row_group, places))
    offsets = [0, *itertools.accumulate(table.num_rows for table in tables)]
    return pa.concat_tables(tables).take(
        pa.array([offsets[group] + row for group, row in rows], pa.int64())
    )
