"""Read YOLO labels: a text file an image, `class cx cy width height` a line in shares of the
picture. A bad line costs itself.

The labels of images/a/b.jpg are labels/a/b.txt; an image without such a file has no objects. A line
with more than five numbers is a polygon, as in YOLO's segmentation sets, and its bounding box is
taken. Class names come from data.yaml (`names`) or classes.txt, in the labels folder or up to two
folders above it. Class numbers are the category ids; image ids count from 1 in the order of the
file names. The sizes of the pictures are not known here: the boxes are scaled when the pixels are.
"""

from __future__ import annotations

import hashlib
import math
import posixpath
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import yaml

from cluster.errors import DataError
from cluster.formats.annotations import Annotation, Findings, ImageRecord, Source, collect
from cluster.formats.names import composed, fault_of_name, is_text
from cluster.formats.voc import CLASSES, read_lines
from cluster.shards.format import Category
from cluster.storage import files
from cluster.storage.uris import join

DATA = "data.yaml"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")
# Rounding takes shares a little over the edge; the boxes are cut to the picture later. What is far
# over it is no share.
MARGIN = 0.01
REPAIR = "polygons, stored as their bounding boxes"
SAME_STEM = (
    "another image has its name but for the suffix, and whose the label file is cannot be told"
)


def read_yolo(uri: str, images: str, keep: Callable[[str], bool] = lambda name: True) -> Source:
    """Read the labels folder `uri` of the folder `images`. `DataError` when there are no labels, no
    images or no class names.

    Label files without an image go to the quarantine. Images whose file name `keep` turns down
    belong to another split, as if not listed.
    """
    classes = read_classes(uri)
    names = {
        stem(name[len(uri) + 1 :]): name
        for name, _ in files.list_files(uri, [".txt"])
        if name != join(uri, CLASSES)
    }
    pictures = [name[len(images) + 1 :] for name, _ in files.list_files(images, IMAGE_SUFFIXES)]
    if not names:
        raise DataError(
            f"{uri}: no .txt file below it; YOLO data needs the folder of its labels; check"
            " --annotations"
        )
    if not pictures:
        raise DataError(
            f"{images}: no image below it (looked for {', '.join(IMAGE_SUFFIXES)}); check --images"
        )
    with ThreadPoolExecutor(files.TRANSFER_THREADS) as pool:
        labels = dict(zip(names, pool.map(files.read_bytes, names.values()), strict=True))
    identity = [
        classes,
        pictures,
        *((name, hashlib.sha256(data).hexdigest()) for name, data in labels.items()),
    ]

    findings, records, listed, lost = Findings(), [], 0, 0
    images_of = Counter(map(stem, pictures))
    shared: set[str] = set()
    for number, name in enumerate(pictures, start=1):
        if keep(name):
            listed += 1
            if fault := fault_of_name(name):
                findings.reject("image", name, fault, {"file_name": name})
                continue
            if images_of[stem(name)] > 1:
                findings.reject("image", name, SAME_STEM, {"file_name": name})
                lost += 0 if stem(name) in shared else count_lines(labels.get(stem(name), b""))
                shared.add(stem(name))
                continue
            annotations = read_labels(labels.get(stem(name), b""), name, len(classes), findings)
            records.append(ImageRecord(number, name, None, None, annotations))
    for alone in sorted(set(labels) - set(map(stem, pictures))):
        if keep(alone):
            listed += 1
            lines = count_lines(labels[alone])
            lost += lines
            findings.reject(
                "image",
                f"{alone}.txt",
                "there is no image for this label file",
                {"labels": f"{alone}.txt", "annotations": lines},
            )
    categories = tuple(Category(label, label, name) for label, name in enumerate(classes))
    annotated = (
        sum(len(record.annotations) for record in records)
        + lost
        + sum(one.what == "annotation" for one in findings.quarantined)
    )
    return Source(
        categories=categories,
        images=collect(records, normalised=True),
        quarantined=tuple(findings.quarantined),
        repairs=dict(+findings.repairs),
        listed=listed,
        annotated=annotated,
        lost=lost,
        largest_id=len(pictures),
        digest=hashlib.sha256(repr(identity).encode()).hexdigest(),
    )


def count_lines(data: bytes) -> int:
    """Labels in a file."""
    return sum(bool(line.strip()) for line in data.splitlines())


def stem(name: str) -> str:
    """What an image and its label file share: the path without its suffix."""
    return composed(posixpath.splitext(name)[0])


def read_classes(uri: str) -> list[str]:
    """The class names in the order of their numbers. `DataError` when there is no such file or it
    does not name every number from 0 on.
    """
    folders = [uri, posixpath.dirname(uri), posixpath.dirname(posixpath.dirname(uri))]
    for name in (DATA, CLASSES):
        for folder in (folder for folder in folders if folder.strip("/") not in ("", "s3:")):
            place = join(folder, name)
            if files.exists(place):
                classes = read_lines(place) if name == CLASSES else read_names(place)
                if not classes:
                    raise DataError(f"{place}: names no class; a detector needs at least one")
                return classes
    raise DataError(
        f"{uri}: no {DATA} and no {CLASSES} there or up to two folders above; YOLO labels are"
        " numbers and need the names of the classes"
    )


def read_names(uri: str) -> list[str]:
    """`names` of a data.yaml: a list, or names by number."""
    try:
        content: Any = yaml.safe_load(files.read_bytes(uri))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{uri}: not valid YAML: {' '.join(str(error).split())}") from error
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict):
        names = (
            [names[number] for number in range(len(names))]
            if set(names) == set(range(len(names)))
            else None
        )
    if (
        not isinstance(names, list)
        or not all(is_text(name) for name in names)
        or len(set(names)) < len(names)
    ):
        raise DataError(
            f"{uri}: its `names` must be a list of different texts, or give one for each number"
            " from 0 on"
        )
    return names


def read_labels(
    data: bytes, file_name: str, classes: int, findings: Findings
) -> tuple[Annotation, ...]:
    """The boxes of one label file, XYXY in shares of the picture; `id` is the number of the line,
    from 1.
    """
    found = []
    for number, line in enumerate(data.decode("utf-8-sig", "replace").splitlines(), start=1):
        if not (words := line.split()):
            continue
        try:
            label, shares = float(words[0]), [float(word) for word in words[1:]]
        except ValueError:
            label, shares = math.nan, []
        if len(shares) != 4 and (len(shares) < 6 or len(shares) % 2):
            fault = "its line is not a class number and four numbers, or the corners of a polygon"
        elif label not in range(classes):
            fault = "its class number is not one of the classes"
        elif not all(-MARGIN <= share <= 1 + MARGIN for share in shares):
            fault = "its numbers are not shares of the picture, from 0 to 1"
        else:
            if len(shares) > 4:
                findings.repairs[REPAIR] += 1
                box = (min(shares[::2]), min(shares[1::2]), max(shares[::2]), max(shares[1::2]))
            else:
                x, y, width, height = shares
                box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
            found.append(Annotation(number, int(label), box, False, None))
            continue
        findings.reject(
            "annotation",
            f"{number} of {file_name}",
            fault,
            {"file_name": file_name, "line": line[:1000]},
        )
    return tuple(found)
