"""index.json: the file that makes shards a data set. It is written last.

{"schema_version": 2, "set_digest": "0d5e...", "source_digest": "77a1...",
 "counts": {"images": 24, "boxes": 61, ...},
 "categories": [{"label": 0, "id": 3, "name": "cat"}, ...],
 "sources": [{"name": "train", "format": "coco", "digest": "77a1...", "image_id_offset": 0,
              "category_ids": {}, "images": 24}],
 "fingerprint": "9c31...", "repairs": {"boxes clipped": 2}, "passed_over": {"a hidden file": 1},
 "warnings": ["2 of 5 classes have no object here: 'cow', 'ox'"],
 "duplicates": {"counts": {"": 1},
                "named": [{"file_name": "b.jpg", "same_as": "a.jpg", "set": ""}]},
 "shards": [{"name": "shard-00000-of-00001.parquet", "rows": 24, "bytes": 91824,
             "sha256": "5be0...", "row_groups": [[24, 4, 88120, "f00d..."]],
             "footer_sha256": "c0de..."}]}
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

from cluster.errors import DataError, UsageError
from cluster.shards.format import REMEDY, SCHEMA_VERSION, Category, GroupLocation, Shard
from cluster.storage import files, record_files
from cluster.storage.uris import absolute, join

INDEX = "index.json"


@dataclass(frozen=True)
class Counts:
    """Every listed image and annotation is in exactly one count: it is stored, in the quarantine, a
    dropped duplicate, or lost together with its image. `crowds` are part of `boxes`, `empty_images`
    of `images`, and `quarantined` is the number of all rows of the quarantine but duplicates.
    """

    images: int = 0
    boxes: int = 0
    crowds: int = 0
    empty_images: int = 0
    quarantined: int = 0
    quarantined_images: int = 0
    quarantined_annotations: int = 0
    lost_annotations: int = 0
    dropped_images: int = 0
    listed_images: int = 0
    listed_annotations: int = 0

    @property
    def objects(self) -> int:
        """Stored boxes that are learned and scored."""
        return self.boxes - self.crowds


@dataclass(frozen=True)
class IndexedSource:
    """One source of a set. The column `source` of the shards counts these rows from 0."""

    name: str
    format: str = ""
    digest: str = ""
    image_id_offset: int = 0
    """Added to the image ids of the source, so that ids are unique in the set."""
    category_ids: dict[str, int] = field(default_factory=dict)
    """The source's own ids by class name, where they differ from those of the set."""
    images: int = 0
    """Images stored in the set."""


@dataclass(frozen=True)
class NamedDuplicate:
    """The image `file_name` has the same bytes as `same_as` in the shard set `set`, "" for the set
    itself.
    """

    file_name: str
    same_as: str
    set: str


@dataclass(frozen=True)
class Duplicates:
    """`counts` by the URI of the other shard set, "" for the set itself; the first ones by name."""

    counts: dict[str, int] = field(default_factory=dict)
    named: tuple[NamedDuplicate, ...] = ()


@dataclass(frozen=True)
class Index:
    """The content of index.json."""

    categories: tuple[Category, ...]
    shards: tuple[Shard, ...] = ()
    """Empty for sources that were checked and not written."""
    counts: Counts = field(default_factory=Counts)
    sources: tuple[IndexedSource, ...] = ()
    source_digest: str = ""
    fingerprint: str = ""
    """Identifies the sources and options that made the set."""
    repairs: dict[str, int] = field(default_factory=dict)
    """How often each repair was made."""
    passed_over: dict[str, int] = field(default_factory=dict)
    """How many files lay between the data and were none, by reason."""
    warnings: tuple[str, ...] = ()
    """What looks wrong in the set as a whole."""
    duplicates: Duplicates = field(default_factory=Duplicates)
    set_digest: str = ""
    """Empty for sources that were checked and not written."""

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "set_digest": self.set_digest,
            "source_digest": self.source_digest,
            "counts": asdict(self.counts),
            "categories": [category.to_json() for category in self.categories],
            "sources": [asdict(source) for source in self.sources],
            "fingerprint": self.fingerprint,
            "repairs": self.repairs,
            # Absent where empty, so that most files have the bytes of older versions.
            **({"passed_over": self.passed_over} if self.passed_over else {}),
            **({"warnings": list(self.warnings)} if self.warnings else {}),
            "duplicates": asdict(self.duplicates),
            "shards": [shard.to_json() for shard in self.shards],
        }

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> Index:
        """`KeyError` or `TypeError` where the content is not that of an index."""
        duplicates = content.get("duplicates", {"counts": {}, "named": []})
        return Index(
            categories=tuple(map(Category.from_json, content["categories"])),
            shards=tuple(Shard.from_json(shard) for shard in content["shards"]),
            counts=_from_known(Counts, content["counts"]),
            sources=tuple(_from_known(IndexedSource, source) for source in content["sources"]),
            source_digest=content["source_digest"],
            fingerprint=content.get("fingerprint", ""),
            repairs=content.get("repairs", {}),
            passed_over=content.get("passed_over", {}),
            warnings=tuple(content.get("warnings", ())),
            duplicates=Duplicates(
                duplicates["counts"],
                tuple(_from_known(NamedDuplicate, named) for named in duplicates["named"]),
            ),
            set_digest=content["set_digest"],
        )


