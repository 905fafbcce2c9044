"""Read Pascal VOC annotations: a folder of XML files, one an image. A bad file or object costs
itself and goes to the quarantine.

VOC counts pixels from 1 and includes the last one; here boxes count from 0 and end behind it: (xmin
- 1, ymin - 1, xmax, ymax). Objects marked `difficult`, which the VOC evaluation neither rewards nor
punishes, become crowds, which COCO's ignores in the same way.

A classes.txt in the folder, a name a line, gives the order of the labels. Without one the names
that occur, sorted, are the classes; then two folders have the same labels only when the same
classes occur in them. Category ids count from 1, as do image ids, in the order of the file names.
"""

from __future__ import annotations

import hashlib
import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from cluster.errors import DataError
from cluster.formats.annotations import Annotation, Findings, ImageRecord, Source, collect
from cluster.formats.names import fault_of_name, inside_folder, is_text
from cluster.shards.format import Category
from cluster.storage import files
from cluster.storage.uris import join

CLASSES = "classes.txt"
REPAIR = "difficult objects, stored as crowds"


class VocObject(NamedTuple):
    """`number` counts the objects of a file from 1. `fault` is why it cannot be used; then the
    other fields mean nothing.
    """

    number: int
    name: str
    box: tuple[float, float, float, float]
    difficult: bool
    fault: str | None
    raw: str


class VocFile(NamedTuple):
    file_name: str
    height: int | None
    width: int | None
    objects: list[VocObject]
    fault: str | None
    sha256: str


def read_voc(uri: str, keep: Callable[[str], bool] = lambda name: True) -> Source:
    """Read all *.xml below `uri`. `DataError` when there are none, when no class occurs, and when
    two name the same image.

    Images whose file name `keep` turns down belong to another split: they and their annotations are
    as if not listed, but their classes count.
    """
    listed = [name for name, _ in files.list_files(uri, [".xml"])]
    if not listed:
        raise DataError(
            f"{uri}: no .xml file below it; VOC data needs the folder of its Annotations; check"
            " --annotations"
        )
    with ThreadPoolExecutor(files.TRANSFER_THREADS) as pool:
        parsed = list(pool.map(lambda name: parse_voc(files.read_bytes(name)), listed))
    given = join(uri, CLASSES)
    classes = (
        read_lines(given)
        if files.exists(given)
        else sorted({one.name for file in parsed for one in file.objects if one.fault is None})
    )
    if not classes:
        raise DataError(
            f"{uri}: no object with a name in any of its files; a detector needs at least one class"
        )
    digest = hashlib.sha256(
        repr(
            [
                classes,
                *(
                    (name[len(uri) :], file.sha256)
                    for name, file in zip(listed, parsed, strict=True)
                ),
            ]
        ).encode()
    ).hexdigest()

    findings, labels = Findings(), {name: label for label, name in enumerate(classes)}
    images: dict[str, ImageRecord] = {}
    total = annotated = lost = 0
    for number, (name, file) in enumerate(
        sorted(zip(listed, parsed, strict=True), key=lambda pair: (pair[1].file_name, pair[0])),
        start=1,
    ):
        if not keep(file.file_name):
            continue
        total, annotated = total + 1, annotated + len(file.objects)
        if file.fault is not None:
            findings.reject(
                "image", name[len(uri) + 1 :], file.fault, {"file_name": file.file_name}
            )
            lost += len(file.objects)
            continue
        if file.file_name in images:
            raise DataError(
                f"{name}: describes {file.file_name!r}, which another file describes too; each"
                " image needs one file: remove one"
            )
        annotations = tuple(
            to_annotation(one, labels)
            for one in file.objects
            if is_usable(one, file, labels, findings)
        )
        images[file.file_name] = ImageRecord(
            number, file.file_name, file.height, file.width, annotations
        )
    findings.repairs[REPAIR] += sum(
        one.crowd for image in images.values() for one in image.annotations
    )
    categories = tuple(Category(label, label + 1, name) for label, name in enumerate(classes))
    return Source(
        categories,
        collect(list(images.values())),
        tuple(findings.quarantined),
        dict(+findings.repairs),
        total,
        annotated,
        lost,
        len(parsed),
        digest,
    )


def read_lines(uri: str) -> list[str]:
    """The class names of a text file, one a line, blank lines left out. `DataError` when it is not
    text or names one twice.
    """
    try:
        lines = [line.strip() for line in files.read_bytes(uri).decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise DataError(
            f"{uri}: byte {error.start} is not UTF-8; it must hold a class name a line"
        ) from error
    names = [line for line in lines if line]
    if len(set(names)) < len(names):
        raise DataError(
            f"{uri}: names {next(name for name in names if names.count(name) > 1)!r} twice; each"
            " class needs a name of its own"
        )
    return names


def parse_voc(data: bytes) -> VocFile:
    sha256 = hashlib.sha256(data).hexdigest()
    try:
        # Expat resolves no external entities and stops where internal ones multiply.
        root = ElementTree.fromstring(data)
        objects = [
            parse_object(number, node) for number, node in enumerate(root.iter("object"), start=1)
        ]
    except (ElementTree.ParseError, ValueError, LookupError, RecursionError) as error:
        return VocFile("", None, None, [], f"it is not valid XML: {error}", sha256)
    file_name = (root.findtext("filename") or "").strip()
    sides = (root.findtext(f"size/{name}", "").strip() for name in ("height", "width"))
    sizes = [int(value) for value in sides if value.isdecimal() and len(value) < 12]
    height, width = (
        sizes if len(sizes) == 2 and min(sizes) > 0 and max(sizes) < 2**31 else (None, None)
    )
    fault = fault_of_name(file_name)
    fault = fault.replace("file_name", "<filename>") if fault else None
    return VocFile(
        file_name if fault else inside_folder(file_name) or "",
        height,
        width,
        objects,
        fault,
        sha256,
    )


def parse_object(number: int, node: ElementTree.Element) -> VocObject:
    name = (node.findtext("name") or "").strip()
    raw = ElementTree.tostring(node, encoding="unicode")
    try:
        corners = [
            float(node.findtext(f"bndbox/{side}", "missing"))
            for side in ("xmin", "ymin", "xmax", "ymax")
        ]
    except ValueError:
        corners = []
    fault = None
    if not name or not is_text(name):
        fault = "it has no name"
    elif not corners or not all(math.isfinite(value) and abs(value) < 1e9 for value in corners):
        fault = "its bndbox is not four finite numbers"
    x1, y1, x2, y2 = corners if fault is None else (0.0, 0.0, 0.0, 0.0)
    return VocObject(
        number,
        name,
        (x1 - 1, y1 - 1, x2, y2),
        (node.findtext("difficult") or "0").strip() == "1",
        fault,
        raw,
    )


def is_usable(one: VocObject, file: VocFile, labels: dict[str, int], findings: Findings) -> bool:
    fault = one.fault or (None if one.name in labels else f"its class is not in {CLASSES}")
    if fault is not None:
        findings.reject(
            "annotation",
            f"{one.number} of {file.file_name}",
            fault,
            {"file_name": file.file_name, "object": one.raw},
        )
    return fault is None


def to_annotation(one: VocObject, labels: dict[str, int]) -> Annotation:
    return Annotation(one.number, labels[one.name], one.box, one.difficult, None)
