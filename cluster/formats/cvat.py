"""Read CVAT's XML, "CVAT for images 1.1": one file for all images. A bad image or shape costs
itself alone and goes to the quarantine.

    <annotations>
      <meta><task><labels><label><name>cat</name></label></labels></task></meta>
      <image id="0" name="a.jpg" width="640" height="480">
        <box label="cat" xtl="10.0" ytl="20.0" xbr="30.0" ybr="40.0" occluded="0"/>
      </image>
    </annotations>

Corners are px from 0, half-open, as ours. Polygons and masks become their bounding boxes, as in the
reader of YOLO; turned boxes are refused, as in that of VOC, and so are all other shapes. In the
export of a project an <image> has a subset="Train"; its picture is Train/a.jpg.

Classes are the <labels>, in their order; a file without them has the labels that occur, sorted.
Category ids count from 1. Image ids are those of the file or, where these are missing or there
twice, count from 1.
"""

from __future__ import annotations

import hashlib
import io
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Sequence

from cluster.errors import DataError
from cluster.formats.annotations import (
    MAX_ID,
    SWAPPED,
    Box,
    Findings,
    Keep,
    Source,
    keep_all,
    most_frequent,
)
from cluster.formats.drawings import (
    TURNED,
    Drawing,
    Shape,
    Words,
    faults_of,
    to_source,
    used_labels,
)
from cluster.formats.names import composed, fault_of_name, is_text, plain_name
from cluster.formats.numbers import as_coordinates, as_number, as_whole
from cluster.formats.yolo import POLYGONS
from cluster.storage import files
from cluster.storage.pictures import list_pictures

MASKS = "masks, stored as their bounding boxes"
TAGS = "a tag of a whole picture, which is no object"
NO_NUMBERS = "its corners are not finite numbers"
OTHER_SHAPE = "it has another shape; boxes, polygons and masks are read"
WORDS = Words(
    renumbered="image ids missing or there twice, counted from 1 instead",
    same_name="another <image> has the same name",
    unknown_label="its label is not in <labels>",
)


def read_cvat(annotations: str, images: str, keep: Keep = keep_all) -> Source:
    """Read the XML file `annotations`; the folder `images` is looked at where the images belong to
    subsets. `DataError` where it is no XML, is CVAT's form for videos, or has no image or no class.

    Images whose file name `keep` turns down belong to another split: they and their shapes count as
    not listed.
    """
    data = files.read_bytes(annotations)
    parsed, subsets, labels, tags = _parse(data, annotations)
    if any(subsets):
        parsed = _in_subsets(parsed, subsets, images)
    if not parsed:
        raise DataError(f"{annotations}: has no <image>; there is nothing to prepare")
    names = labels or used_labels(parsed)
    if not names:
        raise DataError(
            f"{annotations}: has no <labels> and no usable box"
            f" ({most_frequent(faults_of(parsed))}); a detector needs at least one class"
        )
    return to_source(
        parsed,
        names,
        keep,
        Findings(),
        WORDS,
        digest=hashlib.sha256(data).hexdigest(),
        passed_over={TAGS: tags} if tags else {},
    )


def _in_subsets(drawings: Sequence[Drawing], subsets: Sequence[str], images: str) -> list[Drawing]:
    """The drawings with the subset as the folder of their pictures, where such a picture is there
    or several subsets have a picture of that name: what is found must not be that of another one.
    """
    pictures = {composed(uri[len(images) + 1 :]) for uri in list_pictures(images).uris}
    subsets_of: defaultdict[str, set[str]] = defaultdict(set)
    for drawing, subset in zip(drawings, subsets, strict=True):
        subsets_of[drawing.file_name].add(subset)
    found = []
    for drawing, subset in zip(drawings, subsets, strict=True):
        name = plain_name(f"{subset}/{drawing.file_name}") if subset else None
        several = len(subsets_of[drawing.file_name]) > 1
        if name is not None and drawing.fault is None and (several or composed(name) in pictures):
            drawing = drawing._replace(file_name=name)
        found.append(drawing)
    return found


def _parse(data: bytes, uri: str) -> tuple[list[Drawing], list[str], list[str], int]:
    """The images, the subset of each ("" for none), the names in <labels>, and the number of tags.
    Each <image> is forgotten when it is read, so that the tree of a large file is never in memory.
    """
    images: list[Drawing] = []
    subsets: list[str] = []
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
                subsets.append((node.get("subset") or "").strip())
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
    return images, subsets, names, tags


def _parse_image(node: ElementTree.Element) -> Drawing:
    id_, height, width = (as_whole(node.get(name)) for name in ("id", "height", "width"))
    id_ = id_ if id_ is not None and 0 <= id_ <= MAX_ID else None
    if height is None or width is None or not 0 < min(height, width) <= max(height, width) < 2**31:
        height = width = None
    name = node.get("name") or ""
    fault = fault_of_name(name)
    shapes = [_parse_shape(one) for one in node if one.tag != "tag"]
    raw = {"name": name, "annotations": [shape.raw for shape in shapes]}
    if fault is not None:
        fault = fault.replace("file_name", "name")
        return Drawing(id_, name, shapes, fault, raw, height, width)
    return Drawing(id_, plain_name(name) or "", shapes, None, raw, height, width)


def _parse_shape(node: ElementTree.Element) -> Shape:
    label = (node.get("label") or "").strip()
    raw = ElementTree.tostring(node, encoding="unicode").strip()[:1000]
    corners, fault, repair, detail = (0.0, 0.0, 0.0, 0.0), None, None, ""
    turn = as_number(node.get("rotation") or "0")
    if not label or not is_text(label):
        fault = "it has no label"
    elif node.tag not in ("box", "polygon", "mask"):
        fault, detail = OTHER_SHAPE, node.tag[:40]
    elif turn is None or turn % 360:
        fault = TURNED
    elif (box := _corners(node)) is None:
        fault = NO_NUMBERS
    else:
        x1, y1, x2, y2 = box
        corners = min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)
        swapped = SWAPPED if corners != box else None
        repair = {"polygon": POLYGONS, "mask": MASKS}.get(node.tag, swapped)
    return Shape(label, corners, fault, repair, raw, detail)


def _corners(node: ElementTree.Element) -> Box | None:
    """The corners that a box gives, or those of the box around a polygon or a mask."""
    if node.tag == "polygon":
        texts = [text for point in node.get("points", "").split(";") for text in point.split(",")]
    elif node.tag == "mask":
        texts = [node.get(name) for name in ("left", "top", "width", "height")]
    else:
        texts = [node.get(name) for name in ("xtl", "ytl", "xbr", "ybr")]
    numbers = as_coordinates(texts)
    if numbers is None or len(numbers) < 4 or len(numbers) % 2:
        return None
    if node.tag == "polygon":
        xs, ys = numbers[::2], numbers[1::2]
        return min(xs), min(ys), max(xs), max(ys)
    x, y, right, bottom = numbers
    return (x, y, x + right, y + bottom) if node.tag == "mask" else (x, y, right, bottom)
