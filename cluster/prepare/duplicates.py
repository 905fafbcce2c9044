"""The same picture twice, by the sha256 of the file: in one set, or in the set that is trained on
and the one that judges (a leak).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from cluster.prepare.tasks import Picture
from cluster.shards import index, read
from cluster.shards.index import Duplicates, NamedDuplicate
from cluster.shards.quarantine import Quarantined

# So many are named in the index; all are counted.
NAMED = 1000


class Duplicate(NamedTuple):
    """`picture` is the same as `same_as`, which is in the set `uri`, or earlier in its own set
    where that is "".
    """

    picture: Picture
    same_as: str
    uri: str

    @property
    def why(self) -> str:
        return f"the same picture is in {self.uri}" if self.uri else "the same picture comes twice"


def known_pictures(uris: Sequence[str]) -> dict[bytes, tuple[str, str]]:
    """sha256 -> (shard set, file name) of every image of the sets; the first set counts. Errors:
    see `index.open_shard_set`.
    """
    known: dict[bytes, tuple[str, str]] = {}
    for uri in uris:
        table = read.read_columns(index.open_shard_set(uri), ["sha256", "file_name"])
        for digest, name in zip(
            table["sha256"].to_pylist(), table["file_name"].to_pylist(), strict=True
        ):
            known.setdefault(digest, (uri, name))
    return known


def find_duplicates(
    pictures: Iterable[Picture], known: dict[bytes, tuple[str, str]]
) -> list[Duplicate]:
    """Pictures that other sets hold, and all but the one of the lowest image id among those of one
    content, by ascending image id.
    """
    found = []
    seen: dict[str, str] = {}
    for picture in sorted(pictures):
        if (elsewhere := known.get(bytes.fromhex(picture.sha256))) is not None:
            found.append(Duplicate(picture, elsewhere[1], elsewhere[0]))
        elif picture.sha256 in seen:
            found.append(Duplicate(picture, seen[picture.sha256], ""))
        else:
            seen[picture.sha256] = picture.file_name
    return found


def describe(duplicates: Sequence[Duplicate]) -> Duplicates:
    """What the index says: how many by set ("" is the set itself), and the first of them by name."""
    named = [
        NamedDuplicate(file_name=one.picture.file_name, same_as=one.same_as, set=one.uri)
        for one in duplicates[:NAMED]
    ]
    counts = Counter(one.uri for one in duplicates)
    return Duplicates(dict(sorted(counts.items())), tuple(named))


def to_quarantine(duplicates: Sequence[Duplicate]) -> list[Quarantined]:
    return [
        Quarantined(
            "duplicate", one.picture.file_name, one.why, f'{{"id": {one.picture.image_id}}}'
        )
        for one in duplicates
    ]
