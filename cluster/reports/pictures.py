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

THUMBNAIL = 480
"""px, the longer side of a picture on a page: twelve of them take about 0.7 MB of it."""
MOST_BOXES = 500
"""Boxes drawn on a picture of a page, the largest first."""
MOST_NAMED = 8
"""Classes named below a picture of a page."""
COLOURS = 10


@dataclass(frozen=True)
class BoxGroup:
    """Boxes of one class as one SVG path; crowds are a group of their own."""

    name: str
    path: str
    colour: str
    crowd: bool


@dataclass(frozen=True)
class Chip:
    """A class below a picture, with its number of boxes."""

    name: str
    boxes: int
    colour: str


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
    notes: Sequence[str]


def sample_pictures(
    shard_set: ShardSet, annotations: Annotations, *, count: int
) -> list[SamplePicture]:
    """Up to `count` pictures that show many classes and sizes. `DataError` where one cannot be
    decoded.
    """
    rows = read_samples(shard_set, annotations, count=count)
    return [_to_sample(row, shard_set.class_names) for row in rows]


def _to_sample(row: Mapping[str, Any], names: list[str]) -> SamplePicture:
    boxes = list(zip(row["boxes"], row["labels"], row["crowd"], strict=True))
    boxes.sort(key=lambda box: -(box[0][2] - box[0][0]) * (box[0][3] - box[0][1]))
    counts = Counter(label for _, label, _ in boxes)
    present = sorted(counts)
    # Ten colours: by label where they suffice, else by position among the classes of the picture.
    colours = {
        label: f"c{(label if len(names) <= COLOURS else position) % COLOURS}"
        for position, label in enumerate(present)
    }
    paths: dict[tuple[int, bool], str] = {}
    for (x1, y1, x2, y2), label, crowd in boxes[:MOST_BOXES]:
        path = f"M{x1:.1f} {y1:.1f}H{x2:.1f}V{y2:.1f}H{x1:.1f}Z"
        paths[label, crowd] = paths.get((label, crowd), "") + path
    notes = []
    if len(present) > MOST_NAMED:
        notes.append(f"and {len(present) - MOST_NAMED} more classes")
    if len(boxes) > MOST_BOXES:
        notes.append(f"the {MOST_BOXES} largest of {len(boxes):,} boxes")
    return SamplePicture(
        name=row["file_name"],
        height=row["height"],
        width=row["width"],
        jpeg_base64=_thumbnail(row),
        groups=[
            BoxGroup(names[label], path, colours[label], crowd)
            for (label, crowd), path in paths.items()
        ],
        chips=[Chip(names[label], counts[label], colours[label]) for label in present[:MOST_NAMED]],
        notes=notes,
    )


def _thumbnail(row: Mapping[str, Any]) -> str:
    picture = Image.fromarray(_decode(row))
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    sink = io.BytesIO()
    picture.save(sink, "JPEG", quality=80)
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
