"""Read CVAT's XML, "CVAT for images 1.1": one file for all images. A bad image or shape costs
itself alone and goes to the quarantine.

    <annotations>
      <meta><task><labels><label><name>cat</name></label></labels></task></meta>
      <image id="0" name="a.jpg" width="640" height="480">
        <box label="cat" xtl="10.0" ytl="20.0" xbr="30.0" ybr="40.0" occluded="0"/>
      </image>
    </annotations>

Corners are px from 0, half-open, as ours. Polygons and masks become their bounding boxes, as in the
reader of YOLO; turned boxes are refused, as in that of VOC, and so are all other shapes. Classes
are the <labels>, in their order; a file without them has the labels that occur, sorted. Category
ids count from 1. Image ids are those of the file or, where these are missing or there twice, count
from 1.
"""

from __future__ import annotations

import hashlib
import io
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from typing import NamedTuple

from cluster.errors import DataError
from cluster.formats.annotations import (
    MAX_ID,
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
from cluster.formats.names import fault_of_name, inside_folder, is_text
from cluster.formats.numbers import as_number, as_whole
from cluster.formats.voc import SWAPPED
from cluster.formats.yolo import POLYGONS
from cluster.shards.format import Category
from cluster.storage import files

MASKS = "masks, stored as their bounding boxes"
RENUMBERED = "image ids missing or there twice, counted from 1 instead"
TAGS = "a tag of a whole picture, which is no object"
SAME_NAME = "another <image> has the same name"
NO_NUMBERS = "its corners are not finite numbers"
TURNED = "it is a turned box (rotation); boxes along the axes are needed"
OUTSIDE_LABELS = "its label is not in <labels>"
MAX_COORDINATE = 1e9


class _Shape(NamedTuple):
    """A shape of an image. `fault` is why it cannot be used; then `box` means nothing. `repair`
    says what was done to it.
    """

    label: str
    box: Box
    fault: str | None
    repair: str | None
    raw: str


class _Image(NamedTuple):
    id: int | None
    file_name: str
    height: int | None
    width: int | None
    shapes: list[_Shape]
    fault: str | None


def read_cvat(annotations: str, images: str, keep: Keep = keep_all) -> Source:
    """Read the XML file `annotations`; the folder `images` is not looked at. `DataError` where it
    is no XML, is CVAT's form for videos, or has no image or no class.

    Images whose file name `keep` turns down belong to another split: they and their shapes count as
    not listed.
    """
    data = files.read_bytes(annotations)
    findings = Findings()
    parsed, labels, tags = _parse(data, annotations)
    if not parsed:
        raise DataError(f"{annotations}: has no <image>; there is nothing to prepare")
    used = {shape.label for image in parsed for shape in image.shapes if shape.fault is None}
    names = labels or sorted(used)
    if not names:
        faults = [
            shape.fault for image in parsed for shape in image.shapes if shape.fault is not None
        ]
        raise DataError(
            f"{annotations}: has no <labels> and no usable box ({most_frequent(faults)}); a"
            " detector needs at least one class"
        )
    ids = [image.id for image in parsed if image.id is not None]
    if len(set(ids)) < len(parsed):
        findings.repairs[RENUMBERED] += len(parsed)
        parsed = [image._replace(id=number) for number, image in enumerate(parsed, start=1)]
    listed = [image for image in parsed if keep(image.file_name)]
    records, lost = _read_records(listed, names, findings)
    return Source(
        categories=tuple(Category(label, label + 1, name) for label, name in enumerate(names)),
        images=images_of_records(records),
        quarantined=tuple(findings.quarantined),
        repairs=dict(+findings.repairs),
        listed=len(listed),
        annotated=sum(len(image.shapes) for image in listed),
        lost=lost,
        largest_id=max(image.id or 0 for image in parsed),
        digest=hashlib.sha256(data).hexdigest(),
        passed_over={TAGS: tags} if tags else {},
    )


def _parse(data: bytes, uri: str) -> tuple[list[_Image], list[str], int]:
    """The images, the names in <labels>, and the number of tags. Each <image> is forgotten when it
    is read, so that the tree of a large file is never in memory.
    """
    images: list[_Image] = []
    labels: list[str] = []
    tags = 0
    try:
        events = ElementTree.iterparse(io.BytesIO(data), events=("start", "end"))
        _, root = next(events)
        for event, node in events:
            if node.tag == "track":
                raise DataError(
                    f"{uri}: is of the form 'CVAT for video', whose <track>s are not read; export"
                    " it as 'CVAT for images 1.1'"
                )
            if event == "end" and node.tag == "image":
                images.append(_parse_image(node))
                tags += len(node.findall("tag"))
                root.clear()
            # The parts of a skeleton have a <parent>; they are no classes of their own.
            elif event == "end" and node.tag == "label" and not node.findtext("parent"):
                labels.append((node.findtext("name") or "").strip())
    except (ElementTree.ParseError, ValueError, LookupError, RecursionError) as error:
        raise DataError(f"{uri}: not valid XML ({error}); export or download it again") from error
    if root.tag != "annotations":
        raise DataError(
            f"{uri}: not a CVAT file: it begins with <{root.tag}>, not <annotations>; export it as"
            " 'CVAT for images 1.1'"
        )
    # The export of a project may have the labels of each of its tasks.
    names = list(dict.fromkeys(name for name in labels if name and is_text(name)))
    return images, names, tags


def _parse_image(node: ElementTree.Element) -> _Image:
    id_, height, width = (as_whole(node.get(name)) for name in ("id", "height", "width"))
    id_ = id_ if id_ is not None and 0 <= id_ <= MAX_ID else None
    if height is None or width is None or not 0 < min(height, width) <= max(height, width) < 2**31:
        height = width = None
    name = node.get("name") or ""
    fault = fault_of_name(name)
    shapes = [_parse_shape(one) for one in node if one.tag != "tag"]
    if fault is not None:
        return _Image(id_, name, height, width, shapes, fault.replace("file_name", "name"))
    return _Image(id_, inside_folder(name) or "", height, width, shapes, None)


def _parse_shape(node: ElementTree.Element) -> _Shape:
    label = (node.get("label") or "").strip()
    raw = ElementTree.tostring(node, encoding="unicode").strip()[:1000]
    corners, fault, repair = (0.0, 0.0, 0.0, 0.0), None, None
    turn = as_number(node.get("rotation") or "0")
    if not label or not is_text(label):
        fault = "it has no label"
    elif node.tag not in ("box", "polygon", "mask"):
        fault = f"its shape is {node.tag}; boxes, polygons and masks are read"
    elif turn is None or turn % 360:
        fault = TURNED
    elif (box := _corners(node)) is None:
        fault = NO_NUMBERS
    else:
        x1, y1, x2, y2 = box
        corners = min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)
        swapped = SWAPPED if corners != box else None
        repair = {"polygon": POLYGONS, "mask": MASKS}.get(node.tag, swapped)
    return _Shape(label, corners, fault, repair, raw)


