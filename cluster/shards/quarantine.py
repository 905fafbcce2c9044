"""What prepare left out of a set, and why: quarantine.parquet beside the shards."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.shards.format import REMEDY
from cluster.storage import files
from cluster.storage.uris import join

QUARANTINE = "quarantine.parquet"
_SCHEMA = pa.schema([(name, pa.string()) for name in ("what", "where", "why", "raw")])


@dataclass(frozen=True)
class Quarantined:
    """One row of the quarantine."""

    what: str
    """image, annotation or duplicate."""
    where: str
    """File name or id."""
    why: str
    """The reason in a few words."""
    raw: str
    """The record of the source as JSON."""


def write_quarantine(folder: str, quarantined: Sequence[Quarantined]) -> None:
    sink = pa.BufferOutputStream()
    rows = [asdict(row) for row in quarantined]
    pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), sink)
    files.write_bytes(join(folder, QUARANTINE), sink.getvalue())


def read_quarantine(uri: str) -> list[Quarantined]:
    """The quarantine of the set at `uri`. Errors: see `files.content_errors`."""
    uri = join(uri, QUARANTINE)
    with files.content_errors(uri, REMEDY):
        table = pq.read_table(pa.BufferReader(files.read_bytes(uri)))
        if table.column_names != _SCHEMA.names:
            raise ValueError(f"its columns are {table.column_names}")
        return [Quarantined(**row) for row in table.to_pylist()]


_DETAILS = re.compile(r"\s*\([^()]*\)|\s*<[^<>]* at 0x[0-9a-f]+>")
"""What differs from record to record: text in brackets, and the address of an object in memory."""


def by_reason(quarantined: Iterable[Quarantined]) -> list[tuple[str, list[Quarantined]]]:
    """(why, its rows), the most frequent reason first. Reasons that differ only in the details in
    their brackets count as one.
    """
    reasons: dict[str, list[Quarantined]] = {}
    for row in quarantined:
        reasons.setdefault(_DETAILS.sub("", row.why), []).append(row)
    return sorted(reasons.items(), key=lambda entry: (-len(entry[1]), entry[0]))