Row = TypeVar("Row", Counts, IndexedSource, NamedDuplicate)


def _from_known(kind: type[Row], content: Mapping[str, Any]) -> Row:
    """A dataclass from its JSON; keys that this version does not know are ignored."""
    names = {own.name for own in dataclasses.fields(kind)}
    return kind(**{name: value for name, value in content.items() if name in names})


@dataclass(frozen=True)
class ShardSet:
    """A folder of shards and its index. Row groups are numbered over all shards in order."""

    uri: str
    index: Index

    @property
    def categories(self) -> tuple[Category, ...]:
        return self.index.categories

    @property
    def shards(self) -> tuple[Shard, ...]:
        return self.index.shards

    @property
    def digest(self) -> str:
        return self.index.set_digest

    @property
    def counts(self) -> Counts:
        return self.index.counts

    @property
    def source_names(self) -> tuple[str, ...]:
        """By the number in the column `source`."""
        return tuple(source.name for source in self.index.sources)

    @property
    def num_rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    @property
    def class_names(self) -> list[str]:
        return [category.name for category in self.categories]

    @cached_property
    def rows_per_group(self) -> list[int]:
        return [group.rows for shard in self.shards for group in shard.row_groups]

    @cached_property
    def _first_groups(self) -> list[int]:
        """The number of each shard's first row group, then the number of all row groups."""
        return [0, *itertools.accumulate(len(shard.row_groups) for shard in self.shards)]

    def locate_group(self, group: int) -> GroupLocation:
        """The location of a row group. `IndexError` outside 0..groups-1."""
        if not 0 <= group < self._first_groups[-1]:
            raise IndexError(f"row group {group} of {self._first_groups[-1]}")
        number = bisect_right(self._first_groups, group) - 1
        shard, inside = self.shards[number], group - self._first_groups[number]
        row_group = shard.row_groups[inside]
        return GroupLocation(
            uri=join(self.uri, shard.name),
            number=inside,
            start=row_group.start,
            bytes=row_group.bytes,
            sha256=row_group.sha256,
            footer_start=shard.footer_start,
            footer_bytes=shard.bytes - shard.footer_start,
            footer_sha256=shard.footer_sha256,
        )


def set_digest(categories: Sequence[Category], shards: Sequence[Shard]) -> str:
    """The digest that names the set: it covers the schema version, the categories and the shards in
    order.
    """
    identity = [
        SCHEMA_VERSION,
        [list(category.to_json().values()) for category in categories],
        [shard.sha256 for shard in shards],
    ]
    return hashlib.sha256(json.dumps(identity, ensure_ascii=False).encode()).hexdigest()


def write_index(folder: str, index: Index) -> ShardSet:
    """Make the shards a data set, with the digest of the index computed here. Call it after
    everything else is written.
    """
    index = replace(index, set_digest=set_digest(index.categories, index.shards))
    files.write_json(join(folder, INDEX), index.to_json())
    return ShardSet(folder, index)


def open_shard_set(uri: str) -> ShardSet:
    """Read the index alone. `UsageError` where there is none, `DataError` where it has another
    schema version, is damaged or is no index.
    """
    uri = absolute(uri)
    try:
        content = files.read_json(join(uri, INDEX))
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(
            f"{uri}: not a shard set, or its prepare did not finish (no {INDEX}); run `python -m"
            " pipelines.prepare` first"
        ) from None
    _check_version(uri, content)
    index = record_files.build(content, Index.from_json, f"{uri}/{INDEX}", remedy=REMEDY)
    return ShardSet(uri, index)


def _check_version(uri: str, content: Any) -> None:
    version = content.get("schema_version") if isinstance(content, dict) else None
    if not isinstance(version, int):
        raise DataError(
            f"{uri}/{INDEX}: has no schema_version, so it is not the index of a shard set; check"
            " the path"
        )
    if version > SCHEMA_VERSION:
        raise DataError(
            f"{uri}/{INDEX}: schema version {version} is newer than {SCHEMA_VERSION}, the newest"
            " that this program knows; update the program"
        )
    if version < SCHEMA_VERSION:
        raise DataError(
            f"{uri}/{INDEX}: schema version {version} has no digests of the images; run prepare"
            " again with --overwrite true"
        )
