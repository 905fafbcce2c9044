"""Read Pascal VOC annotations: a folder of XML files, one for each image. A bad file or object
costs itself alone and goes to the quarantine.

VOC counts pixels from 1 and includes the last one. Our boxes count from 0 and are half-open: (xmin
- 1, ymin - 1, xmax, ymax). Objects marked `difficult`, which the VOC evaluation neither rewards nor
punishes, become crowds, which COCO's ignores in the same way.

A classes.txt in the folder, one name a line, gives the order of the labels. Without it the classes
are the names that occur, sorted; two folders then have the same labels only when the same classes
occur in them. Category ids count from 1, and so do image ids, in the order of the file names.
"""

from __future__ import annotations

import hashlib
import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from cluster.errors import DataError
from cluster.formats.annotations import (
    Annotation,
    Box,
    Findings,
    ImageRecord,
    Keep,
    Source,
    images_of_records,
    keep_all,
)
from cluster.formats.class_names import CLASSES, read_class_list
from cluster.formats.names import fault_of_name, inside_folder, is_text
from cluster.shards.format import Category
from cluster.storage import files
from cluster.storage.pictures import is_left_by_tools
from cluster.storage.uris import join

DIFFICULT = "difficult objects, stored as crowds"


class VocObject(NamedTuple):
    """An <object>. `number` counts the objects of a file from 1. `fault` is why it cannot be used;
    then `box` and `difficult` mean nothing. `raw` is its XML.
    """

    number: int
    name: str
    box: Box
    difficult: bool
    fault: str | None
    raw: str


class VocFile(NamedTuple):
    """An XML file. `fault` is why it cannot be used; height and width are None where it gives none.
    `sha256` is that of its bytes.
    """

    file_name: str
    height: int | None
    width: int | None
    objects: list[VocObject]
    fault: str | None
    sha256: str


def read_voc(annotations: str, images: str, keep: Keep = keep_all) -> Source:
    """Read all *.xml below the folder `annotations`; the folder `images` is not looked at.
    `DataError` when there are none, when no class occurs, and when two name the same image.

    Images whose file name `keep` turns down belong to another split: they and their annotations
    count as not listed, but their classes count.
    """
    uris = [
        uri
        for uri, _ in files.list_files(annotations, [".xml"])
        if not is_left_by_tools(uri[len(annotations) + 1 :])
    ]
    if not uris:
        raise DataError(
            f"{annotations}: no .xml file below it; VOC data needs the folder of its Annotations;"
            " check --annotations"
        )
    with ThreadPoolExecutor(files.TRANSFER_THREADS) as pool:
        parsed = list(pool.map(lambda uri: parse_voc(files.read_bytes(uri)), uris))
    names = [uri[len(annotations) :] for uri in uris]
    classes = _class_names(annotations, parsed)
    identity = [classes, *((name, file.sha256) for name, file in zip(names, parsed, strict=True))]

    findings = Findings()
    of_split = [
        (number, name[1:], file)
        for number, (name, file) in enumerate(
            sorted(zip(names, parsed, strict=True), key=lambda pair: (pair[1].file_name, pair[0])),
            start=1,
        )
        if keep(file.file_name)
    ]
    records = _read_records(annotations, of_split, classes, findings)
    findings.repairs[DIFFICULT] += sum(
        annotation.crowd for record in records for annotation in record.annotations
    )
    return Source(
        categories=tuple(Category(label, label + 1, name) for label, name in enumerate(classes)),
        images=images_of_records(records),
        quarantined=tuple(findings.quarantined),
        repairs=dict(+findings.repairs),
        listed=len(of_split),
        annotated=sum(len(file.objects) for _, _, file in of_split),
        lost=sum(len(file.objects) for _, _, file in of_split if file.fault is not None),
        largest_id=len(parsed),
        digest=hashlib.sha256(repr(identity).encode()).hexdigest(),
    )


