"""The plan of a prediction: its images in parts, as files that depend on the list of images alone.

    plan.json                  who owns the folder: `Claim`, and, when the list was read to its end,
                               the parts with their rows and digests: `Plan`
    plan/part-000000.parquet   the images of a part: uri, image_id, size, changed, carried columns

Nobody holds the whole list. The first parts are small, so that results come early and a short list
has work for several workers.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.errors import UsageError
from cluster.storage import files, record_files
from cluster.storage.parquet_tables import read_table
from cluster.storage.uris import join

PLAN, FOLDER, VERSION = "plan.json", "plan", 1
SMALLEST, LARGEST, OF_ONE_SIZE = 16, 1024, 8
"""Images of the first parts, of the last ones, and parts before the size doubles."""
PART_BYTES = 256 << 20
UNKNOWN_BYTES = 128 << 10
"""For an image whose size the list does not have: a usual JPEG."""
SHOWN = 3
"""Objects that a refusal names."""
REMEDY = "choose another --output, or say --overwrite true to start over"


class OtherPrediction(UsageError):
    """The folder belongs to a prediction with another model, other settings or other images."""


@dataclass(frozen=True)
class Claim:
    """What determines the results, beside the list of images."""

    model_version: str
    package_digest: str
    decode: Mapping[str, Any]
    """Thresholds of the package."""
    images: str
    column: str
    max_pixels: int
    category_ids: Sequence[int | None]
    """Of the results in COCO's form, by label."""
    overlays: int | None
    """Pictures to draw; None: all."""
    views: Mapping[str, Any] = field(default_factory=dict)
    """Tiles and mirroring, `ViewSettings.as_dict`."""
    thresholds: Mapping[str, float | None] | None = None
    """The score that detections of a class must reach; None: the class is left out. Without any,
    those of the package's own threshold count.
    """

    def to_json(self) -> dict[str, Any]:
        content = {**asdict(self), "category_ids": list(self.category_ids)}
        if self.thresholds is None:
            # As in plans from before this field.
            del content["thresholds"]
        return content

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class PlannedPart:
    rows: int
    digest: str
    """Of the listed images."""


@dataclass(frozen=True)
class Plan:
    """plan.json. `parts` is None until the list was read to its end."""

    claim: Mapping[str, Any]
    claim_digest: str
    parts: tuple[PlannedPart, ...] | None = None
    passed_over: Mapping[str, int] | None = None

    @property
    def images(self) -> int | None:
        return None if self.parts is None else sum(part.rows for part in self.parts)

    def to_json(self) -> dict[str, Any]:
        parts = None if self.parts is None else [[part.rows, part.digest] for part in self.parts]
        return {
            "version": VERSION,
            "claim": dict(self.claim),
            "claim_digest": self.claim_digest,
            "images": self.images,
            "passed_over": self.passed_over,
            "parts": parts,
        }

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> Plan:
        """`KeyError`, `TypeError` or `ValueError` where the content is not that of plan.json."""
        if content["version"] != VERSION:
            raise ValueError(f"version {content['version']!r}")
        parts = content["parts"]
        return Plan(
            claim=content["claim"],
            claim_digest=content["claim_digest"],
            parts=None if parts is None else tuple(PlannedPart(*part) for part in parts),
            passed_over=content["passed_over"],
        )


def name_of(number: int) -> str:
    return f"part-{number:06d}.parquet"


def is_part(name: str) -> bool:
    return name.startswith("part-") and name.endswith(".parquet")