def _corners(node: ElementTree.Element) -> Box | None:
    """The corners that a box gives, or those of the box around a polygon or a mask."""
    if node.tag == "polygon":
        texts = [text for point in node.get("points", "").split(";") for text in point.split(",")]
    elif node.tag == "mask":
        texts = [node.get(name) for name in ("left", "top", "width", "height")]
    else:
        texts = [node.get(name) for name in ("xtl", "ytl", "xbr", "ybr")]
    found = [as_number(text) for text in texts]
    numbers = [value for value in found if value is not None and abs(value) < MAX_COORDINATE]
    if len(numbers) < len(found) or len(found) < 4 or len(found) % 2:
        return None
    if node.tag == "polygon":
        xs, ys = numbers[::2], numbers[1::2]
        return min(xs), min(ys), max(xs), max(ys)
    x, y, right, bottom = numbers
    return (x, y, x + right, y + bottom) if node.tag == "mask" else (x, y, right, bottom)


def _read_records(
    images: Sequence[_Image], names: Sequence[str], findings: Findings
) -> tuple[list[ImageRecord], int]:
    """The usable images, and the number of shapes that are lost with the others."""
    numbers = {name: label for label, name in enumerate(names)}
    records: dict[str, ImageRecord] = {}
    lost = 0
    for image in images:
        fault = image.fault or (SAME_NAME if image.file_name in records else None)
        if fault is not None:
            raw = {"name": image.file_name, "annotations": [shape.raw for shape in image.shapes]}
            findings.reject("image", image.file_name or "?", fault, raw)
            lost += len(image.shapes)
            continue
        found = []
        for number, shape in enumerate(image.shapes, start=1):
            fault = shape.fault or (None if shape.label in numbers else OUTSIDE_LABELS)
            if fault is None:
                found.append(Annotation(number, numbers[shape.label], shape.box, False, None))
                if shape.repair is not None:
                    findings.repairs[shape.repair] += 1
                continue
            raw = {"file_name": image.file_name, "shape": shape.raw}
            findings.reject("annotation", f"{number} of {image.file_name}", fault, raw)
        records[image.file_name] = ImageRecord(
            image.id or 0, image.file_name, image.height, image.width, tuple(found)
        )
    return list(records.values()), lost
