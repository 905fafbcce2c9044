"""Pictures that occur twice, by the sha256 of their files: within one set, or in the set that is
prepared and another one, such as the training set (a leak).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from cluster.prepare.shard_job import Picture
from cluster.shards.index import Duplicates, NamedDuplicate, open_shard_set
from cluster.shards.quarantine import Quarantined
from cluster.shards.read import read_columns

MAX_NAMED = 1000
"""Duplicates that the index names; it counts all of them."""


class Duplicate(NamedTuple):
    """`picture` is the same as `same_as` in the shard set `uri`; "" is its own set, where `same_as`
    has the lower image id.
    """

    picture: Picture
    same_as: str
    uri: str

    @property
    def why(self) -> str:
        where = "is in another shard set" if self.uri else "comes twice"
        return f"the same picture {where}"

    @property
    def detail(self) -> str:
        return f"as {self.same_as}{f' in {self.uri}' if self.uri else ''}"


class StoredPicture(NamedTuple):
    """A picture of a finished shard set."""

    uri: str
    file_name: str


def pictures_by_digest(uris: Sequence[str]) -> dict[bytes, StoredPicture]:
    """Every picture of the shard sets by its sha256; of equal ones that of the first set. Errors:
    see `open_shard_set`.
    """
    pictures: dict[bytes, StoredPicture] = {}
    for uri in uris:
        table = read_columns(open_shard_set(uri), ["sha256", "file_name"])
        digests, names = table["sha256"].to_pylist(), table["file_name"].to_pylist()
        for digest, name in zip(digests, names, strict=True):
            pictures.setdefault(digest, StoredPicture(uri, name))
    return pictures


def find_duplicates(
    pictures: Iterable[Picture], others: Mapping[bytes, StoredPicture]
) -> list[Duplicate]:
    """Pictures that are in `others`, and of equal pictures all but the one with most annotations,
    of several the one of the lowest image id; by ascending image id.
    """
    duplicates = []
    first_names: dict[str, str] = {}
    for picture in sorted(pictures, key=lambda one: (-one.annotations, one)):
        if (other := others.get(bytes.fromhex(picture.sha256))) is not None:
            duplicates.append(Duplicate(picture, other.file_name, other.uri))
        elif picture.sha256 in first_names:
            duplicates.append(Duplicate(picture, first_names[picture.sha256], ""))
        else:
            first_names[picture.sha256] = picture.file_name
    return sorted(duplicates)


def to_index(duplicates: Sequence[Duplicate]) -> Duplicates:
    """The entry of the index."""
    named = [
        NamedDuplicate(file_name=one.picture.file_name, same_as=one.same_as, set=one.uri)
        for one in duplicates[:MAX_NAMED]
    ]
    counts = Counter(one.uri for one in duplicates)
    return Duplicates(dict(sorted(counts.items())), tuple(named))


def to_quarantine(duplicates: Sequence[Duplicate]) -> list[Quarantined]:
    return [
        Quarantined(
            "duplicate",
            one.picture.file_name,
            one.why,
            f'{{"id": {one.picture.image_id}}}',
            one.detail,
        )
        for one in duplicates
    ]
