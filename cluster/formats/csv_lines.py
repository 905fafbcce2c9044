"""The lines of a CSV file, one at a time, by the names of its columns. A bad line costs itself.

Each line is parsed alone, so that a quotation mark without its partner cannot swallow the lines
behind it; no field of an annotation holds a line break.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO, NamedTuple, cast

from cluster.errors import DataError
from cluster.storage import files

_BUFFER = 1 << 20
_SEPARATORS = ",;\t"
OTHER_COLUMNS = "its line has another number of columns than the first"


class Line(NamedTuple):
    """A line behind the first. `number` counts the lines of the file from 1. `fields` are the
    values by the names of their columns, in lower case and without the blanks around them; None
    where the line has a `fault`.
    """

    number: int
    text: str
    fields: Mapping[str, str] | None
    fault: str | None
    detail: str = ""
    """The values that belong to the fault."""


def column_names(first_line: str) -> list[str]:
    """The names of the columns, in lower case, without the blanks around them."""
    fields = _split(first_line, separator_of(first_line)) or []
    return [name.lower() for name in fields]


def separator_of(line: str) -> str:
    """The sign between the fields: spreadsheets write a semicolon or a tab in some countries."""
    return max(_SEPARATORS, key=line.count)


def read_lines(uri: str, needed: Sequence[str], digest: hashlib._Hash) -> Iterator[Line]:
    """The lines of a file whose first line has the `needed` columns (lower case), and others. Blank
    lines are passed over. `digest` takes all bytes of the file. `DataError` where the columns are
    not there.
    """
    with files.open_input(uri) as file, files.plain_errors(uri, "read"):
        lines = io.BufferedReader(cast("io.RawIOBase", file), _BUFFER)
        first = _first_line(lines, uri, digest)
        columns, separator = column_names(first), separator_of(first)
        missing = [name for name in needed if name not in columns]
        if missing:
            raise DataError(
                f"{uri}: its first line, {first.strip()[:60]!r}, lacks {', '.join(missing)}; the"
                f" columns must be named there: {', '.join(needed)}"
            )
        for number, data in enumerate(lines, start=2):
            digest.update(data)
            # A byte that is no UTF-8 is found in the field that holds it.
            text = data.decode("utf-8", "surrogateescape").rstrip("\r\n")
            if text.strip():
                yield _parse(number, text, columns, separator)


def _first_line(lines: BinaryIO | io.BufferedReader, uri: str, digest: hashlib._Hash) -> str:
    data = lines.readline()
    digest.update(data)
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{uri}: is UTF-16; save it as UTF-8")
    return data.decode("utf-8-sig", "surrogateescape")


def _parse(number: int, text: str, columns: Sequence[str], separator: str) -> Line:
    fields = _split(text, separator)
    if fields is None:
        return Line(number, text, None, "a quotation mark in its line has no partner")
    if len(fields) < len(columns) or any(fields[len(columns) :]):
        detail = f"{len(fields)} in place of {len(columns)}"
        return Line(number, text, None, OTHER_COLUMNS, detail)
    return Line(number, text, dict(zip(columns, fields, strict=False)), None)


def _split(line: str, separator: str) -> list[str] | None:
    """The fields without the blanks around them; None where the line cannot be split."""
    try:
        rows = list(csv.reader([line], delimiter=separator, skipinitialspace=True, strict=True))
    except csv.Error:
        return None
    return [field.strip() for field in rows[0]] if rows else []
