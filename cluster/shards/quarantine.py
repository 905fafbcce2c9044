"""What prepare left out of a set, and why: quarantine.parquet beside the shards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.shards.format import REMEDY
from cluster.storage import files
from cluster.storage.parquet_tables import read_table
from cluster.storage.uris import join

QUARANTINE = "quarantine.parquet"
_SCHEMA = pa.schema([(name, pa.string()) for name in ("what", "where", "why", "raw", "detail")])


@dataclass(frozen=True)
class Quarantined:
    """One row of the quarantine."""

    what: str
    """image, annotation or duplicate."""
    where: str
    """File name or id."""
    why: str
    """The reason in a few words, the same for all records of this fault."""
    raw: str
    """The record of the source as JSON."""
    detail: str = ""
    """The values of this record that belong to the reason; files of version 0.1 have them in
    `why`.
    """


def write_quarantine(folder: str, quarantined: Sequence[Quarantined]) -> None:
    sink = pa.BufferOutputStream()
    rows = [asdict(row) for row in quarantined]
    pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), sink)
    files.write_bytes(join(folder, QUARANTINE), sink.getvalue())


def read_quarantine(uri: str) -> list[Quarantined]:
    """The quarantine of the set at `uri`. Errors: see `files.content_errors`."""
    uri = join(uri, QUARANTINE)
    with files.content_errors(uri, REMEDY):
        table = read_table(files.read_bytes(uri))
        if table.column_names not in (_SCHEMA.names, _SCHEMA.names[:-1]):
            raise ValueError(f"its columns are {table.column_names}")
        return [Quarantined(**row) for row in table.to_pylist()]


def by_reason(quarantined: Iterable[Quarantined]) -> list[tuple[str, list[Quarantined]]]:
    """(why, its rows), the most frequent reason first."""
    reasons: dict[str, list[Quarantined]] = {}
    for row in quarantined:
        reasons.setdefault(row.why, []).append(row)
    return sorted(reasons.items(), key=lambda entry: (-len(entry[1]), entry[0]))


def example_of(rows: Sequence[Quarantined]) -> str:
    """The first of the rows of a reason, as an example in a sentence: its name and its values."""
    first = rows[0]
    return f"such as {first.where}{': ' if first.detail else ''}{first.detail}"
