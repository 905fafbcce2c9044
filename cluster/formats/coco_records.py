"""Single records of a COCO JSON: which are usable, and why others are not."""

from __future__ import annotations

import json
import math
from array import array
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from cluster.errors import DataError
from cluster.formats import lvis
from cluster.formats.annotations import MAX_ID
from cluster.formats.names import escape_surrogates, is_text
from cluster.formats.numbers import MAX_COORDINATE
from cluster.shards.format import Category


class AnnotationFields(NamedTuple):
    """The fields of a usable annotation. `bbox` is x, y, width, height in px; `crowd` is None where
    iscrowd is missing, `area` NaN where it is missing or not a number from 0 on.
    """

    image_id: int
    category_id: int
    bbox: tuple[float, ...]
    crowd: int | None
    area: float


def parse_annotation(record: dict[str, Any]) -> AnnotationFields | str:
    """The fields of an annotation, or the reason why it cannot be used."""
    image_id, category_id = record.get("image_id"), record.get("category_id")
    bbox, crowd = _finite_numbers(record.get("bbox")), record.get("iscrowd")
    if not is_id(image_id):
        return _no_integer(record, "image_id")
    if not is_id(category_id):
        return _no_integer(record, "category_id")
    if bbox is None or len(bbox) != 4:
        if record.get("bbox") is None:
            return "its bbox is missing"
        return "its bbox is not four finite numbers"
    if crowd is not None and (not isinstance(crowd, (int, float)) or crowd not in (0, 1)):
        return "its iscrowd is neither 0 nor 1"
    area = _finite_numbers([record.get("area")])
    return AnnotationFields(
        image_id,
        category_id,
        bbox,
        None if crowd is None else int(crowd),
        math.nan if area is None or area[0] < 0 else area[0],
    )


def _no_integer(record: dict[str, Any], name: str) -> str:
    return f"its {name} is {'missing' if record.get(name) is None else 'not an integer from 0 on'}"


def is_id(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_ID


def _finite_numbers(values: object) -> tuple[float, ...] | None:
    """`values` as floats, or None when it is not a list of finite numbers (bool and text are not
    numbers).
    """
    if not isinstance(values, list) or not all(
        isinstance(value, (int, float)) and not isinstance(value, bool) for value in values
    ):
        return None
    # NaN and infinity fail this comparison too.
    if not all(abs(value) < MAX_COORDINATE for value in values):
        return None
    return tuple(float(value) for value in values)


def lookup_key(value: object) -> int | str:
    """`value` as a key of look-ups. Values that JSON cannot hash become text, and so does True,
    which Python takes for 1.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value if -MAX_ID <= value <= MAX_ID else f"not an id: {value}"
    return value if isinstance(value, str) else f"not an id: {json.dumps(value, default=str)}"


def read_categories(records: list[Any], uri: str) -> tuple[Category, ...]:
    """Categories by ascending id. `DataError` when there are none or one lacks an id or a name."""
    ids: list[int | str] = []
    for record in records:
        if (
            not isinstance(record, dict)
            or not is_id(record.get("id"))
            or not is_text(record.get("name"))
        ):
            raise DataError(
                f"{uri}: category {json.dumps(record, default=str)[:200]} must have an integer id"
                " and a name"
            )
        ids.append(record["id"])
    if not ids:
        raise DataError(
            f"{uri}: its list of categories is empty; a detector needs at least one class"
        )
    check_unique(ids, "category", uri)
    return tuple(
        Category(label, record["id"], record["name"], lvis.frequency_of(record))
        for label, record in enumerate(sorted(records, key=lambda record: record["id"]))
    )


def check_unique(ids: Sequence[int | str], what: str, uri: str) -> None:
    """`DataError` when two records have the same id: every later look-up would be ambiguous, and
    COCO's own evaluation then reports a wrong AP without a warning.
    """
    doubled = [id_ for id_, count in Counter(ids).items() if count > 1]
    if doubled:
        shown = ", ".join(escape_surrogates(str(id_)) for id_ in doubled[:5])
        more = f" and {len(doubled) - 5} more" if len(doubled) > 5 else ""
        raise DataError(
            f"{uri}: {what} id {shown}{more} is used more than once; ids must be unique: merge or"
            " renumber these records"
        )


def repeated_ids(ids: array[int]) -> list[int]:
    """The ids that are used more than once, each of them twice."""
    ordered = np.sort(np.array(ids, np.int64))
    return np.unique(ordered[1:][ordered[1:] == ordered[:-1]]).repeat(2).tolist()
