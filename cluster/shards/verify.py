"""Compare a shard set with its index: names, rows, and the digests of all bytes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from cluster.errors import DataError
from cluster.shards.consistency import fault_of_index, fault_of_shard
from cluster.shards.format import REMEDY, Shard
from cluster.shards.index import INDEX, ShardSet, set_digest
from cluster.storage import files
from cluster.storage.uris import join


def verify_shard_set(
    shard_set: ShardSet, *, say: Callable[[str], None] = lambda line: None
) -> None:
    """Read every shard again, several at a time and each in pieces. `say` gets a line about every
    bad shard.

    `DataError` where the index cannot be that of its files, and with the names of all shards that
    are missing or differ from it; `PlainError` where the storage fails.
    """

    if impossible := fault_of_index(shard_set.index):
        raise DataError(f"{shard_set.uri}/{INDEX}: {impossible}; {REMEDY}")

    def fault(shard: Shard) -> str:
        uri = join(shard_set.uri, shard.name)
        try:
            with files.plain_errors(uri, "read"), files.open_input(uri) as file:
                return fault_of_shard(shard, file)
        except FileNotFoundError:
            return "is in the index but not in the folder"
        except (ValueError, pa.ArrowException) as error:
            return f"is no Parquet file ({files.reason(error)})"

    bad = []
    with ThreadPoolExecutor(files.TRANSFER_THREADS) as pool:
        for shard, why in zip(shard_set.shards, pool.map(fault, shard_set.shards), strict=True):
            if why:
                bad.append(shard.name)
                say(f"{shard.name} {why}")
    if bad:
        raise DataError(
            f"{shard_set.uri}: {len(bad)} of {len(shard_set.shards)} shards differ from {INDEX}:"
            f" {', '.join(bad)}; {REMEDY}"
        )
    if set_digest(shard_set.categories, shard_set.shards) != shard_set.digest:
        raise DataError(
            f"{shard_set.uri}/{INDEX}: the set digest is not that of its shards; {REMEDY}"
        )
