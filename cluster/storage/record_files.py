"""JSON files as the records that they should hold: one reader for all of them.

Whatever such a file holds, a wrong one ends in one line with its name, what is wrong, and what to
do. The types of a record's fields are checked, so that a wrong value is found here and not where it
is used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from cluster.errors import DataError, on_one_line
from cluster.storage import files

Record = TypeVar("Record")
FAULTS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What a `from_json` raises where the content is that of something else."""
_SHOWN = 200


def read(uri: str, from_json: Callable[[Any], Record], *, remedy: str) -> Record:
    """The record in a JSON file. `DataError` with the remedy where the file holds anything else,
    `FileNotFoundError` where there is none. Other errors: see `files.open_input`.
    """
    return build(files.read_json(uri), from_json, uri, remedy=remedy)


def build(content: Any, from_json: Callable[[Any], Record], uri: str, *, remedy: str) -> Record:
    """As `read`, from the content of the file."""
    try:
        record = from_json(content)
        if dataclasses.is_dataclass(record):
            _check_types(record)
    except FAULTS as error:
        raise DataError(f"{uri}: is damaged ({said(error)}); {remedy}") from error
    return record


def said(error: Exception) -> str:
    """What is wrong with a content, on a short line: it may hold values of any length."""
    if isinstance(error, KeyError):
        return f"{on_one_line(str(error)[:_SHOWN])} is missing"
    return on_one_line(str(error)[:_SHOWN]) or type(error).__name__


def _check_types(record: Any) -> None:
    """`ValueError` names the first field whose value has another type than it is declared with."""
    names, types = _types_of(type(record))
    try:
        types.validate_python(tuple(getattr(record, name) for name in names))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        number, *inside = first["loc"]
        assert isinstance(number, int)
        place = ".".join(map(str, (names[number], *inside)))
        raise ValueError(f"{place}: {first['msg']}") from None


@cache
def _types_of(kind: type) -> tuple[list[str], TypeAdapter[Any]]:
    """The names of the fields, and what checks their values in this order."""
    hints = get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    types: Any = tuple[tuple(hints[name] for name in names)]
    return names, TypeAdapter(types, config=ConfigDict(strict=True, arbitrary_types_allowed=True))
