"""Boxes clipped to the picture, once its pixels tell its size."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from cluster.formats.annotations import Annotation, ImageRecord
from cluster.shards.quarantine import Quarantined

MIN_SIDE = 1.0
"""px; a box that is narrower or lower than this after clipping is dropped: no detector could find
it (train2017 has boxes of height 0).
"""


def as_coco(
    annotation: Annotation, *, image_id: int, category_ids: Sequence[int]
) -> dict[str, object]:
    """An annotation in the fields of a COCO file, whatever format it came in; bbox is [x, y, width,
    height], fields that were not given are None.
    """
    x1, y1, x2, y2 = annotation.box
    # Corners were computed by adding sides: for numbers under a million a float64 can give the
    # sides back to 1e-6 px.
    bbox = [x1, y1, round(x2 - x1, 6), round(y2 - y1, 6)]
    return {
        "id": annotation.id,
        "image_id": image_id,
        "category_id": category_ids[annotation.label],
        "bbox": bbox,
        "area": annotation.area,
        "iscrowd": int(annotation.crowd),
    }


def clip_annotations(
    annotations: Iterable[Annotation],
    *,
    height: int,
    width: int,
    image: ImageRecord,
    category_ids: Sequence[int],
) -> tuple[list[Annotation], list[Quarantined], int]:
    """Clip boxes to the picture of `height` x `width` px. Returns the annotations that remain, with
    their area filled in, those that are dropped, and how many boxes were clipped.

    A box is dropped when a side is under 1 px after clipping: it has no extent, a negative one, or
    lies outside. `image` and `category_ids` (by label) are for the entries of the quarantine.
    """
    inside: list[Annotation] = []
    dropped: list[Quarantined] = []
    clipped = 0
    for annotation in annotations:
        x1, y1, x2, y2 = annotation.box
        box = (
            _limit(x1, width),
            _limit(y1, height),
            _limit(x2, width),
            _limit(y2, height),
        )
        x1, y1, x2, y2 = box
        if x2 - x1 < MIN_SIDE or y2 - y1 < MIN_SIDE:
            raw = as_coco(annotation, image_id=image.image_id, category_ids=category_ids)
            raw |= {"file_name": image.file_name, "height": height, "width": width}
            name = image.file_name
            where = name if annotation.id is None else f"{annotation.id} of {name}"
            why = "its box has a side under 1 px inside the picture"
            dropped.append(
                Quarantined("annotation", where, why, json.dumps(raw, ensure_ascii=False))
            )
            continue
        clipped += box != annotation.box
        area = (x2 - x1) * (y2 - y1) if annotation.area is None else annotation.area
        inside.append(annotation._replace(box=box, area=area))
    return inside, dropped, clipped


def _limit(value: float, side: int) -> float:
    return min(max(value, 0.0), float(side))