def images_of(number: int) -> int:
    """The most images of a part."""
    return min(LARGEST, SMALLEST << (number // OF_ONE_SIZE)) if number < 200 else LARGEST


def cut(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The rows of the tables, each in exactly one part. A part has at most `images_of` images, and
    `PART_BYTES` unless one image alone has more.
    """
    number, held, count, size = 0, list[pa.Table](), 0, 0
    for table in tables:
        start = 0
        for row, given in enumerate(table["size"].to_pylist()):
            bytes_ = UNKNOWN_BYTES if given is None else given
            if count and (count >= images_of(number) or size + bytes_ > PART_BYTES):
                yield pa.concat_tables([*held, table.slice(start, row - start)]).combine_chunks()
                number, held, count, size, start = number + 1, [], 0, 0, row
            count, size = count + 1, size + bytes_
        held.append(table.slice(start))
    if count:
        yield pa.concat_tables(held).combine_chunks()


def digest_of(part: pa.Table) -> str:
    return hashlib.sha256(json.dumps(part.to_pylist(), default=repr).encode()).hexdigest()


def read_plan(output: str) -> Plan | None:
    """None where there is none. `DataError` where it is damaged."""
    uri = join(output, PLAN)
    try:
        return record_files.read(uri, Plan.from_json, remedy=REMEDY)
    except (FileNotFoundError, NotADirectoryError):
        return None


def write_plan(output: str, plan: Plan) -> None:
    files.write_json(join(output, PLAN), plan.to_json())


def check_claim(output: str, former: Plan, claim: Claim) -> None:
    """`OtherPrediction` with the fields that differ."""
    given = json.loads(json.dumps(claim.to_json()))
    names = [*given, *(former.claim.keys() - given.keys())]
    if differing := [name for name in names if former.claim.get(name) != given.get(name)]:
        shown = "; ".join(
            f"{name} is {_short(given.get(name))}, there {_short(former.claim.get(name))}"
            for name in differing
        )
        raise OtherPrediction(f"output {output}: has another prediction: {shown}; {REMEDY}")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def check_images(output: str, former: Plan, parts: Iterable[pa.Table]) -> None:
    """`OtherPrediction` with the first images that differ from those of a plan that was finished.
    Reads no file of it unless one differs.
    """
    assert former.parts is not None
    number = -1
    for number, part in enumerate(parts):
        known = former.parts[number : number + 1]
        if not known or known[0].digest != digest_of(part):
            refuse_part(output, read_part(output, number) if known else None, part)
    if number + 1 < len(former.parts):
        refuse_part(output, read_part(output, number + 1), None)


def refuse_part(output: str, former: pa.Table | None, part: pa.Table | None) -> None:
    """Raise `OtherPrediction`, which names the first images that differ."""
    before = [] if former is None else former.to_pylist()
    now = [] if part is None else part.to_pylist()
    old, new = ({row["uri"]: row for row in rows} for rows in (before, now))
    said = [f"{uri} is new" for uri in new if uri not in old]
    said += [f"{uri} is not there any more" for uri in old if uri not in new]
    for uri in new.keys() & old.keys():
        if changed := [key for key in new[uri] if new[uri][key] != old[uri].get(key)]:
            said.append(f"{uri} has another {', '.join(changed)}")
    shown = "; ".join(sorted(said)[:SHOWN]) or "their order differs"
    raise OtherPrediction(
        f"output {output}: was begun with other images: {shown}; put them back, {REMEDY}"
    )


def read_part(output: str, number: int) -> pa.Table:
    """The images of a part. `UsageError` where this machine does not see it."""
    uri = _uri(output, number)
    try:
        data = files.read_bytes(uri)
    except FileNotFoundError:
        raise UsageError(
            f"{uri}: is not there; if workers run on other nodes, --output must be a folder that"
            " all nodes share, or s3://bucket/key"
        ) from None
    with files.content_errors(uri, REMEDY):
        return read_table(data)


def find_part(output: str, number: int) -> pa.Table | None:
    return read_part(output, number) if files.exists(_uri(output, number)) else None


def write_part(output: str, number: int, part: pa.Table) -> None:
    files.write_bytes(_uri(output, number), as_parquet(part))


def as_parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _uri(output: str, number: int) -> str:
    return join(output, FOLDER, name_of(number))
