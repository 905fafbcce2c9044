"""What annotated pictures become, whatever format they came in: image records kept in columns, the
quarantine, boxes cut to the picture.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from cluster.formats.names import text
from cluster.shards.format import Category
from cluster.shards.quarantine import Quarantined

MIN_SIDE = 1.0
"""px; what is narrower or lower after clipping is no object a detector could find (train2017 holds
boxes of height 0).
"""
MAX_ID = 2**63 - 1
NO_ID = -1


class Annotation(NamedTuple):
    """`box` is XYXY px as annotated, not clipped: what the size of the picture is, its pixels
    decide. `id`, `area` None: not given.
    """

    id: int | None
    label: int
    box: tuple[float, float, float, float]
    crowd: bool
    area: float | None


class ImageRecord(NamedTuple):
    """`file_name` is relative to the images folder of source number `source` and stays inside it.
    Height and width px as annotated, None when they were not. Where `normalised`, boxes are shares
    of the width and height of the upright picture instead of px."""

    image_id: int
    file_name: str
    height: int | None
    width: int | None
    annotations: tuple[Annotation, ...]
    source: int = 0
    normalised: bool = False


@dataclass(frozen=True, eq=False)
class Images(Sequence[ImageRecord]):
    """Images with their annotations as columns; an index makes one `ImageRecord`. 860k annotations
    take 46 MB like this and 290 MB as tuples.

    Suffix I: an image; N: an annotation, those of image i are first_I1[i] to first_I1[i + 1]. A
    height or width of 0, an annotation id of -1 and an area of NaN say "not given".
    """

    ids_I: np.ndarray
    names: list[str]
    heights_I: np.ndarray
    widths_I: np.ndarray
    sources_I: np.ndarray
    normalised_I: np.ndarray
    first_I1: np.ndarray
    ids_N: np.ndarray
    labels_N: np.ndarray
    boxes_N4: np.ndarray
    crowd_N: np.ndarray
    area_N: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[one] for one in range(*place.indices(len(self)))]
        place = range(len(self))[place]
        own = slice(int(self.first_I1[place]), int(self.first_I1[place + 1]))
        columns = (self.ids_N, self.labels_N, self.boxes_N4, self.crowd_N, self.area_N)
        annotations = tuple(
            Annotation(
                None if id_ == NO_ID else id_,
                label,
                tuple(box),
                crowd,
                None if area != area else area,
            )
            for id_, label, box, crowd, area in zip(
                *(column[own].tolist() for column in columns), strict=True
            )
        )
        height, width = int(self.heights_I[place]), int(self.widths_I[place])
        source, normalised = int(self.sources_I[place]), bool(self.normalised_I[place])
        return ImageRecord(
            int(self.ids_I[place]),
            self.names[place],
            height or None,
            width or None,
            annotations,
            source,
            normalised,
        )


def make_images(
    *,
    ids: Any,
    names: Sequence[str],
    heights: Any,
    widths: Any,
    owners: Any,
    annotations: dict[str, Any],
    normalised: bool = False,
) -> Images:
    """Columns in any order -> `Images` by ascending id. `owners` gives the position in `names` of
    each annotation's image; the annotations of one image keep their order. `annotations` holds
    ids_N, labels_N, boxes_N4, crowd_N and area_N."""
    ids_I = np.asarray(ids, np.int64)
    order_I = np.argsort(ids_I, kind="stable")
    rank_I = np.empty_like(order_I)
    rank_I[order_I] = np.arange(len(order_I))
    owners_N = rank_I[np.asarray(owners, np.int64)] if len(owners) else np.zeros(0, np.int64)
    order_N = np.argsort(owners_N, kind="stable")
    kinds = {
        "ids_N": np.int64,
        "labels_N": np.int32,
        "boxes_N4": np.float64,
        "crowd_N": np.bool_,
        "area_N": np.float64,
    }
    columns = {name: np.asarray(annotations[name], kind)[order_N] for name, kind in kinds.items()}
    columns["boxes_N4"] = columns["boxes_N4"].reshape(-1, 4)
    return Images(
        ids_I=ids_I[order_I],
        names=[names[place] for place in order_I],
        heights_I=np.asarray(heights, np.int64)[order_I],
        widths_I=np.asarray(widths, np.int64)[order_I],
        sources_I=np.zeros(len(ids_I), np.int32),
        normalised_I=np.full(len(ids_I), normalised),
        first_I1=np.concatenate(
            [[0], np.cumsum(np.bincount(owners_N, minlength=len(ids_I)))]
        ).astype(np.int64),
        **columns,
    )


def collect(records: Sequence[ImageRecord], *, normalised: bool = False) -> Images:
    """`Images` of records in any order."""
    every = [(place, one) for place, record in enumerate(records) for one in record.annotations]
    return make_images(
        ids=[record.image_id for record in records],
        names=[record.file_name for record in records],
        heights=[record.height or 0 for record in records],
        widths=[record.width or 0 for record in records],
        owners=[place for place, _ in every],
        annotations={
            "ids_N": [NO_ID if one.id is None else one.id for _, one in every],
            "labels_N": [one.label for _, one in every],
            "boxes_N4": np.array([one.box for _, one in every], np.float64).reshape(-1, 4),
            "crowd_N": [one.crowd for _, one in every],
            "area_N": [np.nan if one.area is None else one.area for _, one in every],
        },
        normalised=normalised,
    )


@dataclass(frozen=True)
class Source:
    """What one source holds of a split: images in the order of their ids; `repairs` counts what was
    filled in; `digest` is a sha256 of the annotations. `listed` and `annotated` count images and
    annotations before anything was left out, `lost` the annotations that went with images left out;
    `largest_id` is the largest image id of all splits."""

    categories: tuple[Category, ...]
    images: Images
    quarantined: tuple[Quarantined, ...]
    repairs: dict[str, int]
    listed: int
    annotated: int
    lost: int
    largest_id: int
    digest: str

    @property
    def category_ids(self) -> tuple[int, ...]:
        """By label."""
        return tuple(category.id for category in self.categories)


@dataclass
class Findings:
    quarantined: list[Quarantined] = field(default_factory=list)
    repairs: Counter[str] = field(default_factory=Counter)

    def reject(self, what: str, where: object, why: str, record: object) -> None:
        if isinstance(record, dict):
            # Polygons are most of a COCO file and say nothing about what was wrong.
            record = {name: value for name, value in record.items() if name != "segmentation"}
        self.quarantined.append(
            Quarantined(
                what,
                text(str(where)),
                why,
                text(json.dumps(record, ensure_ascii=False, default=str)),
            )
        )


def as_coco(one: Annotation, *, image_id: int, category_ids: Sequence[int]) -> dict[str, Any]:
    """An annotation in the words of a COCO file, whatever format it came in; bbox is [x, y, width,
    height], None what was not given.
    """
    x1, y1, x2, y2 = one.box
    # Sides were added to corners: of numbers under a million the 1e-6 px are what a float64 can
    # still give back.
    bbox = [x1, y1, round(x2 - x1, 6), round(y2 - y1, 6)]
    return {
        "id": one.id,
        "image_id": image_id,
        "category_id": category_ids[one.label],
        "bbox": bbox,
        "area": one.area,
        "iscrowd": int(one.crowd),
    }


def clip_annotations(
    annotations: Iterable[Annotation],
    *,
    height: int,
    width: int,
    image: ImageRecord,
    category_ids: Sequence[int],
) -> tuple[list[Annotation], list[Quarantined], int]:
    """Boxes clipped to the picture of `height` x `width` px. Returns the kept ones with their area
    filled in, the dropped ones, how many were cut.

    Dropped is what has a side under 1 px then: no, negative or outside extent. The quarantine names
    `image` and the id of each label.
    """
    kept, dropped, cut = [], [], 0
    for one in annotations:
        limits = (width, height, width, height)
        x1, y1, x2, y2 = (
            min(max(value, 0.0), float(limit)) for value, limit in zip(one.box, limits, strict=True)
        )
        if x2 - x1 < MIN_SIDE or y2 - y1 < MIN_SIDE:
            raw = as_coco(one, image_id=image.image_id, category_ids=category_ids)
            raw |= {"file_name": image.file_name, "height": height, "width": width}
            where = image.file_name if one.id is None else f"{one.id} of {image.file_name}"
            dropped.append(
                Quarantined(
                    "annotation",
                    where,
                    "its box has a side under 1 px inside the picture",
                    json.dumps(raw, ensure_ascii=False),
                )
            )
            continue
        cut += (x1, y1, x2, y2) != one.box
        area = (x2 - x1) * (y2 - y1) if one.area is None else one.area
        kept.append(Annotation(one.id, one.label, (x1, y1, x2, y2), one.crowd, area))
    return kept, dropped, cut


def is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_ID


def some(ids: Sequence[Any]) -> str:
    return ", ".join(text(str(id_)) for id_ in ids[:5]) + (
        f" and {len(ids) - 5} more" if len(ids) > 5 else ""
    )
