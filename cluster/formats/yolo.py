"""Read YOLO labels: a text file for each image, with lines `class cx cy width height` in fractions
of the width and height of the picture. A bad line costs itself alone.

The labels of images/a/b.jpg are labels/a/b.txt; an image without such a file has no objects. A line
of more than five numbers is a polygon, as in YOLO's segmentation sets; its bounding box is taken.
Class names come from data.yaml (`names`) or classes.txt, in the labels folder or up to two folders
above it. Text may be UTF-16 or have a mark of UTF-8 (`encodings`).

Class numbers are the category ids; image ids count from 1 in the order of the file names. The sizes
of the pictures are not known here: boxes are scaled to px when the pixels are read.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from cluster.errors import DataError
from cluster.formats.annotation_files import list_annotations
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
from cluster.formats.class_names import CLASSES, find_class_names
from cluster.formats.encodings import to_utf8
from cluster.formats.names import composed, fault_of_name
from cluster.shards.format import Category
from cluster.storage import files
from cluster.storage.pictures import list_pictures
from detector.image import SUFFIXES

MARGIN = 0.01
"""Rounding takes fractions a little over the edge; boxes are clipped to the picture later. A number
farther outside than this is no fraction.
"""
KEYPOINTS = "poses, of which the box is used"
NO_LABELS = "a .txt file without a label line"
POLYGONS = "polygons, stored as their bounding boxes"
SAME_STEM = "another image has the same name with another suffix: both have this label file"
NO_IMAGE = "there is no image for this label file"
BAD_LINE = "its line is not a class number and four numbers, or the corners of a polygon"
BAD_CLASS = "its class number is not one of the classes"
BAD_FRACTIONS = "its numbers are not shares of the picture, from 0 to 1"


def read_yolo(annotations: str, images: str, keep: Keep = keep_all) -> Source:
    """Read the labels folder `annotations` of the folder `images`. `DataError` when there are no
    labels, no images or no class names.

    Label files without an image go to the quarantine. Images whose file name `keep` turns down
    belong to another split: they and their labels count as not listed.
    """
    classes, keypoint_numbers, other_names = find_class_names(annotations)
    uris = {
        _stem(name): uri
        for uri in list_annotations(annotations, ".txt")
        if (name := uri[len(annotations) + 1 :]) != CLASSES
    }
    found = list_pictures(images)
    pictures = [uri[len(images) + 1 :] for uri in found.uris]
    if not uris:
        raise DataError(
            f"{annotations}: no .txt file below it; YOLO data needs the folder of its labels; check"
            " --annotations"
        )
    if not pictures:
        raise DataError(
            f"{images}: no image below it (looked for {', '.join(sorted(SUFFIXES))}); check"
            " --images"
        )
    with ThreadPoolExecutor(files.TRANSFER_THREADS) as pool:
        given = dict(zip(uris, pool.map(files.read_bytes, uris.values()), strict=True))
    labels = {stem: to_utf8(data, errors="replace") for stem, data in given.items()}
    others = {
        stem
        for stem in set(labels) - set(map(_stem, pictures))
        if labels[stem].strip() and not _has_label(labels[stem])
    }
    labels = {stem: data for stem, data in labels.items() if stem not in others}
    passed_over = {**found.passed_over, **({NO_LABELS: len(others)} if others else {})}
    digests = [(stem, hashlib.sha256(given[stem]).hexdigest()) for stem in labels]
    identity = [classes, pictures, *digests]

    findings = Findings()
    numbered = [(number, name) for number, name in enumerate(pictures, start=1) if keep(name)]
    shared = {stem for stem, count in Counter(map(_stem, pictures)).items() if count > 1}
    records = _read_records(numbered, labels, shared, len(classes), keypoint_numbers, findings)
    without_image = [stem for stem in sorted(set(labels) - set(map(_stem, pictures))) if keep(stem)]
    for stem in without_image:
        name = f"{stem}.txt"
        findings.reject(
            "image", name, NO_IMAGE, {"labels": name, "annotations": _count_lines(labels[stem])}
        )
    used = {record.file_name for record in records}
    unassigned = {_stem(name) for _, name in numbered if name not in used}
    lost = sum(_count_lines(labels.get(stem, b"")) for stem in [*without_image, *unassigned])
    stored = sum(len(record.annotations) for record in records)
    return Source(
        categories=tuple(Category(label, label, name) for label, name in enumerate(classes)),
        images=images_of_records(records, normalised=True),
        quarantined=tuple(findings.quarantined),
        repairs=dict(+findings.repairs),
        listed=len(numbered) + len(without_image),
        annotated=stored + lost + findings.rejected("annotation"),
        lost=lost,
        largest_id=len(pictures),
        digest=hashlib.sha256(repr(identity).encode()).hexdigest(),
        passed_over=passed_over,
        doubts=(other_names,) if other_names else (),
    )


def _read_records(
    numbered: Sequence[tuple[int, str]],
    labels: Mapping[str, bytes],
    shared: set[str],
    classes: int,
    keypoint_numbers: int,
    findings: Findings,
) -> list[ImageRecord]:
    """The usable images of (image id, file name). `shared` holds the stems of several images."""
    records = []
    for image_id, name in numbered:
        fault = fault_of_name(name) or (SAME_STEM if _stem(name) in shared else None)
        if fault is not None:
            findings.reject("image", name, fault, {"file_name": name})
            continue
        data = labels.get(_stem(name), b"")
        annotations = read_labels(data, name, classes, findings, keypoint_numbers=keypoint_numbers)
        records.append(ImageRecord(image_id, name, None, None, annotations))
    return records


def _count_lines(data: bytes) -> int:
    """Labels in a file."""
    return sum(bool(line.strip()) for line in data.splitlines())


def _has_label(data: bytes) -> bool:
    """Whether a line of the file looks like a label: a class number and four or more numbers. The
    lists and notes that tools put beside labels have none.
    """
    return any(
        len(words) >= 5 and all(_is_number(word) for word in words)
        for line in data.splitlines()
        if (words := line.split())
    )


def _is_number(word: bytes) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _stem(name: str) -> str:
    """What the names of an image and its label file have in common: the path without its suffix."""
    return composed(posixpath.splitext(name)[0])


def read_labels(
    data: bytes, file_name: str, classes: int, findings: Findings, *, keypoint_numbers: int = 0
) -> tuple[Annotation, ...]:
    """The boxes of one label file, XYXY in fractions of the picture; `id` is the number of the
    line, from 1. Behind the box of a line there may be `keypoint_numbers`, which are not used. Bad
    lines go to `findings`.
    """
    annotations = []
    for number, line in enumerate(data.decode("utf-8-sig", "replace").splitlines(), start=1):
        if not (words := line.split()):
            continue
        try:
            label, *fractions = (float(word) for word in words)
        except ValueError:
            label, fractions = -1.0, []
        if keypoint_numbers and len(fractions) == 4 + keypoint_numbers:
            fractions = fractions[:4]
            findings.repairs[KEYPOINTS] += 1
        if fault := _fault_of_line(label, fractions, classes):
            where = f"{number} of {file_name}"
            record = {"file_name": file_name, "line": line[:1000]}
            findings.reject("annotation", where, fault, record)
            continue
        if len(fractions) > 4:
            findings.repairs[POLYGONS] += 1
        annotations.append(Annotation(number, int(label), _to_box(fractions), False, None))
    return tuple(annotations)


def _fault_of_line(label: float, fractions: Sequence[float], classes: int) -> str | None:
    if len(fractions) != 4 and (len(fractions) < 6 or len(fractions) % 2):
        return BAD_LINE
    if label not in range(classes):
        return BAD_CLASS
    if not all(-MARGIN <= fraction <= 1 + MARGIN for fraction in fractions):
        return BAD_FRACTIONS
    return None


def _to_box(fractions: Sequence[float]) -> Box:
    """The corners of a centre with width and height, or of a polygon's bounding box."""
    if len(fractions) > 4:
        xs, ys = fractions[::2], fractions[1::2]
        return min(xs), min(ys), max(xs), max(ys)
    x, y, width, height = fractions
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2
