"""The shard set: Parquet shards of encoded images with their boxes, and the index.json that makes
them a data set.

    shard-00007-of-00064.parquet
        image_id int64, file_name string, image binary (encoded), height int32, width int32,
        boxes list<float[4]>  XYXY px of the upright image
        labels list<int32>    0..K-1
        crowd list<bool>
        area list<float>      px^2
        source int32          position in the index's `sources`
        sha256 binary[32]     of the source file, before any rotation
        absent list<int32>, incomplete list<int32>
                              see `Federated`; in shards with such an image alone, null for others
    quarantine.parquet
        what prepare left out: what (image | annotation | duplicate), where (file name or id), why,
        raw (JSON)
    index.json
        written last; without it there is no data set

A digest is a sha256 in hex. The set digest covers the schema version, the categories and the
digests of the shards, in order, so two sets with the same digest have the same bytes in the same
order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

SCHEMA_VERSION = 2
REPORT = "report.html"
REMEDY = "run prepare with --overwrite true"
SCHEMA = pa.schema(
    [
        ("image_id", pa.int64()),
        ("file_name", pa.string()),
        ("image", pa.binary()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("boxes", pa.list_(pa.list_(pa.float32(), 4))),
        ("labels", pa.list_(pa.int32())),
        ("crowd", pa.list_(pa.bool_())),
        ("area", pa.list_(pa.float32())),
        ("source", pa.int32()),
        ("sha256", pa.binary(32)),
    ]
)


FEDERATED = pa.schema([("absent", pa.list_(pa.int32())), ("incomplete", pa.list_(pa.int32()))])
"""Columns of shards that hold images of a federated source."""


class Federated(NamedTuple):
    """What is known of an image that was not searched for every class (LVIS). Labels; the classes
    of its objects were searched for too. Of all others nothing is known.
    """

    absent: tuple[int, ...]
    """Classes that were searched for and have no object in it."""
    incomplete: tuple[int, ...]
    """Classes that may have more objects than those annotated."""


FREQUENCIES = {"r": "rare", "c": "common", "f": "frequent"}
"""LVIS's classes of how many training images have a category: up to 10, up to 100, more."""


class Category(NamedTuple):
    """`label` 0..K-1 is the project's own number, `id` that of the COCO JSON. `frequency` is one
    of `FREQUENCIES`, where the source gives it.
    """

    label: int
    id: int
    name: str
    frequency: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Without a frequency where there is none, as older versions wrote it."""
        return {name: value for name, value in self._asdict().items() if value is not None}

    @staticmethod
    def from_json(fields: Mapping[str, Any]) -> Category:
        """Raises `KeyError` for a key that is missing."""
        return Category(fields["label"], fields["id"], fields["name"], fields.get("frequency"))


class RowGroup(NamedTuple):
    """A part of the file: `bytes` from byte `start` on, and their digest."""

    rows: int
    start: int
    bytes: int
    sha256: str


class Shard(NamedTuple):
    """One file: its row groups one after another, then Parquet's footer to the end of the file."""

    name: str
    rows: int
    bytes: int
    sha256: str
    row_groups: tuple[RowGroup, ...]
    footer_sha256: str

    @property
    def footer_start(self) -> int:
        return self.row_groups[-1].start + self.row_groups[-1].bytes

    def to_json(self) -> dict[str, Any]:
        return self._asdict()

    @staticmethod
    def from_json(fields: dict[str, Any]) -> Shard:
        """`ValueError` where the name leads out of the folder of its set."""
        if "/" in fields["name"]:
            raise ValueError(f"a shard has the name {fields['name'][:60]!r}")
        groups = tuple(RowGroup(*group) for group in fields["row_groups"])
        return Shard(**{**fields, "row_groups": groups})


class GroupLocation(NamedTuple):
    """All that is needed to read and verify one row group; plain values that travel as JSON."""

    uri: str
    """Of the shard."""
    number: int
    """Of the row group in the shard."""
    start: int
    """First byte of the row group in the shard."""
    bytes: int
    sha256: str
    footer_start: int
    footer_bytes: int
    footer_sha256: str


@dataclass(frozen=True)
class Row:
    """One image as stored. boxes_N4 are float32 XYXY px of the upright image, area_N is px^2, and
    sha256 is that of the source file.
    """

    image_id: int
    file_name: str
    image: bytes
    height: int
    width: int
    boxes_N4: np.ndarray
    labels_N: Sequence[int]
    crowd_N: Sequence[bool]
    area_N: Sequence[float]
    source: int
    sha256: bytes
    federated: Federated | None = None


def shard_name(number: int, total: int) -> str:
    return f"shard-{number:05d}-of-{total:05d}.parquet"


def first_rows(rows_per_group: Sequence[int]) -> np.ndarray:
    """int64 (groups + 1,): the number of each row group's first row in the whole set, then the
    number of rows of the set.
    """
    return np.concatenate([[0], np.cumsum(rows_per_group, dtype=np.int64)])
