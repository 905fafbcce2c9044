"""Read row groups, columns and chosen rows of a set; every byte is verified against the digests of
the index.
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
from cluster.shards.format import FEDERATED, REMEDY, SCHEMA, GroupLocation, Shard
from cluster.shards.index import ShardSet
from cluster.storage import files
from cluster.storage.fetched_file import open_fetched
from cluster.storage.uris import join


def read_row_group(location: GroupLocation) -> pa.Table:
    """One row group in one request; its footer in another one, once per process. The columns are
    those of `SCHEMA`. `DataError` naming the shard where the bytes are not those of the index.
    """
    # For images of 100 kB reading costs 45 CPU us an image and the digest 60; decoding costs 1,500.
    footer = read_footer(
        location.uri, location.footer_start, location.footer_bytes, location.footer_sha256
    )
    content = _read_verified(location.uri, location.start, location.bytes, location.sha256)
    data = pa.py_buffer(content)
    # Only this part of the file is in memory. Parquet asks for no other, because it has the footer.
    file = open_fetched(
        location.footer_start + location.footer_bytes,
        lambda start, count: data.slice(start - location.start, count),
    )
    # The columns that every shard has: rows of several shards are joined later.
    return pq.ParquetFile(file, metadata=footer).read_row_group(
        location.number, columns=SCHEMA.names, use_threads=False
    )


@lru_cache(maxsize=512)
def read_footer(uri: str, start: int, count: int, sha256: str) -> pq.FileMetaData:
    """The metadata in the footer of a shard: `count` bytes from byte `start` on."""
    # A footer alone is a valid Parquet file whose row groups are elsewhere.
    return pq.read_metadata(pa.BufferReader(_read_verified(uri, start, count, sha256)))


def _read_verified(uri: str, start: int, count: int, sha256: str) -> bytes:
    with files.content_errors(uri, REMEDY):
        data = files.read_range(uri, start, count)
    digest = hashlib.sha256(data).hexdigest()
    if digest != sha256:
        mismatch = (
            f"{count} bytes from {start} on have sha256 {digest[:12]}..., the index has"
            f" {sha256[:12]}..."
        )
        raise DataError(f"{uri}: is not the shard of the index: {mismatch}; {REMEDY}")
    return data


def read_annotations(shard_set: ShardSet) -> pa.Table:
    """All columns but `image`, all rows in stored order; no pixel is read. Those of `FEDERATED` are
    null where a shard has none.
    """
    names = [name for name in SCHEMA.names if name != "image"]
    return read_columns(shard_set, [*names, *FEDERATED.names])


def read_columns(shard_set: ShardSet, columns: list[str]) -> pa.Table:
    """These columns of all rows, in stored order; null where a shard lacks one. Errors: see
    `read_row_group` and `files.content_errors`.
    """

    def read(shard: Shard) -> pa.Table:
        uri, end = join(shard_set.uri, shard.name), shard.footer_start
        # Pages have checksums. The positions of the pages come from the footer that the index
        # knows, and from nothing else.
        footer = read_footer(uri, end, shard.bytes - end, shard.footer_sha256)
        with files.content_errors(uri, REMEDY), files.open_input(uri) as file:
            parquet = pq.ParquetFile(file, metadata=footer, page_checksum_verification=True)
            return parquet.read(columns=columns)

    known = pa.schema([*SCHEMA, *FEDERATED])
    empty = pa.schema([known.field(name) for name in columns if name in known.names]).empty_table()
    with ThreadPoolExecutor(files.TRANSFER_THREADS) as pool:
        tables = [empty, *pool.map(read, shard_set.shards)]
    return pa.concat_tables(tables, promote_options="default")


def read_rows(locations: Sequence[GroupLocation], rows: Sequence[tuple[int, int]]) -> pa.Table:
    """Chosen rows in the given order: each is (index into `locations`, row inside that group). The
    row groups are fetched in parallel.
    """
    with ThreadPoolExecutor(files.TRANSFER_THREADS) as pool:
        tables = list(pool.map(read_row_group, locations))
    offsets = [0, *itertools.accumulate(table.num_rows for table in tables)]
    return pa.concat_tables(tables).take(
        pa.array([offsets[group] + row for group, row in rows], pa.int64())
    )
