"""What an annotation file is, by its first bytes: for the message where `--format` says another."""

from __future__ import annotations

import json
from typing import NamedTuple

from cluster.errors import UsageError
from cluster.formats import csv_boxes, openimages
from cluster.formats.csv_lines import column_names
from cluster.storage import files

_HEAD_BYTES = 65_536
_PACKED = {b"PK\x03\x04": "a ZIP file", b"BZh": "a bzip2 file", b"\xfd7zXZ": "an XZ file"}


class FileKind(NamedTuple):
    """`what` the file is, and the `format` that reads it; empty where none does. Then `remedy` says
    what to do.
    """

    what: str
    format: str
    remedy: str = ""


def check_kind(uri: str, format: str, expected: str) -> None:
    """`UsageError` where the annotations are a file that is plainly of another format than
    `format`, whose annotations are what `expected` says. Other errors: see `files.open_input`.
    """
    if files.size(uri) is None:
        return
    kind = _kind_of(files.read_range(uri, 0, _HEAD_BYTES))
    # Formats that read the same files begin alike: parquet, parquet_xyxy.
    if kind is None or format.startswith(kind.format or "none"):
        return
    remedy = f"say --format {kind.format}" if kind.format else kind.remedy
    raise UsageError(
        f"--annotations {uri}: is {kind.what}, but annotations of format {format} are {expected};"
        f" {remedy}"
    )


def _kind_of(head: bytes) -> FileKind | None:
    """None where the first bytes do not tell."""
    if head.startswith(b"PAR1"):
        return FileKind("a Parquet file", "parquet")
    packed = next((what for magic, what in _PACKED.items() if head.startswith(magic)), None)
    if packed is not None:
        return FileKind(packed, "", "unpack it")
    text = head.decode("utf-8-sig", "replace").lstrip()
    first, _, rest = text.partition("\n")
    if text.startswith(("{", "[")):
        return _kind_of_json(first, rest)
    if text.startswith("<"):
        return FileKind("an XML file", "", "of VOC's XML files name the folder, with --format voc")
    columns = column_names(first)
    for format, needed in (("openimages", openimages.COLUMNS), ("csv", csv_boxes.COLUMNS)):
        if not set(needed) - set(columns):
            return FileKind("a CSV file", format)
    if len(columns) > 2 and first.isprintable():
        needed = ", ".join(csv_boxes.COLUMNS)
        remedy = f"for --format csv name its columns {needed} in the first line"
        return FileKind(f"a CSV file that begins with {first.strip()[:60]!r}", "", remedy)
    return None


def _kind_of_json(first: str, rest: str) -> FileKind:
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return FileKind("a JSON file", "coco")
    if rest.lstrip().startswith("{"):
        remedy = "write one object with the lists images, annotations and categories (COCO)"
        return FileKind("JSON lines, an object on each line", "", remedy)
    return FileKind("a JSON file", "coco")
