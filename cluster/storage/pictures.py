"""The picture files of a folder: the one rule of all who list one. What is passed over is counted
by its reason.
"""

from __future__ import annotations

import posixpath
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from cluster.storage import files
from cluster.storage.uris import absolute, is_plain
from detector.image import FORMATS, SUFFIXES, ImageError, opened

LEFT_BY_TOOLS = frozenset(
    ("@eadir", "__macosx", "thumbs.db", "desktop.ini", "#recycle", "$recycle.bin", "lost+found")
)
"""Names, in lower case, of what file managers and servers leave in folders, beside all names that
begin with a dot.
"""
PREDICTIONS = "predictions.parquet"
"""A folder with this file has the results of a prediction: its pictures are drawn, not data."""
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
_SHOWN_SUFFIXES = 5


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
    """The pictures below `folder`. A file is one by its suffix, in any case, or without a suffix by
    its first bytes. What cannot be read, such as a link that leads nowhere, is one by its suffix
    too: who reads it will find the fault. `PlainError` where the storage fails.
    """
    folder = absolute(folder)
    entries = files.list_entries(folder)
    uris = [entry.uri for entry in entries]
    faults = {entry.uri: entry.fault for entry in entries if entry.fault}
    drawn = {posixpath.dirname(uri) + "/" for uri in uris if posixpath.basename(uri) == PREDICTIONS}
    pictures: list[str] = []
    unnamed: list[str] = []
    passed: Counter[str] = Counter()
    other: Counter[str] = Counter()
    for uri in uris:
        suffix = suffix_of(uri)
        if not is_plain(uri):
            passed[UNREADABLE_KEY] += 1
        elif is_left_by_tools(uri[len(folder) + 1 :]):
            passed[HIDDEN] += 1
        elif drawn and any(uri.startswith(results) for results in drawn):
            passed[DRAWN] += 1
        elif suffix in SUFFIXES:
            pictures.append(uri)
        elif uri in faults:
            passed[faults[uri]] += 1
        elif not suffix:
            unnamed.append(uri)
        elif suffix in UNREAD:
            passed[f"a {suffix} picture, whose format is not read; convert it to JPEG"] += 1
        else:
            other[suffix] += 1
    with ThreadPoolExecutor(files.TRANSFER_THREADS) as pool:
        for uri, found in zip(unnamed, pool.map(is_picture, unnamed), strict=True):
            if found:
                pictures.append(uri)
            else:
                other[""] += 1
    return Pictures(sorted(pictures), dict(passed), _others(other))


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
    except ImageError:
        return False


def _others(counts: Counter[str]) -> dict[str, int]:
    """Files that are no pictures, by reason, the most frequent suffixes by name."""
    reasons: defaultdict[str, int] = defaultdict(int)
    for number, (suffix, count) in enumerate(counts.most_common()):
        named = suffix and number < _SHOWN_SUFFIXES
        reasons[f"a {suffix} file" if named else "a file that is no picture"] += count
    return dict(reasons)
