"""Which picture of a folder a task of Label Studio means. The file has an address of its server:

    /data/upload/1/ab12cd34-my_cat.jpg   uploaded: a prefix, and blanks have become underscores
    /data/local-files/?d=day/cat.jpg     a file of the server's disk
    s3://bucket/day/cat.jpg              a file of a bucket

and the folder has day/cat.jpg, cat.jpg or ab12cd34-my_cat.jpg.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import takewhile
from posixpath import basename
from urllib.parse import parse_qs, unquote, urlsplit

from cluster.formats.names import composed, is_text
from cluster.storage.pictures import suffix_of
from detector.image import SUFFIXES

NO_PICTURE = "its data names no picture"
NOT_THERE = "no picture in the images folder has the last part of its name"
SEVERAL = "several pictures in the images folder have the last part of its name"


class PictureNames:
    """The pictures of a folder, found by the last parts of their names."""

    def __init__(self, pictures: Sequence[str]):
        self.by_last: defaultdict[str, list[str]] = defaultdict(list)
        self.by_uploaded: defaultdict[str, list[str]] = defaultdict(list)
        for picture in pictures:
            self.by_last[composed(basename(picture))].append(picture)
            self.by_uploaded[_as_uploaded(basename(picture))].append(picture)

    def find(self, name: str | None) -> tuple[str | None, str | None]:
        """(file name, None), or (None, why there is none). Of several pictures of the same last
        part, the one is meant that shares the most parts with `name`.
        """
        if not name:
            return None, NO_PICTURE
        for candidates in self._candidates(basename(name)):
            shared = [_shared_parts(candidate, name) for candidate in candidates]
            best = [
                one for one, count in zip(candidates, shared, strict=True) if count == max(shared)
            ]
            if best:
                return (best[0], None) if len(best) == 1 else (None, SEVERAL)
        return None, NOT_THERE

    def _candidates(self, last: str) -> Iterator[list[str]]:
        yield self.by_last.get(composed(last), [])
        if prefixed := re.fullmatch(r"[0-9a-f]{8}-(.+)", last):
            yield self.by_last.get(composed(prefixed[1]), [])
            yield self.by_uploaded.get(_as_uploaded(prefixed[1]), [])


def _as_uploaded(last: str) -> str:
    """A file name as Label Studio's server (Django) stores it."""
    return re.sub(r"[^-\w.]", "", composed(last).strip().replace(" ", "_"))


def _shared_parts(one: str, other: str) -> int:
    """How many of the folders in front of the last parts are the same, counted from the end."""
    pairs = zip(one.split("/")[-2::-1], other.split("/")[-2::-1], strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def picture_of(data: object) -> str | None:
    """The path of the picture that the data of a task name: that of the field `image`, else of the
    first text that ends like the name of a picture.
    """
    if not isinstance(data, dict):
        return None
    texts = [data.get("image"), *data.values()]
    paths = [_path(text) for text in texts if is_text(text) and not text.startswith("data:")]
    return next((path for path in paths if suffix_of(path) in SUFFIXES), None)


def _path(address: str) -> str:
    """The path in an address of the server, a bucket or a disk, without codes such as %20."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return address
    local = parse_qs(parts.query).get("d")
    if local and parts.path.rstrip("/").endswith("local-files"):
        return local[0].replace("\\", "/")
    path = parts.path if parts.scheme or address.startswith("/data/") else address
    return unquote(path).replace("\\", "/")
