"""Lists of images in a file: text with a URI in each line, CSV and JSON lines with a column of
URIs, and Parquet with such a column or with the pictures themselves.

A relative name starts from the folder of the list. Further columns are carried: those of Parquet
with their types, those of CSV and JSON lines as text. A column `image_id` of whole numbers has the
ids of the images.
"""

from __future__ import annotations

import csv
import io
import json
import posixpath
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

import pyarrow as pa

from cluster.errors import DataError, UsageError, on_one_line
from cluster.storage import files, parquet_pictures
from cluster.storage.uris import absolute, is_remote, join
from detector import json_text


class ListFile(NamedTuple):
    """A list in a file, that can be read again and again."""

    carried: pa.Schema
    """The further columns."""
    has_ids: bool
    """Whether there is a column `image_id`."""
    tables: Callable[[], Iterator[pa.Table]]
    """With `uri`, perhaps `image_id`, and the further columns."""


Reader = Callable[[str, str], ListFile]
"""(file, name of the column with the URIs) -> the list."""
ROWS = 1024
TAKEN = frozenset(
    "size changed status reason error height width boxes scores labels names model_version".split()
)
"""Columns of the results and of a listing."""
_READ_BYTES = 1 << 20
_IDS = "image_id"


def reader_of(uri: str) -> Reader | None:
    """By the suffix of the file; None for one that is no list."""
    return READERS.get(posixpath.splitext(uri)[1].lower())


def _read_text(uri: str, column: str) -> ListFile:
    del column

    def rows() -> Iterator[tuple[int, Mapping[str, str]]]:
        for number, line in enumerate(_lines(uri), start=1):
            if line.strip():
                yield number, {"uri": line.strip()}

    empty = pa.schema([])
    return ListFile(empty, False, lambda: _tables(uri, "uri", rows(), empty))


def _read_csv(uri: str, column: str) -> ListFile:
    def parsed() -> Iterator[list[str]]:
        return csv.reader(_lines(uri))

    names = [name.strip() for name in next(parsed(), [])]
    carried = _carried(uri, names, column)

    def rows() -> Iterator[tuple[int, Mapping[str, str]]]:
        reader = parsed()
        next(reader)
        for number, fields in enumerate(reader, start=2):
            if not fields:
                continue
            if len(fields) != len(names):
                raise DataError(
                    f"{uri}: line {number} has {len(fields)} fields, the first line"
                    f" {len(names)}; mend the line"
                )
            yield number, dict(zip(names, fields, strict=True))

    return ListFile(carried, _IDS in names, lambda: _tables(uri, column, rows(), carried))


def _read_json_lines(uri: str, column: str) -> ListFile:
    def parsed() -> Iterator[tuple[int, dict[str, Any]]]:
        for number, line in enumerate(_lines(uri), start=1):
            if line.strip():
                yield number, _parse_object(line, uri, number)

    first = next(parsed(), None)
    names = list(first[1]) if first is not None else [column]
    carried = _carried(uri, names, column)

    def rows() -> Iterator[tuple[int, Mapping[str, Any]]]:
        for number, fields in parsed():
            if new := fields.keys() - set(names):
                raise DataError(
                    f"{uri}: line {number} has {sorted(new)[0]!r}, which the first line has not;"
                    " give every line the same names"
                )
            yield number, fields

    return ListFile(carried, _IDS in names, lambda: _tables(uri, column, rows(), carried))


def _parse_object(line: str, uri: str, number: int) -> dict[str, Any]:
    try:
        found = json_text.parse(line)
    except ValueError as error:
        raise DataError(f"{uri}: line {number} is not JSON ({error}); mend the line") from None
    if not isinstance(found, dict):
        raise DataError(f"{uri}: line {number} is no JSON object; mend the line")
    return found


def _read_parquet(uri: str, column: str) -> ListFile:
    with parquet_pictures.open_parquet(uri) as file:
        schema, has_pictures = file.schema_arrow, parquet_pictures.picture_column(file) is not None
    if column not in schema.names and has_pictures:
        names = [name for name in schema.names if pa.types.is_primitive(schema.field(name).type)]
        names += [name for name in schema.names if pa.types.is_string(schema.field(name).type)]
        names = [name for name in names if name not in TAKEN and name not in (_IDS, "uri")]
        return _of_rows(uri, pa.schema([schema.field(name) for name in names]))
    _carried(uri, schema.names, column)
    carried = pa.schema([f for f in schema if f.name not in (column, _IDS)])

    def tables() -> Iterator[pa.Table]:
        start = 0
        with parquet_pictures.open_parquet(uri) as file, files.content_errors(uri, "mend it"):
            for batch in file.iter_batches(ROWS):
                given = batch.column(column).to_pylist()
                named = [_named(uri, one, f"row {start + i}") for i, one in enumerate(given)]
                start += len(named)
                columns: dict[str, Any] = {"uri": pa.array(named, pa.string())}
                if _IDS in schema.names:
                    columns[_IDS] = batch.column(_IDS).cast(pa.int64())
                columns |= {name: batch.column(name) for name in carried.names}
                yield pa.table(columns)

    return ListFile(carried, _IDS in schema.names, tables)


