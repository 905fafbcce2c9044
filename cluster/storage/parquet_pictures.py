"""Pictures inside Parquet files, as Hugging Face's `datasets` stores them: the column `image` holds
the encoded picture, as binary or as structs {bytes, path}.

The picture of row 17, from 0, has the URI `a.parquet#17`. It is read from where it lies, and never
written out as a file: a copy would need the disk once more, a place that every node can read, and
somebody who removes it, and `prepare --check` writes nothing.

A row cannot be read without what precedes it in its row group. So rows are asked for together, each
row group is streamed once, and `BLOCK` consecutive rows stay together where a set is cut into
shards. Measured with 1300 pictures of 150 kB (195 MB, two slow cores): all of them in 0.9 s and
60 MB of memory above the imports in row groups of 100, the size that `datasets` writes; in 1.4 s
and 350 MB as one row group, because pyarrow's pages have 1024 values. A job of prepare with 529
JPEGs of 126 kB takes 272 MB from row groups of 100, 411 MB from one row group, and 271 MB from
files.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.storage import files

BLOCK = 100
"""Rows, as many as `datasets` writes into a row group of pictures."""
SUFFIX = ".parquet"
IMAGE = "image"
_BYTES = f"{IMAGE}.bytes"
_BUFFER = 4 << 20
"""Bytes of one read: a request where the file is in object storage."""
_BATCH = 8
REMEDY = "write or download it again"


def name_of_row(file: str, row: int) -> str:
    return f"{file}#{row}"


def split(uri: str) -> tuple[str, int] | None:
    """The file and the row of a picture inside a Parquet file; None for any other URI."""
    found = re.fullmatch(r"(.+)#([0-9]{1,18})", uri, re.DOTALL)
    return (found[1], int(found[2])) if found and found[1].lower().endswith(SUFFIX) else None


@contextmanager
def open_parquet(uri: str) -> Iterator[pq.ParquetFile]:
    """`DataError` where the file is damaged or no Parquet file; other errors: see
    `files.content_errors`.
    """
    with files.content_errors(uri, REMEDY), files.open_input(uri) as file:
        yield pq.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False)


def leaves(file: pq.ParquetFile) -> list[str]:
    """The names of the columns that hold values: `image.bytes`, `objects.list.element.area`."""
    return [file.schema.column(number).path for number in range(len(file.schema))]


def picture_column(file: pq.ParquetFile) -> str | None:
    """The column with the encoded pictures; None where the file has none."""
    schema = file.schema
    for number, name in enumerate(leaves(file)):
        is_binary = schema.column(number).physical_type == "BYTE_ARRAY"
        is_text = schema.column(number).logical_type.type == "STRING"
        if name in (IMAGE, _BYTES) and is_binary and not is_text:
            return name
    return None


def rows_with_picture(file: pq.ParquetFile) -> np.ndarray:
    """bool for each row. Pictures are read where the statistics of a row group leave it open."""
    column = picture_column(file)
    if column is None:
        return np.zeros(file.metadata.num_rows, np.bool_)
    found = []
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        statistics = group.column(leaves(file).index(column)).statistics
        if statistics is not None and statistics.null_count in (0, group.num_rows):
            found.append(np.full(group.num_rows, statistics.null_count == 0))
        else:
            found += [
                np.array([data is not None for data in pictures], np.bool_)
                for pictures in _stream(file, number, column)
            ]
    return np.concatenate([np.zeros(0, np.bool_), *found])


def mean_size(uri: str) -> int:
    """Bytes of a picture, on average over the file."""
    with open_parquet(uri) as file:
        column, rows = picture_column(file), file.metadata.num_rows
        if column is None or not rows:
            return 0
        number = leaves(file).index(column)
        groups = (file.metadata.row_group(group) for group in range(file.num_row_groups))
        return sum(group.column(number).total_uncompressed_size for group in groups) // rows


def read_pictures(uris: Sequence[str]) -> dict[str, bytes | None]:
    """The pictures of these URIs, in memory together; None for a row without one. Errors: see
    `open_parquet`.
    """
    wanted: defaultdict[str, dict[int, str]] = defaultdict(dict)
    for uri in uris:
        place = split(uri)
        assert place is not None, uri
        wanted[place[0]][place[1]] = uri
    found: dict[str, bytes | None] = dict.fromkeys(uris)
    for file_uri, rows in wanted.items():
        with open_parquet(file_uri) as file:
            for row, data in _rows(file, sorted(rows)):
                found[rows[row]] = data
    return found


def read_picture(uri: str) -> bytes:
    """The picture of any URI: a file, or inside a Parquet file. `FileNotFoundError` where it is not
    there; other errors: see `files.open_input` and `open_parquet`.
    """
    if split(uri) is None:
        return files.read_bytes(uri)
    data = read_pictures([uri])[uri]
    if data is None:
        raise FileNotFoundError(uri)
    return data


def read_all(uris: Sequence[str]) -> list[bytes | None]:
    """`read_picture` of each, in memory together; None where one is not there."""

    def read_file(uri: str) -> bytes | None:
        try:
            return files.read_bytes(uri)
        except FileNotFoundError:
            return None

    inside = read_pictures([uri for uri in uris if split(uri) is not None])
    return [inside[uri] if uri in inside else read_file(uri) for uri in uris]


def _rows(file: pq.ParquetFile, rows: Sequence[int]) -> Iterator[tuple[int, bytes | None]]:
    """(row, picture) of these rows, in ascending order."""
    column, start = picture_column(file), 0
    for number in range(file.num_row_groups if column else 0):
        stop = start + file.metadata.row_group(number).num_rows
        mine = {row for row in rows if start <= row < stop}
        row = start
        for pictures in _stream(file, number, str(column)) if mine else ():
            if row > max(mine):
                break
            yield from ((at, data) for at, data in enumerate(pictures, row) if at in mine)
            row += len(pictures)
        start = stop


def _stream(file: pq.ParquetFile, group: int, column: str) -> Iterator[list[bytes | None]]:
    """The pictures of a row group, a few at a time."""
    for batch in file.iter_batches(
        batch_size=_BATCH, row_groups=[group], columns=[column], use_threads=False
    ):
        array = batch.column(0)
        # `flatten` gives a null also where the whole struct is null.
        values = array.flatten()[0] if pa.types.is_struct(array.type) else array
        yield values.to_pylist()
