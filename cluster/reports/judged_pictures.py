"""Pictures of a set with their objects, their detections and what is wrong, for a page.

Readable without colour: objects are dashed and detections solid, errors are thick, and a number
leads from the box to the words.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from cluster.shards.format import first_rows
from cluster.shards.index import ShardSet
from cluster.shards.read import read_columns, read_row_group
from detector.image import decode_image
from detector.image_errors import Remark, remarks, summed_up
from detector.judgement import Judgement

MOST_REMARKS = 8
"""Errors of a picture that have a number and words."""
MOST_BOXES = 300
MOST_BYTES = 36_000
"""Of a JPEG: 36 pictures of a page take 1.7 MB of it."""
_FORMS = ((400, 80), (400, 65), (320, 65), (240, 60), (160, 50), (80, 40))
"""Longest side in px and JPEG quality, the best first."""


@dataclass(frozen=True)
class Mark:
    """The outlines of some boxes as one SVG path. `kind` is a class of the style sheet."""

    kind: str
    path: str


@dataclass(frozen=True)
class Tag:
    """A number at the corner of a box, px of the picture."""

    number: int
    x: float
    y: float


@dataclass(frozen=True)
class JudgedPicture:
    name: str
    height: int
    width: int
    jpeg_base64: str
    """Empty where the picture cannot be read."""
    marks: Sequence[Mark]
    tags: Sequence[Tag]
    summary: str
    words: Sequence[str]
    """By the numbers of the tags, from 1."""
    more: int
    """Errors without words."""


def judged_picture(judged: Judgement, image: int, row: dict[str, Any]) -> JudgedPicture:
    """A picture with what `judged` finds in it; `row` is its row of the shards."""
    pairing = judged.pairing
    size = {name: row[name] for name in ("height", "width")}
    found, there = pairing.detections_of(image), pairing.objects_of(image)
    said = remarks(pairing, judged.errors, judged.kept_D, image)
    named = said[:MOST_REMARKS]
    hits = int(judged.images.hits_I[image])
    objects = there.stop - there.start
    # Detections below the threshold, and ignored ones, are not drawn.
    drawn = [d for d in range(found.start, found.stop) if judged.kept_D[d]]
    wrong = {remark.detection for remark in said}
    missed = {remark.object for remark in said if remark.kind == "missed"}
    marks = [
        ("object", [pairing.boxes_G4[g] for g in range(*_ends(there)) if g not in missed]),
        ("right", [pairing.boxes_D4[d] for d in drawn if d not in wrong]),
        ("missed", [pairing.boxes_G4[g] for g in sorted(missed)]),
        ("wrong", [pairing.boxes_D4[d] for d in drawn if d in wrong]),
    ]
    return JudgedPicture(
        row["file_name"],
        **size,
        jpeg_base64=thumbnail(row["image"]),
        marks=[Mark(kind, _outlines(boxes[:MOST_BOXES])) for kind, boxes in marks if boxes],
        tags=[_tag(judged, number, remark, **size) for number, remark in enumerate(named, start=1)],
        summary=f"{hits} of {objects} found"
        + (f"; {summed_up(said)}" if said else ", nothing wrong"),
        words=[remark.words for remark in named],
        more=len(said) - len(named),
    )


def _ends(rows: slice) -> tuple[int, int]:
    return rows.start, rows.stop


def _outlines(boxes: Sequence[np.ndarray]) -> str:
    return "".join(f"M{x1:.1f} {y1:.1f}H{x2:.1f}V{y2:.1f}H{x1:.1f}Z" for x1, y1, x2, y2 in boxes)


def _tag(judged: Judgement, number: int, remark: Remark, *, height: float, width: float) -> Tag:
    pairing = judged.pairing
    if remark.detection >= 0:
        x, y = pairing.boxes_D4[remark.detection, :2].tolist()
    else:
        x, y = pairing.boxes_G4[remark.object, :2].tolist()
    # The whole ring stays in the picture.
    room = 0.04 * max(height, width)
    return Tag(
        number,
        round(min(max(x, room), width - room), 1),
        round(min(max(y, room), height - room), 1),
    )


def thumbnail(encoded: bytes) -> str:
    """A JPEG of at most `MOST_BYTES` in base64; empty where the picture cannot be read."""
    try:
        pixels = decode_image(encoded)
    except Exception:  # a picture is not worth the page
        return ""
    content = b""
    for side, quality in _FORMS:
        picture = Image.fromarray(pixels)
        picture.thumbnail((side, side))
        sink = io.BytesIO()
        picture.save(sink, "JPEG", quality=quality)
        content = sink.getvalue()
        if len(content) <= MOST_BYTES:
            break
    return base64.b64encode(content).decode()


def rows_of(shard_set: ShardSet, image_ids: Sequence[int]) -> Iterator[dict[str, Any]]:
    """The rows of these images with all columns, in stored order, one row group in memory."""
    stored_I = read_columns(shard_set, ["image_id"])["image_id"].to_numpy()
    wanted = np.flatnonzero(np.isin(stored_I, np.asarray(image_ids, np.int64)))
    starts = first_rows(shard_set.rows_per_group)
    groups = np.searchsorted(starts, wanted, side="right") - 1
    for group in np.unique(groups).tolist():
        table = read_row_group(shard_set.locate_group(group))
        yield from table.take(pa.array(wanted[groups == group] - starts[group])).to_pylist()


def judged_pictures(
    judged: Judgement, shard_set: ShardSet, images: Sequence[int]
) -> list[JudgedPicture]:
    """The pictures of these images (places in the pairing), in this order."""
    ids = judged.pairing.image_ids[list(images)].tolist()
    place = dict(zip(ids, images, strict=True))
    pictures = {
        row["image_id"]: judged_picture(judged, place[row["image_id"]], row)
        for row in rows_of(shard_set, ids)
    }
    return [pictures[id_] for id_ in ids]
