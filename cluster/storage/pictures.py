"""The picture files of a folder: the one rule of all who list one. What is passed over is counted
by its reason.
"""

from __future__ import annotations

import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

from cluster.storage import files
from cluster.storage.local_tree import Entry
from cluster.storage.uris import absolute, is_plain
from detector.image import FORMATS, SUFFIXES, ImageError, TooManyPixels, opened

LEFT_BY_TOOLS = frozenset(
    ("@eadir", "__macosx", "thumbs.db", "desktop.ini", "#recycle", "$recycle.bin", "lost+found")
)
"""Names, in lower case, of what file managers and servers leave in folders, beside all names that
begin with a dot.
"""
PREDICTIONS, OVERLAYS = "predictions.parquet", "overlays"
"""A folder with this file has the results of a prediction: the pictures in this folder of it are
drawn, not data.
"""
UNREAD = frozenset(
    ".heic .heif .hif .jxl .cr2 .cr3 .nef .arw .dng .raf .psd .svg .ico .icns .eps .tga .exr .hdr"
    " .dcm".split()
)
"""Suffixes of pictures in formats that the decoder does not read."""
UNREADABLE_KEY = (
    "an object whose key has an empty name, . or .. between slashes; copy it to a plain key"
)
HIDDEN = "a hidden file or one that a tool left behind"
DRAWN = "a file of an earlier prediction"
_HEAD_BYTES = 65_536
_SHOWN_SUFFIXES, _KNOWN_SUFFIXES = 5, 1000
_LOOKED_AT = 256
"""Files of a listing whose first bytes are read side by side."""
_PICTURE, _NONE = "picture", "none"


@dataclass(frozen=True)
class Pictures:
    """The picture files below a folder, and what else is there."""

    uris: list[str]
    """Sorted."""
    passed_over: dict[str, int]
    """How many files that look like pictures, or are hidden, were passed over, by reason."""
    others: dict[str, int]
    """How many files that are no pictures, by reason."""


def list_pictures(folder: str) -> Pictures:
    """All that `Pictures` has, in memory. See `Listing`."""
    listing = Listing(folder)
    return Pictures([entry.uri for entry in listing], listing.passed_over, listing.others)


class Listing:
    """The pictures below a folder, sorted, one after another. A file is one by its suffix, in any
    case, or without a suffix by its first bytes. What cannot be read, such as a link that leads
    nowhere, is one by its suffix too: who reads it will find the fault. `PlainError` where the
    storage fails.

    It can be iterated once; after that it knows what was passed over.
    """

    def __init__(self, folder: str):
        self.folder = absolute(folder)
        self._passed: Counter[str] = Counter()
        self._other: Counter[str] = Counter()
        self._results: tuple[str, bool] = ("", False)

    @property
    def passed_over(self) -> dict[str, int]:
        return dict(self._passed)

    @property
    def others(self) -> dict[str, int]:
        return _others(self._other)

    def __iter__(self) -> Iterator[Entry]:
        entries = files.iterate_entries(self.folder)
        with ThreadPoolExecutor(files.TRANSFER_THREADS) as pool:
            while some := list(islice(entries, _LOOKED_AT)):
                kinds = [self._kind(entry) for entry in some]
                looked_at = [entry.uri for entry, kind in zip(some, kinds, strict=True) if not kind]
                found = dict(zip(looked_at, pool.map(is_picture, looked_at), strict=True))
                for entry, kind in zip(some, kinds, strict=True):
                    if kind or found[entry.uri]:
                        if kind in ("", _PICTURE):
                            yield entry
                    else:
                        self._other[""] += 1

    def _kind(self, entry: Entry) -> str:
        """`_PICTURE`; `_NONE`, which is counted; or "" where its first bytes must be looked at."""
        uri, suffix = entry.uri, suffix_of(entry.uri)
        if not is_plain(uri):
            self._passed[UNREADABLE_KEY] += 1
        elif is_left_by_tools(uri[len(self.folder) + 1 :]):
            self._passed[HIDDEN] += 1
        elif self._is_of_a_prediction(uri):
            self._passed[DRAWN] += 1
        elif suffix in SUFFIXES:
            return _PICTURE
        elif entry.fault:
            self._passed[entry.fault] += 1
        elif not suffix:
            return ""
        elif suffix in UNREAD:
            self._passed[f"a {suffix} picture, whose format is not read; convert it to JPEG"] += 1
        else:
            # Names that count (a.000001) would be as many as the files.
            known = suffix in self._other or len(self._other) < _KNOWN_SUFFIXES
            self._other[suffix if known else ""] += 1
        return _NONE

    def _is_of_a_prediction(self, uri: str) -> bool:
        """Whether a file is `PREDICTIONS`, or drawn beside it."""
        if posixpath.basename(uri) == PREDICTIONS:
            return True
        above, drawn, _ = uri.rpartition(f"/{OVERLAYS}/")
        if not drawn or len(above) < len(self.folder):
            return False
        if self._results[0] != above:
            # One look for each folder: its files come together.
            self._results = (above, files.exists(f"{above}/{PREDICTIONS}"))
        return self._results[1]


def suffix_of(name: str) -> str:
    """The suffix of a file name with its dot, in lower case; empty without one."""
    return posixpath.splitext(posixpath.basename(name))[1].lower()


def is_left_by_tools(name: str) -> bool:
    """Whether the file of this name, relative to the folder of the data, is no part of the data:
    `.ipynb_checkpoints/a.jpg`, `._a.jpg`, `@eaDir/a.jpg`.
    """
    return any(part.startswith(".") or part.lower() in LEFT_BY_TOOLS for part in name.split("/"))


def is_picture(uri: str) -> bool:
    """Whether the first bytes of a file are those of a picture that the decoder reads."""
    try:
        with opened(files.read_range(uri, 0, _HEAD_BYTES)) as picture:
            return picture.format in (*FORMATS, "MPO")
    except TooManyPixels:
        return True
    except ImageError:
        return False


def _others(counts: Counter[str]) -> dict[str, int]:
    """Files that are no pictures, by reason, the most frequent suffixes by name."""
    reasons: defaultdict[str, int] = defaultdict(int)
    for number, (suffix, count) in enumerate(counts.most_common()):
        named = suffix and number < _SHOWN_SUFFIXES
        reasons[f"a {suffix} file" if named else "a file that is no picture"] += count
    return dict(reasons)
