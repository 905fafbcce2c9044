"""One row of a Parquet file of pictures and objects, as Hugging Face's `datasets` stores them ->
plain values, or why the row or an object cannot be used. And what the schema says: the columns, the
names of the classes.

    image       {"bytes": ..., "path": "a.jpg"}, binary, or the name of a file
    objects     {"bbox": [[...], ...], "category": [...]} or [{"bbox": [...], "category": ...}, ...]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from cluster.errors import DataError
from cluster.formats.annotations import Box
from cluster.formats.names import is_text
from cluster.formats.numbers import as_coordinates, as_number, as_whole
from cluster.storage import parquet_pictures
from detector import json_text

CATEGORY = ("category", "category_id", "label")
"""The fields of an object that may hold its class, the first that is there."""
FIELDS = ("bbox", *CATEGORY, "area", "iscrowd")
NO_OBJECT = "the object is null or no struct"
NO_BOX = "its bbox is not four finite numbers"
NO_CATEGORY = "its category is neither a number from 0 on nor a name"


class ObjectRow(NamedTuple):
    """An object with its `bbox` as it is stored. `area` is px^2, None where not given."""

    bbox: Box
    category: int | str
    crowd: bool
    area: float | None


def columns_to_read(file: pq.ParquetFile, uri: str) -> list[str]:
    """The columns to read: all but the pictures and what is not used of the objects. `DataError`
    where one is missing.
    """
    names = parquet_pictures.leaves(file)
    used = [
        name for name in names if name.startswith("objects.") and {*name.split(".")} & {*FIELDS}
    ]
    first = {name.split(".")[0] for name in names}
    fields = {field for name in used for field in name.split(".")}
    if parquet_pictures.IMAGE not in first or "bbox" not in fields or not fields & {*CATEGORY}:
        raise DataError(
            f"{uri}: its columns are {', '.join(sorted(first))[:300]}; it needs image, and objects"
            " with bbox and category, as Hugging Face's datasets stores them"
        )
    alone = {
        "image_id",
        "width",
        "height",
        parquet_pictures.IMAGE,
        f"{parquet_pictures.IMAGE}.path",
    }
    return [
        name for name in names if name in alone - {parquet_pictures.picture_column(file)}
    ] + used


def objects_of(value: object) -> list[Any] | str:
    """The objects of a row as structs; or why they cannot be told apart."""
    if value is None:
        return []
    if isinstance(value, list):
        return value
    if not isinstance(value, dict):
        return "its objects are no struct of lists"
    lists = {name: value[name] for name in FIELDS if value.get(name) is not None}
    if wrong := [name for name, one in lists.items() if not isinstance(one, list)]:
        return f"its objects.{wrong[0]} is no list"
    if len({len(one) for one in lists.values()}) > 1:
        return "the lists of its objects have different lengths"
    return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]


def count_objects(value: object) -> int:
    """How many objects a row seems to have."""
    if isinstance(value, dict):
        return max((len(one) for one in value.values() if isinstance(one, list)), default=0)
    return len(value) if isinstance(value, list) else 0


def read_object(record: object) -> ObjectRow | str:
    """An object; or why it cannot be used."""
    if not isinstance(record, Mapping):
        return NO_OBJECT
    bbox = record.get("bbox")
    finite = as_coordinates(bbox) if isinstance(bbox, list) else None
    if finite is None or len(finite) != 4:
        return NO_BOX
    given = next((record[name] for name in CATEGORY if record.get(name) is not None), None)
    category = given if isinstance(given, str) else as_whole(given)
    if category is None or (isinstance(category, int) and not 0 <= category < 2**31):
        return NO_CATEGORY
    if isinstance(category, str) and not (is_text(category) and category.strip()):
        return NO_CATEGORY
    x, y, third, fourth = finite
    crowd = record.get("iscrowd") is True or as_whole(record.get("iscrowd")) == 1
    return ObjectRow((x, y, third, fourth), category, crowd, as_number(record.get("area")))


def class_names(metadata: Mapping[bytes, bytes] | None, uri: str) -> list[str] | None:
    """The names that `datasets` stores in the schema: those of the ClassLabel of the objects'
    category. None where there are none. `DataError` where two classes have one name.
    """
    try:
        features = json_text.parse((metadata or {})[b"huggingface"])["info"]["features"]["objects"]
        labels = [one for name in CATEGORY for one in _values_of(features, name)]
        names = next((names for label in labels for names in _values_of(label, "names")), None)
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    if not isinstance(names, list) or not names or not all(map(is_text, names)):
        return None
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(
            f"{uri}: its schema names the class {twice!r} twice; classes go by name: rename one"
        )
    return names


def _values_of(node: object, key: str) -> Iterator[Any]:
    """The values of a key at any depth: each version of `datasets` nests features otherwise."""
    if isinstance(node, dict):
        if key in node:
            yield node[key]
        for value in node.values():
            yield from _values_of(value, key)
    elif isinstance(node, list):
        for value in node:
            yield from _values_of(value, key)
