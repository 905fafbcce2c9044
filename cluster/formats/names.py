"""File names that annotations give: whether they may be used, and which file they mean."""

from __future__ import annotations

import posixpath
import re
import unicodedata
from typing import TypeGuard
from urllib.parse import urlsplit


def plain_name(name: str) -> str | None:
    """`name` without `.` and `..` steps, or None when it names no file. A name that leads out of
    the folder of the images is a path of another machine: it begins with `/`, and its last parts
    are looked for in that folder (`tails`).
    """
    path = posixpath.normpath(name.replace("\\", "/"))
    # A root, a drive of Windows, or steps upwards; any other colon is a character like others.
    outside = re.match(r"/|[A-Za-z]:|\.\.(/|$)", path)
    if outside is not None:
        path = posixpath.normpath("/" + path[outside.end() :])
        path = "/" + path.lstrip("/")
    return None if path in (".", "/") or is_url(name) or "\0" in path else path


def is_url(name: str) -> bool:
    # One letter is a drive of Windows.
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", name) is not None


def name_in_url(url: str) -> str:
    """The file of a URL with its last folder: LVIS names its pictures by COCO's URLs alone."""
    return "/".join(urlsplit(url).path.strip("/").split("/")[-2:])


def fault_of_name(name: object) -> str | None:
    """Why a file name of the annotations cannot be used; None when it can."""
    if name is not None and not isinstance(name, str):
        return "its file_name is no text"
    if not name:
        return "it has no file_name"
    if not is_text(name):
        return "its file_name is not valid Unicode"
    if is_url(name):
        return "its file_name is a URL; download the pictures and name the files"
    return None if plain_name(name) else "its file_name names no file"


def composed(name: str) -> str:
    """`name` in Unicode's composed form: macOS writes the ä of a file name as two characters, most
    annotation tools as one.
    """
    return unicodedata.normalize("NFC", name)


def is_text(value: object) -> TypeGuard[str]:
    """Whether `value` is text that a file name, Parquet column or terminal can hold. JSON can also
    hold halves of surrogate pairs, which these cannot.
    """
    return isinstance(value, str) and escape_surrogates(value) == value


def escape_surrogates(value: str) -> str:
    """`value` with half surrogate pairs escaped."""
    return value.encode("utf-8", "backslashreplace").decode()
