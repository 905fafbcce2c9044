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
import posixpath
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from cluster.errors import DataError
from cluster.formats.annotation_files import list_annotations
from cluster.formats.annotations import (
    SWAPPED,
    Annotation,
    Box,
    Findings,
    ImageRecord,
    Keep,
    Source,
    images_of_records,
    keep_all,
    most_frequent,
)
from cluster.formats.class_names import CLASSES, read_class_list
from cluster.formats.names import composed, fault_of_name, is_text, plain_name
from cluster.formats.numbers import as_coordinates, as_number, as_whole
from cluster.shards.format import Category
from cluster.storage import files
from cluster.storage.pictures import list_pictures
from cluster.storage.uris import join

DIFFICULT = "difficult objects, stored as crowds"
OF_CVAT = "it is a file of CVAT, for all images; give it alone, with --format cvat"
FOUND_BY_STEM = "pictures found by the name of their XML file, whose filename fits none"


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
    swapped: bool = False
    """Whether the file gives its corners in another order."""


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
    detail: str = ""
    """The values that belong to the fault."""


def read_voc(annotations: str, images: str, keep: Keep = keep_all) -> Source:
    """Read all *.xml below the folder `annotations`. Where the folder `images` has no picture of
    the name that a file gives, but one of the file's own name, that is the picture. `DataError`
    when there are no files, when no class occurs, and when two files name the same image.

    Images whose file name `keep` turns down belong to another split: they and their annotations
    count as not listed, but their classes count.
    """
    uris = list_annotations(annotations, ".xml")
    if not uris:
        raise DataError(
            f"{annotations}: no .xml file below it; VOC data needs the folder of its Annotations;"
            " check --annotations"
        )
    with ThreadPoolExecutor(files.TRANSFER_THREADS) as pool:
        parsed = list(pool.map(lambda uri: parse_voc(files.read_bytes(uri)), uris))
    names = [uri[len(annotations) :] for uri in uris]
    findings = Findings()
    parsed = _find_pictures(names, parsed, images, findings)
    classes = _class_names(annotations, parsed)
    identity = [classes, *((name, file.sha256) for name, file in zip(names, parsed, strict=True))]

    of_split = [
        (number, name[1:], file)
        for number, (name, file) in enumerate(
            sorted(zip(names, parsed, strict=True), key=lambda pair: (pair[1].file_name, pair[0])),
            start=1,
        )
        if keep(file.file_name)
    ]
    records = _read_records(annotations, of_split, classes, findings)
    findings.repairs[SWAPPED] += sum(
        one.swapped and one.fault is None for _, _, file in of_split for one in file.objects
    )
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


def _find_pictures(
    names: Sequence[str], parsed: Sequence[VocFile], images: str, findings: Findings
) -> list[VocFile]:
    """The files, each with the name of its picture. `names` are those of the XML files, with a
    leading slash.
    """
    if files.size(images) is not None or not files.exists(images):
        return list(parsed)
    pictures = [uri[len(images) + 1 :] for uri in list_pictures(images).uris]
    there = set(map(composed, pictures))
    by_stem = {posixpath.splitext(name)[0]: name for name in pictures}
    found = []
    for name, file in zip(names, parsed, strict=True):
        own = by_stem.get(posixpath.splitext(name[1:])[0]) or by_stem.get(file.file_name)
        invalid = file.fault is not None and not file.objects
        if composed(file.file_name) not in there and own is not None and not invalid:
            findings.repairs[FOUND_BY_STEM] += 1
            file = file._replace(file_name=own, fault=None)
        found.append(file)
    return found


