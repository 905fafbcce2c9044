"""Whether an index can be that of the files it names: arithmetic on the index alone, then each
shard against its own footer.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.shards.format import Shard, shard_name
from cluster.shards.index import Index

_MAGIC = b"PAR1"
_NAME = re.compile(r"shard-(\d{5,})-of-(\d{5,})\.parquet")
"""See `format.shard_name`."""
_PIECE_BYTES = 8 << 20
"""Bytes per read: enough for a request to be worth its cost, and far less than a whole shard in
memory.
"""


def fault_of_index(index: Index) -> str:
    """What cannot be, in words; empty where all fits. No file is read: an index that claims a
    billion rows, or files in other folders, costs nothing.
    """
    labels = [category.label for category in index.categories]
    if labels != list(range(len(labels))):
        return f"the labels of its categories are {labels[:5]}, not 0 to {len(labels) - 1}"
    last, total = -1, None
    for shard in index.shards:
        named = _NAME.fullmatch(shard.name)
        if not named:
            return f"{shard.name[:60]!r} is no name of a shard, such as {shard_name(0, 1)}"
        # A shard of which every image was dropped is left out.
        number, of = int(named[1]), int(named[2])
        if not last < number < of or of != (total := total or of):
            return f"{shard.name} is out of order, or of another set"
        last = number
        if fault := _fault_of_places(shard):
            return f"{shard.name}: {fault}"
    rows = sum(shard.rows for shard in index.shards)
    if rows != index.counts.images:
        return f"its shards have {rows} rows, its counts {index.counts.images} images"
    return ""


def _fault_of_places(shard: Shard) -> str:
    groups = shard.row_groups
    if not groups or min(min(group.rows, group.bytes) for group in groups) < 1:
        return "it has a row group without rows or without bytes"
    if sum(group.rows for group in groups) != shard.rows:
        return f"it has {shard.rows} rows, its row groups {sum(group.rows for group in groups)}"
    ends = [len(_MAGIC), *(group.start + group.bytes for group in groups)]
    if [group.start for group in groups] != ends[:-1] or ends[-1] >= shard.bytes:
        return f"its row groups do not follow each other within its {shard.bytes} bytes"
    return ""


def fault_of_shard(shard: Shard, file: pa.NativeFile) -> str:
    """How the file of a shard differs from the index: digests of the whole, of each row group and
    of the footer, and the rows that the footer counts. Reads the file once, in pieces.
    """
    whole, parts = hashlib.sha256(), list[str]()
    for start, stop in _parts(shard):
        digest = hashlib.sha256()
        for piece in _pieces(file, start, stop):
            whole.update(piece)
            digest.update(piece)
        parts.append(digest.hexdigest())
    while piece := file.read(_PIECE_BYTES):
        whole.update(piece)
    if (found := whole.hexdigest()) != shard.sha256:
        return f"has sha256 {found[:12]}..., the index has {shard.sha256[:12]}..."
    if file.size() != shard.bytes:
        return f"has {file.size()} bytes, the index has {shard.bytes}"
    stated = [*(group.sha256 for group in shard.row_groups), shard.footer_sha256]
    if parts[1:] != stated:
        return "has row groups or a footer of other digests than the index"
    metadata = pq.read_metadata(file)
    counted = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    if counted != [group.rows for group in shard.row_groups]:
        return "has row groups of other lengths than the index"
    return ""


def _parts(shard: Shard) -> Iterator[tuple[int, int]]:
    """First and last byte + 1 of what is before the row groups, of each, and of the footer."""
    starts = [0, *(group.start for group in shard.row_groups), shard.footer_start, shard.bytes]
    return itertools.pairwise(starts)


def _pieces(file: pa.NativeFile, start: int, stop: int) -> Iterator[bytes]:
    while start < stop and (piece := file.read(min(_PIECE_BYTES, stop - start))):
        start += len(piece)
        yield piece
