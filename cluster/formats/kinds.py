"""The names of the annotation formats, and what a file is by how it begins: to find its format, and
for the message where `--format` says another.
"""

from __future__ import annotations

import json
import re
import zlib
from typing import Literal, NamedTuple

from cluster.formats import csv_boxes, openimages
from cluster.formats.csv_lines import column_names
from cluster.storage import files

Format = Literal[
    "coco",
    "voc",
    "yolo",
    "crowdhuman",
    "cvat",
    "labelstudio",
    "openimages",
    "csv",
    "parquet",
    "parquet_xywh",
    "parquet_xyxy",
    "parquet_cxcywh",
]
"""The names of `read.READERS`, for configuration fields."""

_HEAD_BYTES = 1 << 16
_GZIP = b"\x1f\x8b"
_OTHERS = {
    b"BZh": "a bzip2 file",
    b"\xfd7zXZ": "an XZ file",
    b"PK\x03\x04": "a ZIP file",
    b"7z\xbc\xaf\x27\x1c": "a 7z file",
    b"Rar!\x1a\x07": "a RAR file",
    b"\x28\xb5\x2f\xfd": "a Zstandard file",
}
_TAR_AT, _TAR = 257, b"ustar"
UNPACK = "unpack it and name the folder"
_COCO = re.compile(r'"(images|annotations)"\s*:\s*\[')
_CROWDHUMAN = re.compile(r'"gtboxes"\s*:')
_TASKS = re.compile(r'"(annotations|completions)"\s*:\s*\[')
_LABELSTUDIO = re.compile(r'"(rectanglelabels|polygonlabels|annotation_id)"')


class Kind(NamedTuple):
    """`what` a file is, the `format` that reads it, None where none does, and what to do."""

    what: str
    format: Format | None
    remedy: str


def _of(format: Format, what: str) -> Kind:
    return Kind(what, format, f"say --format {format}")


def kind_of(uri: str) -> Kind | None:
    """What a file is; None where its begin does not tell. Errors: see `files.open_input`."""
    head = files.read_range(uri, 0, _HEAD_BYTES)
    if head.startswith(_GZIP):
        try:
            head = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(head, _HEAD_BYTES)
        except zlib.error:
            return None
    packed = next((what for magic, what in _OTHERS.items() if head.startswith(magic)), None)
    if head[_TAR_AT:].startswith(_TAR):
        packed = "a tar archive"
    if packed is not None:
        return Kind(packed, None, UNPACK)
    if uri.lower().endswith((".yaml", ".yml")):
        return Kind("a YAML file", None, "name the folder of the labels; their classes are found")
    if head.startswith(b"PAR1"):
        return _of("parquet", "a Parquet file")
    text = head.decode("utf-8-sig", "replace").lstrip()
    if text.startswith("<"):
        return _kind_of_xml(text)
    return _kind_of_json(text) if text.startswith(("{", "[")) else _kind_of_table(text)


def _kind_of_xml(text: str) -> Kind | None:
    # The first tag that is neither a declaration nor a comment.
    root = re.search(r"<([A-Za-z_][\w.-]*)", re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL))
    name = root[1] if root else None
    if name == "annotations":
        return _of("cvat", "an XML file of CVAT")
    if name == "annotation":
        remedy = "name the folder of these files and say --format voc"
        return Kind("one of the XML files of VOC", "voc", remedy)
    return None


def _kind_of_json(text: str) -> Kind | None:
    if text.startswith("["):
        tasks = re.search(r'"data"\s*:\s*\{', text) and _TASKS.search(text)
        theirs = tasks or _LABELSTUDIO.search(text)
        return _of("labelstudio", "a JSON file of Label Studio") if theirs else None
    if _CROWDHUMAN.search(text):
        return _of("crowdhuman", "an .odgt file of CrowdHuman")
    first, _, rest = text.partition("\n")
    if rest.lstrip().startswith("{") and _is_json(first):
        remedy = "write one object with the lists images, annotations and categories (COCO)"
        return Kind("JSON lines, an object on each line", None, remedy)
    return _of("coco", "a COCO JSON file") if _COCO.search(text) else None


def _kind_of_table(text: str) -> Kind | None:
    first = text.partition("\n")[0]
    columns = column_names(first)
    if not set(openimages.COLUMNS) - set(columns):
        return _of("openimages", "a CSV file of OpenImages")
    if not set(csv_boxes.COLUMNS) - set(columns):
        return _of("csv", "a CSV file")
    if len(columns) > 2 and first.isprintable():
        needed = ", ".join(csv_boxes.COLUMNS)
        remedy = f"for --format csv name its columns {needed} in the first line"
        return Kind(f"a CSV file that begins with {first.strip()[:60]!r}", None, remedy)
    return None


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