def _class_names(folder: str, parsed: Sequence[VocFile]) -> list[str]:
    listed = join(folder, CLASSES)
    if files.exists(listed):
        classes = read_class_list(listed)
    else:
        used = {one.name for file in parsed for one in file.objects if one.fault is None}
        classes = sorted(used)
    if not classes:
        faults = [file.fault for file in parsed if file.fault is not None]
        faults += [one.fault for file in parsed for one in file.objects if one.fault is not None]
        raise DataError(
            f"{folder}: no usable object in any of its {len(parsed)} files"
            f" ({most_frequent(faults)}); a detector needs at least one class"
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
            record = {"file_name": file.file_name}
            findings.reject("image", name, file.fault, record, detail=file.detail)
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
        root = _parse_xml(data)
        objects = _parse_objects(root)
    except (ElementTree.ParseError, ValueError, LookupError, RecursionError) as error:
        return VocFile("", None, None, [], "it is not valid XML", sha256, detail=str(error))
    if root.tag == "annotations":
        return VocFile("", None, None, [], OF_CVAT, sha256)
    file_name = (root.findtext("filename") or "").strip()
    height, width = _size(root)
    fault = fault_of_name(file_name)
    if fault is not None:
        fault = fault.replace("file_name", "filename")
        return VocFile(file_name, height, width, objects, fault, sha256)
    return VocFile(plain_name(file_name) or "", height, width, objects, None, sha256)


def _parse_xml(data: bytes) -> ElementTree.Element:
    """The tree without namespaces. Expat resolves no external entities and stops where internal
    ones multiply. Encodings that it does not know, such as gb2312, are decoded here.
    """
    declared = re.match(rb"""\s*<\?xml[^>]*encoding=["']([A-Za-z0-9._-]+)["'][^>]*\?>""", data)
    name = declared[1].decode().lower() if declared else ""
    if declared is None or name in ("utf-8", "utf-16", "us-ascii", "ascii", "iso-8859-1"):
        root = ElementTree.fromstring(data)
    else:
        root = ElementTree.fromstring(data[declared.end() :].decode(name))
    if b"xmlns" in data:
        for node in root.iter():
            node.tag = node.tag.rpartition("}")[2]
    return root


def _parse_objects(root: ElementTree.Element) -> list[VocObject]:
    """Every box of every object; some tools write several boxes into one <object>."""
    objects: list[VocObject] = []
    for node in root.iter("object"):
        for box in node.findall("bndbox") or [None]:
            objects.append(_parse_object(len(objects) + 1, node, box))
    return objects


def _size(root: ElementTree.Element) -> tuple[int, int] | tuple[None, None]:
    """Height and width, px; None where one of them is not a whole number from 1 on."""
    height, width = (as_whole(root.findtext(f"size/{name}")) for name in ("height", "width"))
    if height is None or width is None or not 0 < min(height, width) <= max(height, width) < 2**31:
        return None, None
    return height, width


def _parse_object(
    number: int, node: ElementTree.Element, box: ElementTree.Element | None
) -> VocObject:
    name = (node.findtext("name") or "").strip()
    raw = ElementTree.tostring(node, encoding="unicode")
    flag = (node.findtext("difficult") or "0").strip()
    difficult = flag.lower() == "true" or as_number(flag) == 1
    sides = ("xmin", "ymin", "xmax", "ymax")
    corners = as_coordinates(None if box is None else box.findtext(side) for side in sides)
    fault = None
    if not name or not is_text(name):
        fault = "it has no name"
    elif box is None and node.find("robndbox") is not None:
        fault = "it has a rotated box (robndbox) alone; boxes along the axes are needed (bndbox)"
    elif corners is None:
        fault = "its bndbox is not four finite numbers"
    if corners is None:
        return VocObject(number, name, (0, 0, 0, 0), difficult, fault, raw)
    (x1, x2, swapped_x), (y1, y2, swapped_y) = (_ordered(*corners[i::2]) for i in (0, 1))
    swapped = swapped_x or swapped_y
    return VocObject(number, name, (x1 - 1, y1 - 1, x2, y2), difficult, fault, raw, swapped)


def _ordered(first: float, last: float) -> tuple[float, float, bool]:
    """The first and last pixel in ascending order, and whether they were given in the other. One
    before the other is a box without extent.
    """
    return (last, first, True) if first > last + 1 else (first, last, False)
