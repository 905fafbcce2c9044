"""Read, validate and repair COCO annotations. One bad record costs that record: it goes to the quarantine with the reason.

Only what makes the whole file ambiguous is an error: JSON that cannot be parsed, no images, no categories, ids used twice.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from cluster import storage
from cluster.errors import DataError, UsageError
from cluster.shards import Category

MIN_SIDE = 1.0
"""px; what is narrower or lower after clipping is no object a detector could find (train2017 holds boxes of height 0)."""
MAX_ID = 2**63 - 1


class Annotation(NamedTuple):
    """`box` is XYXY px as annotated, not clipped: what the size of the picture is, its pixels decide. `area` None: not given."""

    id: int | None
    label: int
    box: tuple[float, float, float, float]
    crowd: bool
    area: float | None


class ImageRecord(NamedTuple):
    """`file_name` is relative to the images folder and stays inside it. Height and width px as the JSON has them, None when it has none."""

    image_id: int
    file_name: str
    height: int | None
    width: int | None
    annotations: tuple[Annotation, ...]


@dataclass(frozen=True)
class Quarantined:
    """`what` image or annotation, `where` its file name or id, `why` in a few words, `raw` the record as JSON."""

    what: str
    where: str
    why: str
    raw: str


@dataclass(frozen=True)
class Source:
    """What a COCO JSON holds: images in the order of their ids; `repairs` counts what was filled in; `digest` is the sha256 of the file."""

    categories: tuple[Category, ...]
    images: tuple[ImageRecord, ...]
    quarantined: tuple[Quarantined, ...]
    repairs: dict[str, int]
    listed: int
    digest: str


@dataclass
class Findings:
    quarantined: list[Quarantined] = field(default_factory=list)
    repairs: Counter[str] = field(default_factory=Counter)

    def reject(self, what: str, where: object, why: str, record: object) -> None:
        self.quarantined.append(Quarantined(what, str(where), why, json.dumps(record, ensure_ascii=False, default=str)[:10_000]))


def read_coco(uri: str) -> Source:
    """Read one COCO JSON. `UsageError` when it is not there, `DataError` when the whole file cannot be used (see the top of this file).

    Labels count the categories by ascending id, so the same categories give the same labels in every split.
    """
    try:
        data = storage.read_bytes(uri)
    except FileNotFoundError:
        raise UsageError(f"{uri}: there is no such annotation file; check --annotations") from None
    except OSError as error:
        raise UsageError(f"{uri}: the annotation file cannot be read ({storage.reason(error)}); check --annotations") from error
    content = storage.parse_json(data, uri)
    for name in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise DataError(f"{uri}: not a COCO file: it has no list named {name!r}; detection data needs images, annotations and categories")
    if not content["images"]:
        raise DataError(f"{uri}: its list of images is empty; there is nothing to prepare")
    categories = read_categories(content["categories"], uri)
    check_unique(content["images"], "image", uri)
    check_unique(content["annotations"], "annotation", uri)

    findings = Findings()
    images = {record["id"]: record for record in content["images"] if image_is_usable(record, findings)}
    known_ids = {key(record["id"]) for record in content["images"] if isinstance(record, dict) and "id" in record}
    labels = {category.id: category.label for category in categories}
    by_image: dict[int, list[Annotation]] = {image_id: [] for image_id in images}
    for record in content["annotations"]:
        annotation = read_annotation(record, labels, known_ids, findings)
        # The annotations of a quarantined image are lost with it and need no entry of their own.
        if annotation is not None and (image_id := key(record["image_id"])) in by_image:
            by_image[image_id].append(annotation)
    return Source(
        categories=categories,
        images=tuple(to_image(images[image_id], by_image[image_id], findings) for image_id in sorted(images)),
        quarantined=tuple(findings.quarantined),
        repairs=dict(findings.repairs),
        listed=len(content["images"]),
        digest=hashlib.sha256(data).hexdigest(),
    )


def read_categories(records: list[Any], uri: str) -> tuple[Category, ...]:
    ids = []
    for record in records:
        if not isinstance(record, dict) or not is_id(record.get("id")) or not isinstance(record.get("name"), str):
            raise DataError(f"{uri}: category {json.dumps(record, default=str)[:200]} must have an integer id and a name")
        ids.append(record["id"])
    if not ids:
        raise DataError(f"{uri}: its list of categories is empty; a detector needs at least one class")
    repeated = [id_ for id_, times in Counter(ids).items() if times > 1]
    if repeated:
        raise DataError(f"{uri}: category id {some(repeated)} is used more than once; ids must be unique")
    return tuple(Category(label, record["id"], record["name"]) for label, record in enumerate(sorted(records, key=lambda r: r["id"])))


def check_unique(records: list[Any], what: str, uri: str) -> None:
    """Two records of one id make every later lookup ambiguous: COCO's own evaluation then reports a wrong AP without a word."""
    ids = Counter(key(record["id"]) for record in records if isinstance(record, dict) and "id" in record)
    repeated = [id_ for id_, times in ids.items() if times > 1]
    if repeated:
        raise DataError(f"{uri}: {what} id {some(repeated)} is used more than once; ids must be unique: merge or renumber these records")


