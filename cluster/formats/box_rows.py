"""A CSV file with a box in each line -> a `Source`. What the columns mean is the format's:
`csv_boxes` and `openimages`.

The images are those that the lines name; their ids count from 1 in the order of their first lines.
A line that cannot be used costs itself: it goes to the quarantine under its number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from cluster.errors import DataError
from cluster.formats.annotations import SWAPPED, Box, Findings, Keep, Source, most_frequent
from cluster.formats.columns import Columns
from cluster.formats.csv_lines import Line, read_lines
from cluster.formats.names import fault_of_name, is_text, plain_name
from cluster.formats.numbers import as_coordinates
from cluster.shards.format import Category

NO_CLASS = "its class has no name"
NOT_NUMBERS = "its box is not four finite numbers"


class BoxRow(NamedTuple):
    """What a line says. `name` is that of the class, `size` the height and width of the picture in
    px, 0 where not given. `box` is XYXY, None for a line that names an image without objects.
    `fault` is why the box cannot be used.
    """

    file_name: str
    name: str
    box: Box | None
    crowd: bool = False
    size: tuple[int, int] = (0, 0)
    fault: str | None = None


class Classes(NamedTuple):
    """Known classes: `names` by what the lines call them, in the order of the labels, and the file
    that lists them.
    """

    names: Mapping[str, str]
    file: str


def read_corners(
    fields: Mapping[str, str], columns: Sequence[str], findings: Findings
) -> Box | str:
    """The numbers of four columns, x1, y1, x2, y2, ordered; or why they are no box."""
    corners = as_coordinates(fields[name] for name in columns)
    if corners is None:
        return NOT_NUMBERS
    x1, y1, x2, y2 = corners
    if x1 > x2 or y1 > y2:
        findings.repairs[SWAPPED] += 1
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def read_boxes(
    uri: str,
    needed: Sequence[str],
    parse: Callable[[Mapping[str, str], Findings], BoxRow],
    keep: Keep,
    *,
    classes: Classes | None,
    normalised: bool,
    identity: object,
) -> Source:
    """Read the file `uri` with the `needed` columns. Without `classes` they are those that occur,
    sorted. `identity` is what was read beside the file. `DataError` where no line names an image
    or, without `classes`, a class.
    """
    digest = hashlib.sha256(repr((identity, classes)).encode("utf-8", "backslashreplace"))
    table = _Table(classes, keep)
    for line in read_lines(uri, needed, digest):
        table.take(line, parse)
    if not table.positions and not table.findings.quarantined:
        raise DataError(f"{uri}: has no line behind the first; there is nothing to prepare")
    if not table.labels:
        faults = [entry.why for entry in table.findings.quarantined]
        raise DataError(
            f"{uri}: no usable box in any of its lines ({most_frequent(faults)}); a detector needs"
            " at least one class"
        )
    return table.to_source(digest.hexdigest(), normalised=normalised)


class _Table:
    """The lines of one file, taken one by one."""

    def __init__(self, classes: Classes | None, keep: Keep):
        self.classes, self.keep = classes, keep
        self.labels = {} if classes is None else {key: n for n, key in enumerate(classes.names)}
        self.columns, self.findings = Columns(), Findings()
        self.positions: dict[str, int] = {}
        """Of every image of the file; -1 where it belongs to another split."""

    def take(self, line: Line, parse: Callable[[Mapping[str, str], Findings], BoxRow]) -> None:
        own = Findings()
        row = BoxRow("", "", None) if line.fields is None else parse(line.fields, own)
        fault = line.fault or fault_of_name(row.file_name)
        if fault is not None:
            self._reject(line, fault, detail=line.detail)
            return
        owner = self._position(plain_name(row.file_name) or "", row.size)
        fault = row.fault or self._fault_of_class(row)
        if fault is None and row.box is not None:
            # The classes of all splits count, so that each split has the same labels.
            label = self.labels.setdefault(row.name, len(self.labels))
            if owner >= 0:
                self.findings.repairs += own.repairs
                self.columns.add_box(owner, label, row.box, number=line.number, crowd=row.crowd)
        elif fault is not None and owner >= 0:
            self._reject(line, fault)

    def _position(self, file_name: str, size: tuple[int, int]) -> int:
        if file_name not in self.positions:
            image_id = len(self.positions) + 1
            self.positions[file_name] = (
                self.columns.add_image(image_id, file_name, *size) if self.keep(file_name) else -1
            )
        return self.positions[file_name]

    def _fault_of_class(self, row: BoxRow) -> str | None:
        if row.box is None:
            return None
        if not row.name:
            return NO_CLASS
        if not is_text(row.name):
            return "the name of its class is not valid Unicode"
        if self.classes is not None and row.name not in self.classes.names:
            return f"its class is not in {self.classes.file}"
        return None

    def _reject(self, line: Line, fault: str, *, detail: str = "") -> None:
        record = {"line": line.text[:1000]}
        self.findings.reject("annotation", f"line {line.number}", fault, record, detail=detail)

    def to_source(self, digest: str, *, normalised: bool) -> Source:
        keys = sorted(self.labels) if self.classes is None else list(self.classes.names)
        names = keys if self.classes is None else [self.classes.names[key] for key in keys]
        order = {key: label for label, key in enumerate(keys)}
        images = self.columns.to_images(
            self.columns.boxes_N4(), [order[key] for key in self.labels], normalised=normalised
        )
        return Source(
            categories=tuple(Category(n, n + 1, name) for n, name in enumerate(names)),
            images=images,
            quarantined=tuple(self.findings.quarantined),
            repairs=dict(+self.findings.repairs),
            listed=len(images),
            annotated=len(images.labels_N) + len(self.findings.quarantined),
            lost=0,
            largest_id=len(self.positions),
            digest=digest,
        )