def _of_rows(uri: str, carried: pa.Schema) -> ListFile:
    """The pictures in the Parquet file itself."""

    def tables() -> Iterator[pa.Table]:
        start = 0
        with parquet_pictures.open_parquet(uri) as file:
            wanted = carried.names or [file.schema_arrow.names[0]]
            for batch in file.iter_batches(ROWS, columns=wanted):
                rows = range(start, start + batch.num_rows)
                start += batch.num_rows
                named = [parquet_pictures.name_of_row(uri, row) for row in rows]
                columns = {name: batch.column(name) for name in carried.names}
                yield pa.table({"uri": pa.array(named, pa.string()), **columns})

    return ListFile(carried, False, tables)


READERS: dict[str, Reader] = {
    ".txt": _read_text,
    ".csv": _read_csv,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".parquet": _read_parquet,
}


def _carried(uri: str, names: list[str], column: str) -> pa.Schema:
    """The columns that are carried, as text."""
    if column not in names:
        near = ", ".join(map(repr, names[:8])) or "no column"
        raise UsageError(
            f"images {uri}: has no column {column!r}, it has {near}; --column NAME says which one"
            " has the URIs"
        )
    others = [name for name in names if name not in (column, _IDS)]
    if taken := [name for name in others if name in TAKEN or name == "uri"]:
        raise UsageError(
            f"images {uri}: its column {taken[0]!r} has the name of a column of the results; rename"
            " it"
        )
    if len(set(names)) < len(names):
        raise UsageError(f"images {uri}: has two columns of one name; rename one")
    return pa.schema([(name, pa.string()) for name in others])


def _tables(
    uri: str, column: str, rows: Iterator[tuple[int, Mapping[str, Any]]], carried: pa.Schema
) -> Iterator[pa.Table]:
    while some := list(islice(rows, ROWS)):
        columns: dict[str, Any] = {
            "uri": pa.array(
                [_named(uri, fields.get(column), f"line {number}") for number, fields in some],
                pa.string(),
            )
        }
        if any(_IDS in fields for _, fields in some):
            ids = [_as_id(uri, fields.get(_IDS), number) for number, fields in some]
            columns[_IDS] = pa.array(ids, pa.int64())
        for name in carried.names:
            values = [_as_text(fields.get(name)) for _, fields in some]
            columns[name] = pa.array(values, pa.string())
        yield pa.table(columns)


def _as_text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)


def _as_id(uri: str, value: Any, number: int) -> int | None:
    if value in (None, ""):
        return None
    try:
        return int(str(value))
    except ValueError:
        raise DataError(
            f"{uri}: line {number}: image_id {value!r} is no whole number; mend it, or rename the"
            " column"
        ) from None


def _named(uri: str, given: Any, where: str) -> str:
    """The URI of an image that a list names."""
    if not isinstance(given, str) or not given:
        raise DataError(f"{uri}: {where} names no image; mend it, or leave it out")
    try:
        return absolute(given if _is_whole(given) else join(posixpath.dirname(uri), given))
    except UsageError as error:
        raise DataError(f"{uri}: {where}: {on_one_line(str(error))}") from None


def _is_whole(name: str) -> bool:
    return name.startswith(("/", "~")) or is_remote(name) or ":" in name.partition("/")[0]


def _lines(uri: str) -> Iterator[str]:
    """The lines of a text file, of which 1 MiB is in memory."""
    with files.open_input(uri) as file:
        text = io.TextIOWrapper(
            io.BufferedReader(_Raw(file), _READ_BYTES), encoding="utf-8-sig", newline=""
        )
        try:
            yield from text
        except UnicodeDecodeError as error:
            raise DataError(f"{uri}: is not UTF-8 ({error.reason}); save it as UTF-8") from None


class _Raw(io.RawIOBase):
    """A pyarrow file as Python's io wants it."""

    def __init__(self, file: pa.NativeFile):
        self.file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
