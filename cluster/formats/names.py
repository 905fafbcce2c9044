"""File names that annotations give: may they be used, and which file do they mean?"""

from __future__ import annotations

import posixpath
import unicodedata
from typing import Any


def inside_folder(name: str) -> str | None:
    """`name` without `.` and `..` steps, or None when it does not stay below the folder it is
    relative to.
    """
    path = posixpath.normpath(name.replace("\\", "/"))
    outside = (
        path.startswith(("/", "../"))
        or path in ("..", ".")
        or ":" in path.split("/")[0]
        or "\0" in path
    )
    return None if outside else path


def fault_of_name(name: Any) -> str | None:
    """Why a file name of the annotations cannot be used; None when it can."""
    if not isinstance(name, str) or not name:
        return "it has no file_name"
    if not is_text(name):
        return "its file_name is not valid Unicode"
    return None if inside_folder(name) else "its file_name leads out of the images folder"


def composed(name: str) -> str:
    """`name` in Unicode's composed form: macOS writes the ä of a file name as two characters, most
    annotation tools as one.
    """
    return unicodedata.normalize("NFC", name)


def is_text(value: Any) -> bool:
    """JSON can hold halves of surrogate pairs, which no file name, Parquet column or terminal
    takes.
    """
    return isinstance(value, str) and text(value) == value


def text(value: str) -> str:
    """`value` with half surrogates escaped."""
    return value.encode("utf-8", "backslashreplace").decode()
