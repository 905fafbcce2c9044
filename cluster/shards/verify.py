"""Are the bytes of a shard set those that its index names?"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from cluster.errors import DataError
from cluster.shards.format import Shard
from cluster.shards.index import INDEX, ShardSet, set_digest
from cluster.storage import files
from cluster.storage.uris import join

PIECE_BYTES = 8 << 20
"""Verifying reads in pieces: large enough to be worth a request each, and whole shards need not fit
into memory.
"""


def verify_shard_set(
    shard_set: ShardSet, *, say: Callable[[str], None] = lambda line: None
) -> None:
    """Read every shard again, some at a time and each in pieces. `say` hears what is wrong with
    each bad one.

    `DataError` naming every shard that is missing or whose bytes are not those of the index,
    `PlainError` when the storage fails.
    """

    def fault(shard: Shard) -> str:
        uri, digest = join(shard_set.uri, shard.name), hashlib.sha256()
        try:
            with files.plain_errors(uri, "read"), files.open_input(uri) as file:
                while piece := file.read(PIECE_BYTES):
                    digest.update(piece)
        except FileNotFoundError:
            return "is in the index but not in the folder"
        found = digest.hexdigest()
        return (
            ""
            if found == shard.sha256
            else f"has sha256 {found[:12]}..., the index names {shard.sha256[:12]}..."
        )

    bad = []
    with ThreadPoolExecutor(files.TRANSFER_THREADS) as pool:
        for shard, why in zip(shard_set.shards, pool.map(fault, shard_set.shards), strict=True):
            if why:
                bad.append(shard.name)
                say(f"{shard.name} {why}")
    if bad:
        several = (
            f"{len(bad)} of {len(shard_set.shards)} shards are not as {INDEX} has them:"
            f" {', '.join(bad)}"
        )
        raise DataError(f"{shard_set.uri}: {several}; run prepare with --overwrite true")
    if set_digest(shard_set.categories, shard_set.shards) != shard_set.digest:
        raise DataError(
            f"{shard_set.uri}/{INDEX}: the set digest does not fit its shards; run prepare with"
            " --overwrite true"
        )
