"""Compare the bytes of a shard set with the digests in its index."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from cluster.errors import DataError
from cluster.shards.format import REMEDY, Shard
from cluster.shards.index import INDEX, ShardSet, set_digest
from cluster.storage import files
from cluster.storage.uris import join

_PIECE_BYTES = 8 << 20
"""Bytes per read: enough for a request to be worth its cost, and far less than a whole shard in
memory.
"""


def verify_shard_set(
    shard_set: ShardSet, *, say: Callable[[str], None] = lambda line: None
) -> None:
    """Read every shard again, several at a time and each in pieces. `say` gets a line about every
    bad shard.

    `DataError` with the names of all shards that are missing or differ from the index, `PlainError`
    where the storage fails.
    """

    def fault(shard: Shard) -> str:
        uri, digest = join(shard_set.uri, shard.name), hashlib.sha256()
        try:
            with files.plain_errors(uri, "read"), files.open_input(uri) as file:
                while piece := file.read(_PIECE_BYTES):
                    digest.update(piece)
        except FileNotFoundError:
            return "is in the index but not in the folder"
        if (actual := digest.hexdigest()) != shard.sha256:
            return f"has sha256 {actual[:12]}..., the index has {shard.sha256[:12]}..."
        return ""

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
