"""What prepare left out of a set, and why: quarantine.parquet beside the shards."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.shards.format import REMEDY
from cluster.storage import files
from cluster.storage.uris import join

QUARANTINE = "quarantine.parquet"
QUARANTINE_SCHEMA = pa.schema([(name, pa.string()) for name in ("what", "where", "why", "raw")])


def write_quarantine(folder: str, records: Sequence[dict[str, str]]) -> None:
    """`records` hold what, where, why and raw."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(records), schema=QUARANTINE_SCHEMA), sink)
    files.write_bytes(join(folder, QUARANTINE), sink.getvalue())


def read_quarantine(uri: str) -> list[dict[str, str]]:
    """The records left out. Errors: see `files.content_errors`."""
    uri = join(uri, QUARANTINE)
    with files.content_errors(uri, REMEDY):
        return pq.read_table(pa.BufferReader(files.read_bytes(uri))).to_pylist()


@dataclass(frozen=True)
class Quarantined:
    """`what` image, annotation or duplicate, `where` its file name or id, `why` in a few words,
    `raw` the record as JSON.
    """

    what: str
    where: str
    why: str
    raw: str


def by_reason(quarantined: Iterable[dict[str, str]]) -> list[tuple[str, list[dict[str, str]]]]:
    """(why, its records), the most frequent reason first. Details in brackets are not told apart.
    Records hold what, where, why and raw.
    """
    whys: dict[str, list[dict[str, str]]] = {}
    for record in quarantined:
        whys.setdefault(re.sub(r"\s*[(<].*?[)>]", "", record["why"]), []).append(record)
    return sorted(whys.items(), key=lambda entry: (-len(entry[1]), entry[0]))