def image_is_usable(record: Any, findings: Findings) -> bool:
    if not isinstance(record, dict):
        findings.reject("image", "?", "the record is not an object", record)
        return False
    name = record.get("file_name")
    where = name if isinstance(name, str) and name else record.get("id", "?")
    if not is_id(record.get("id")):
        findings.reject("image", where, "its id is not an integer from 0 on", record)
    elif not isinstance(name, str) or not name:
        findings.reject("image", where, "it has no file_name", record)
    elif inside_folder(name) is None:
        findings.reject("image", where, "its file_name leads out of the images folder", record)
    else:
        return True
    return False


def inside_folder(name: str) -> str | None:
    """`name` without `.` and `..` steps, or None when it does not stay below the folder it is relative to."""
    path = posixpath.normpath(name.replace("\\", "/"))
    outside = path.startswith(("/", "../")) or path in ("..", ".") or ":" in path.split("/")[0] or "\0" in path
    return None if outside else path


def to_image(record: dict[str, Any], annotations: list[Annotation], findings: Findings) -> ImageRecord:
    height, width = record.get("height"), record.get("width")
    if not (is_id(height) and is_id(width) and height and width):
        findings.repairs["image sizes missing in the JSON, taken from the pixels"] += 1
        height = width = None
    return ImageRecord(record["id"], inside_folder(record["file_name"]) or "", height, width, tuple(annotations))


def read_annotation(record: Any, labels: dict[int, int], image_ids: set[Any], findings: Findings) -> Annotation | None:
    """The annotation with missing fields filled, or None when it went to the quarantine."""
    if not isinstance(record, dict):
        findings.reject("annotation", "?", "the record is not an object", record)
        return None
    where = record.get("id", "?")
    numbers = finite_numbers(record.get("bbox"))
    crowd = record.get("iscrowd")
    if key(record.get("image_id")) not in image_ids:
        findings.reject("annotation", where, "its image_id is not in the list of images", record)
    elif key(record.get("category_id")) not in labels:
        findings.reject("annotation", where, "its category_id is not in the list of categories", record)
    elif numbers is None or len(numbers) != 4:
        findings.reject("annotation", where, "its bbox is missing" if record.get("bbox") is None else "its bbox is not four finite numbers", record)
    elif crowd is not None and (not isinstance(crowd, (int, float)) or crowd not in (0, 1)):
        findings.reject("annotation", where, "its iscrowd is neither 0 nor 1", record)
    else:
        x, y, width, height = numbers
        area = finite_numbers([record.get("area")])
        if area is None or area[0] < 0:
            findings.repairs["areas missing or not a number, filled with width x height"] += 1
        if crowd is None:
            findings.repairs["iscrowd missing, filled with 0"] += 1
        known_area = None if area is None or area[0] < 0 else area[0]
        return Annotation(record.get("id"), labels[record["category_id"]], (x, y, x + width, y + height), bool(crowd), known_area)
    return None


def clip_annotations(
    annotations: Iterable[Annotation], *, height: int, width: int, file_name: str
) -> tuple[list[Annotation], list[Quarantined], int]:
    """Boxes clipped to the picture of `height` x `width` px. Returns the kept ones with their area filled in, the dropped ones, how many were cut.

    Dropped is what has a side under 1 px then: no, negative or outside extent.
    """
    kept, dropped, cut = [], [], 0
    for one in annotations:
        limits = (width, height, width, height)
        x1, y1, x2, y2 = (min(max(value, 0.0), float(limit)) for value, limit in zip(one.box, limits, strict=True))
        if x2 - x1 < MIN_SIDE or y2 - y1 < MIN_SIDE:
            raw = {"id": one.id, "file_name": file_name, "box_xyxy": list(one.box), "height": height, "width": width}
            dropped.append(Quarantined("annotation", str(one.id), "its box has a side under 1 px inside the picture", json.dumps(raw)))
            continue
        cut += (x1, y1, x2, y2) != one.box
        area = (x2 - x1) * (y2 - y1) if one.area is None else one.area
        kept.append(Annotation(one.id, one.label, (x1, y1, x2, y2), one.crowd, area))
    return kept, dropped, cut


def boxes_array(annotations: Iterable[Annotation]) -> np.ndarray:
    """float32 (N, 4) XYXY px."""
    return np.array([one.box for one in annotations], np.float32).reshape(-1, 4)


def finite_numbers(values: Any) -> list[float] | None:
    """`values` as floats, or None when it is not a list of finite numbers (bool and text are none)."""
    if not isinstance(values, list) or not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        return None
    # NaN and infinity fail the comparison too; beyond 1e9 x + width loses the pixels, and no picture is that large.
    return [float(value) for value in values] if all(abs(value) < 1e9 for value in values) else None


def is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_ID


def key(value: Any) -> Any:
    """`value` so that it can be looked up: what JSON cannot hash, and True, which Python takes for 1, become text."""
    return value if isinstance(value, (int, str)) and not isinstance(value, bool) else f"not an id: {json.dumps(value, default=str)}"


def some(ids: list[Any]) -> str:
    return ", ".join(str(id_) for id_ in ids[:5]) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