def _class_names(folder: str, parsed: Sequence[VocFile]) -> list[str]:
    listed = join(folder, CLASSES)
    if files.exists(listed):
        classes = read_class_list(listed)
    else:
        used = {one.name for file in parsed for one in file.objects if one.fault is None}
        classes = sorted(used)
    if not classes:
        raise DataError(
            f"{folder}: no object with a name in any of its files; a detector needs at least one"
            " class"
        )
    return classes


def _read_records(
    folder: str,
    numbered: Sequence[tuple[int, str, VocFile]],
    classes: Sequence[str],
    findings: Findings,
) -> list[ImageRecord]:
    """The usable images of (image id, name of the XML file, its content)."""
    labels = {name: label for label, name in enumerate(classes)}
    records: dict[str, ImageRecord] = {}
    for image_id, name, file in numbered:
        if file.fault is not None:
            findings.reject("image", name, file.fault, {"file_name": file.file_name})
            continue
        if file.file_name in records:
            raise DataError(
                f"{join(folder, name)}: describes {file.file_name!r}, which another file describes"
                " too; each image needs one file: remove one"
            )
        annotations = tuple(
            Annotation(one.number, labels[one.name], one.box, one.difficult, None)
            for one in file.objects
            if _is_usable(one, file, labels, findings)
        )
        records[file.file_name] = ImageRecord(
            image_id, file.file_name, file.height, file.width, annotations
        )
    return list(records.values())


def _is_usable(one: VocObject, file: VocFile, labels: dict[str, int], findings: Findings) -> bool:
    fault = one.fault or (None if one.name in labels else f"its class is not in {CLASSES}")
    if fault is not None:
        where = f"{one.number} of {file.file_name}"
        record = {"file_name": file.file_name, "object": one.raw}
        findings.reject("annotation", where, fault, record)
    return fault is None


def parse_voc(data: bytes) -> VocFile:
    """The content of one XML file."""
    sha256 = hashlib.sha256(data).hexdigest()
    try:
        # Expat resolves no external entities and stops where internal ones multiply.
        root = ElementTree.fromstring(data)
        objects = [
            _parse_object(number, node) for number, node in enumerate(root.iter("object"), start=1)
        ]
    except (ElementTree.ParseError, ValueError, LookupError, RecursionError) as error:
        return VocFile("", None, None, [], f"it is not valid XML: {error}", sha256)
    file_name = (root.findtext("filename") or "").strip()
    height, width = _size(root)
    fault = fault_of_name(file_name)
    if fault is not None:
        fault = fault.replace("file_name", "<filename>")
        return VocFile(file_name, height, width, objects, fault, sha256)
    return VocFile(inside_folder(file_name) or "", height, width, objects, None, sha256)


def _size(root: ElementTree.Element) -> tuple[int, int] | tuple[None, None]:
    """Height and width, px; None where one of them is not a whole number from 1 on."""
    texts = [root.findtext(f"size/{name}", "").strip() for name in ("height", "width")]
    if not all(text.isdecimal() and len(text) < 12 for text in texts):
        return None, None
    height, width = (int(text) for text in texts)
    return (height, width) if height and width and max(height, width) < 2**31 else (None, None)


def _parse_object(number: int, node: ElementTree.Element) -> VocObject:
    name = (node.findtext("name") or "").strip()
    raw = ElementTree.tostring(node, encoding="unicode")
    difficult = (node.findtext("difficult") or "0").strip() == "1"
    sides = ("xmin", "ymin", "xmax", "ymax")
    try:
        x1, y1, x2, y2 = (float(node.findtext(f"bndbox/{side}", "missing")) for side in sides)
    except ValueError:
        x1 = y1 = x2 = y2 = math.nan
    fault = None
    if not name or not is_text(name):
        fault = "it has no name"
    elif not all(math.isfinite(value) and abs(value) < 1e9 for value in (x1, y1, x2, y2)):
        fault = "its bndbox is not four finite numbers"
    return VocObject(number, name, (x1 - 1, y1 - 1, x2, y2), difficult, fault, raw)
