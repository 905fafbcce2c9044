"""Sample pictures of a set with their annotations: as drawings for a page, or as PNG files."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from cluster.errors import DataError
from cluster.shards.index import ShardSet
from cluster.shards.statistics import Annotations, read, read_samples
from cluster.storage import files
from cluster.storage.uris import join
from detector.image import ImageError, decode_image
from detector.palette import letters_of, place_of

THUMBNAIL = 480
"""px, the longer side of a picture on a page: twelve of them take about 0.7 MB of it."""
MOST_BOXES = 500
"""Boxes drawn on a picture of a page, the largest first."""
MOST_MARKED = 100
"""Boxes of a picture with the letter of their class, the first ones: more would hide it."""
MOST_NAMED = 8
"""Classes named below a picture of a page."""


@dataclass(frozen=True)
class BoxGroup:
    """Boxes of one class as one SVG path; crowds are a group of their own."""

    name: str
    path: str
    colour: str
    crowd: bool


@dataclass(frozen=True)
class Chip:
    """A class below a picture, with its number of boxes and the letter that marks them."""

    name: str
    boxes: int
    colour: str
    letter: str = ""


@dataclass(frozen=True)
class Mark:
    """The letter of the class at the upper left corner of a box, px."""

    x: int
    y: int
    letter: str


@dataclass(frozen=True)
class SamplePicture:
    """A thumbnail with its boxes as vector paths over it: they stay sharp, and their coordinates
    are px of the picture.
    """

    name: str
    height: int
    width: int
    jpeg_base64: str
    groups: Sequence[BoxGroup]
    chips: Sequence[Chip]
    marks: Sequence[Mark]
    """They tell classes apart without colours; none where the set has one class."""
    notes: Sequence[str]


def sample_pictures(
    shard_set: ShardSet, annotations: Annotations, *, count: int
) -> list[SamplePicture]:
    """Up to `count` pictures that show many classes and sizes. `DataError` where one cannot be
    decoded.
    """
    rows = read_samples(shard_set, annotations, count=count)
    return [_to_sample(row, shard_set.class_names) for row in rows]


def _to_sample(row: Mapping[str, Any], names: Sequence[str]) -> SamplePicture:
    boxes = list(zip(row["boxes"], row["labels"], row["crowd"], strict=True))
    boxes.sort(key=lambda box: -(box[0][2] - box[0][0]) * (box[0][3] - box[0][1]))
    notes = []
    if len(boxes) > MOST_BOXES:
        notes.append(f"the {MOST_BOXES} largest of {len(boxes):,} boxes")
    return sample_of(
        _decode(row), row["file_name"], boxes, names, most_boxes=MOST_BOXES, notes=notes
    )


def sample_of(
    pixels: np.ndarray,
    name: str,
    boxes: Sequence[tuple[Sequence[float], int, bool]],
    class_names: Sequence[str],
    *,
    most_boxes: int,
    notes: Sequence[str] = (),
    side: int = THUMBNAIL,
    most_bytes: int | None = None,
) -> SamplePicture:
    """A picture, uint8 (height, width, 3), with the first boxes: (XYXY px, label, crowd). The
    thumbnail has at most `side` px and, at the cost of its quality, about `most_bytes`.
    """
    counts = Counter(label for _, label, _ in boxes)
    present = sorted(counts)
    # A class has its colour and its letter on every picture of the set. With one class there is
    # nothing to tell apart.
    colours = {label: f"c{place_of(label)}" for label in present}
    letters = {label: letters_of(label) for label in present} if len(class_names) > 1 else {}
    paths: dict[tuple[int, bool], str] = {}
    for (x1, y1, x2, y2), label, crowd in boxes[:most_boxes]:
        path = f"M{x1:.1f} {y1:.1f}H{x2:.1f}V{y2:.1f}H{x1:.1f}Z"
        paths[label, crowd] = paths.get((label, crowd), "") + path
    more = len(present) - MOST_NAMED
    return SamplePicture(
        name=name,
        height=pixels.shape[0],
        width=pixels.shape[1],
        jpeg_base64=_thumbnail(pixels, side, most_bytes),
        groups=[
            BoxGroup(class_names[label], path, colours[label], crowd)
            for (label, crowd), path in paths.items()
        ],
        chips=[
            Chip(class_names[label], counts[label], colours[label], letters.get(label, ""))
            for label in present[:MOST_NAMED]
        ],
        marks=[
            Mark(round(box[0]), round(box[1]), letters[label])
            for box, label, _ in boxes[: min(most_boxes, MOST_MARKED)]
            if label in letters
        ],
        notes=[*([f"and {more} more classes"] if more > 0 else []), *notes],
    )


def _thumbnail(pixels: np.ndarray, side: int, most_bytes: int | None) -> str:
    picture = Image.fromarray(pixels)
    picture.thumbnail((side, side))
    for quality in (80, 50, 20):
        sink = io.BytesIO()
        picture.save(sink, "JPEG", quality=quality)
        if most_bytes is None or sink.tell() <= most_bytes:
            break
    return base64.b64encode(sink.getvalue()).decode()


def draw_samples(shard_set: ShardSet, folder: str, *, count: int) -> int:
    """Publish up to `count` pictures with their boxes and class names as <image id>.png in the
    folder; returns how many there were. `DataError` where a shard or a picture cannot be read.
    """
    # matplotlib, which the lines of `summary` do not need.
    from detector.plots import annotation_figure

    drawn = 0
    for row in read_samples(shard_set, read(shard_set), count=count):
        figure = annotation_figure(
            _decode(row),
            np.asarray(row["boxes"], np.float32).reshape(-1, 4),
            row["labels"],
            row["crowd"],
            shard_set.class_names,
            title=row["file_name"],
        )
        sink = io.BytesIO()
        figure.savefig(sink, format="png", dpi=110)
        files.write_bytes(join(folder, f"{row['image_id']}.png"), sink.getvalue())
        drawn += 1
    return drawn


def _decode(row: Mapping[str, Any]) -> np.ndarray:
    try:
        return decode_image(row["image"])
    except ImageError as error:
        raise DataError(
            f"{row['file_name']} (image_id {row['image_id']}): {error}; prepare the set again"
        ) from error
