"""Read CrowdHuman's annotations: a text file (.odgt) with one JSON object a line for each image. A
bad line or box costs itself alone and goes to the quarantine.

    {"ID": "273271,c9db", "gtboxes": [{"tag": "person", "fbox": [72, 202, 163, 503], ...}]}

The picture is ID.jpg. The one class is person; its box is the full one (`fbox`: x, y, width, height
in px), which also covers what is hidden or beyond the edge of the picture. Areas that the authors
exclude (tag "mask", or "ignore": 1 in "extra") become crowds. Image ids are the numbers of the
lines, from 1.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BufferedReader, RawIOBase
from typing import Any, cast

from cluster.errors import DataError, UsageError
from cluster.formats.annotations import (
    Annotation,
    Findings,
    ImageRecord,
    Keep,
    Source,
    images_of_records,
    keep_all,
)
from cluster.formats.names import fault_of_name, plain_name
from cluster.formats.numbers import as_coordinates, as_whole
from cluster.shards.format import Category
from cluster.storage import files
from detector import json_text

PERSON = Category(0, 1, "person")
IGNORED = "areas to ignore (tag mask, or ignore in extra), stored as crowds"
NOT_JSON = "its line is not a JSON object"
MAX_LINE = 64 << 20
"""Bytes; a line describes one image and has some kB."""


def read_crowdhuman(annotations: str, images: str, keep: Keep = keep_all) -> Source:
    """Read the file `annotations`; the folder `images` is not looked at. `UsageError` where the
    file is not there, `DataError` where it has no line.

    Images whose file name `keep` turns down belong to another split: they and their annotations
    count as not listed.
    """
    lines, digest = _Lines(keep), hashlib.sha256()
    try:
        with files.open_input(annotations) as file:
            for number, line in _numbered_lines(cast(RawIOBase, file), annotations):
                digest.update(line)
                if line.strip():
                    lines.take(number, line)
    except FileNotFoundError:
        raise UsageError(
            f"{annotations}: there is no such annotation file; check --annotations"
        ) from None
    except OSError as error:
        raise UsageError(
            f"{annotations}: the annotation file cannot be read ({files.reason(error)}); check"
            " --annotations"
        ) from error
    if not lines.largest_id:
        raise DataError(f"{annotations}: has no line; there is nothing to prepare")
    return lines.to_source(digest.hexdigest())


def _numbered_lines(file: RawIOBase, uri: str) -> Iterator[tuple[int, bytes]]:
    buffered, number = BufferedReader(file), 0
    while line := buffered.readline(MAX_LINE):
        number += 1
        if len(line) == MAX_LINE:
            raise DataError(
                f"{uri}: line {number} is longer than {MAX_LINE >> 20} MiB; CrowdHuman's form is"
                " one JSON object a line for each image"
            )
        yield number, line


@dataclass
class _Lines:
    """The lines of one file, taken one by one."""

    keep: Keep
    records: list[ImageRecord] = field(default_factory=list)
    line_of: dict[str, int] = field(default_factory=dict)
    """The first line of each picture, of all splits."""
    listed: int = 0
    lost: int = 0
    largest_id: int = 0
    findings: Findings = field(default_factory=Findings)

    def take(self, number: int, line: bytes) -> None:
        self.largest_id = number
        content, detail = _parse(line)
        if content is None:
            raw = {"line": line[:200].decode("utf-8", "replace")}
            self._reject(number, NOT_JSON, raw, detail=detail)
            return
        name, boxes = content.get("ID"), content.get("gtboxes")
        name = f"{name}.jpg" if isinstance(name, str) and name else name
        fault = fault_of_name(name)
        file_name = None if fault else plain_name(str(name))
        if file_name is not None and not self.keep(file_name):
            self.line_of.setdefault(file_name, number)
            return
        if fault is not None or file_name is None:
            self._reject(number, str(fault).replace("file_name", "ID"), content)
        elif not isinstance(boxes, list):
            self._reject(number, "it has no list gtboxes", content)
        elif (first := self.line_of.setdefault(file_name, number)) != number:
            why, detail = "another line has the same ID", f"line {first}"
            self._reject(number, why, content, detail=detail)
        else:
            annotations = self._read_boxes(number, file_name, boxes)
            self.listed += 1
            self.records.append(ImageRecord(number, file_name, None, None, annotations))

    def _reject(self, number: int, why: str, content: Any, *, detail: str = "") -> None:
        self.listed += 1
        boxes = content.get("gtboxes") if isinstance(content, dict) else None
        self.lost += len(boxes) if isinstance(boxes, list) else 0
        self.findings.reject("image", f"line {number}", why, content, detail=detail)

    def _read_boxes(self, line: int, file_name: str, boxes: list[Any]) -> tuple[Annotation, ...]:
        annotations = []
        for number, box in enumerate(boxes, start=1):
            read = _read_box(number, box)
            if isinstance(read, Annotation):
                annotations.append(read)
                continue
            where = f"box {number} of line {line} ({file_name})"
            self.findings.reject("annotation", where, read, box)
        return tuple(annotations)

    def to_source(self, digest: str) -> Source:
        stored = [one for record in self.records for one in record.annotations]
        self.findings.repairs[IGNORED] += sum(one.crowd for one in stored)
        return Source(
            categories=(PERSON,),
            images=images_of_records(self.records),
            quarantined=tuple(self.findings.quarantined),
            repairs=dict(+self.findings.repairs),
            listed=self.listed,
            annotated=len(stored) + self.lost + self.findings.rejected("annotation"),
            lost=self.lost,
            largest_id=self.largest_id,
            digest=digest,
        )


def _parse(line: bytes) -> tuple[dict[str, Any] | None, str]:
    """The content of a line; None where it has none that can be used, and why."""
    try:
        content = json_text.parse(line.strip().decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        return None, f"{error.msg}, column {error.colno}"
    except (ValueError, RecursionError) as error:
        return None, str(error)
    return (content, "") if isinstance(content, dict) else (None, type(content).__name__)


def _read_box(number: int, box: Any) -> Annotation | str:
    """Box `number` of an image, or the reason why it cannot be used."""
    if not isinstance(box, dict):
        return "the box is not an object"
    tag, sides, extra = box.get("tag"), box.get("fbox"), box.get("extra")
    if tag not in ("person", "mask"):
        return "its tag is neither person nor mask"
    ignore = as_whole(extra.get("ignore", 0)) if isinstance(extra, dict) else 0
    if ignore not in (0, 1):
        return "its ignore is neither 0 nor 1"
    finite = as_coordinates(sides) if isinstance(sides, list) else None
    if finite is None or len(finite) != 4:
        return "its fbox is missing" if sides is None else "its fbox is not four finite numbers"
    x, y, width, height = finite
    crowd = tag == "mask" or ignore == 1
    return Annotation(number, 0, (x, y, x + width, y + height), crowd, None)
