"""index.json, written last: it makes shards a data set."""

from __future__ import annotations

import hashlib
import itertools
import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cluster.errors import DataError, UsageError
from cluster.shards.format import REMEDY, SCHEMA_VERSION, Category, Place, Shard
from cluster.storage import files
from cluster.storage.uris import absolute, join

INDEX = "index.json"


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
        uri, inside, end = (
            join(self.uri, shard.name),
            group - self.first_groups[number],
            shard.footer_start,
        )
        found = shard.row_groups[inside]
        return Place(
            uri,
            inside,
            found.start,
            found.bytes,
            found.sha256,
            end,
            shard.bytes - end,
            shard.footer_sha256,
        )


def set_digest(categories: Sequence[Category], shards: Sequence[Shard]) -> str:
    identity = [
        SCHEMA_VERSION,
        [list(category) for category in categories],
        [shard.sha256 for shard in shards],
    ]
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

    `sources` are what the column `source` counts, each with its `name`. `more` goes into the index
    as it is.
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
    files.write_json(join(folder, INDEX), index)
    return ShardSet(
        folder,
        tuple(categories),
        tuple(shards),
        digest,
        dict(counts),
        tuple(source["name"] for source in sources),
    )


def read_index(uri: str) -> dict[str, Any]:
    """The content of index.json. `UsageError` when there is none, `DataError` when it is of another
    schema version or not an index.
    """
    try:
        index = files.read_json(join(uri, INDEX))
    except FileNotFoundError:
        raise UsageError(
            f"{uri}: not a shard set, or its prepare was not finished (no {INDEX}); run `python -m"
            " pipelines.prepare` first"
        ) from None
    version = index.get("schema_version") if isinstance(index, dict) else None
    if not isinstance(version, int):
        raise DataError(
            f"{uri}/{INDEX}: holds no schema_version, so it is not the index of a shard set; check"
            " the path"
        )
    if version > SCHEMA_VERSION:
        raise DataError(
            f"{uri}/{INDEX}: schema version {version} is newer than {SCHEMA_VERSION}, the newest"
            " this program knows; update the program"
        )
    if version < SCHEMA_VERSION:
        raise DataError(
            f"{uri}/{INDEX}: schema version {version} lacks the digests of the images; run prepare"
            " again with --overwrite true"
        )
    return index


def open_shard_set(uri: str) -> ShardSet:
    """Read the index alone. Errors: see `read_index`."""
    uri = absolute(uri)
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
