"""Class names in a file beside the annotations: classes.txt, data.yaml or obj.names."""

from __future__ import annotations

import math
import posixpath
from typing import NamedTuple

import yaml

from cluster.errors import DataError
from cluster.formats.encodings import to_utf8
from cluster.formats.names import is_text
from cluster.formats.numbers import as_whole
from cluster.storage import files
from cluster.storage.uris import join
from cluster.storage.yaml_text import parse

CLASSES = "classes.txt"
DATA, DATA_YML = "data.yaml", "data.yml"
OBJ_NAMES = "obj.names"
"""As classes.txt, in the YOLO 1.1 of CVAT and Darknet."""


class Labelling(NamedTuple):
    """What label files need to be understood."""

    names: list[str]
    """Of the classes, in the order of their numbers."""
    keypoint_numbers: int = 0
    """Numbers behind the box in a line of a pose data set."""
    other: str = ""
    """A sentence about a farther file that names other classes; empty where there is none."""


def find_class_names(folder: str) -> Labelling:
    """The class names from the nearest data.yaml, data.yml, classes.txt or obj.names, in `folder`
    or up to two folders above it; the first of them where several lie in one folder. `DataError`
    when there is no such file or it does not name every number from 0 on.
    """
    parent = posixpath.dirname(folder)
    uris = [
        join(candidate, name)
        for candidate in (folder, parent, posixpath.dirname(parent))
        if candidate.strip("/") not in ("", "s3:")
        for name in (DATA, DATA_YML, CLASSES, OBJ_NAMES)
    ]
    there = [uri for uri in uris if files.exists(uri)]
    if not there:
        raise DataError(
            f"{folder}: no {DATA}, {CLASSES} or {OBJ_NAMES} there or up to two folders above; YOLO"
            " labels are numbers and need the names of the classes"
        )
    found = _read(there[0])
    if not found.names:
        raise DataError(f"{there[0]}: names no class; a detector needs at least one")
    for uri in there[1:]:
        if (names := _names_of(uri)) and names != found.names:
            sentence = (
                f"the classes are those of {there[0]} ({_few(found.names)}), but {uri} names others"
                f" ({_few(names)}); remove the file that is wrong"
            )
            return found._replace(other=sentence)
    return found


def _read(uri: str) -> Labelling:
    is_yaml = posixpath.basename(uri) in (DATA, DATA_YML)
    return read_data_yaml(uri) if is_yaml else Labelling(read_class_list(uri))


def _names_of(uri: str) -> list[str]:
    """The names in a file that need not be a good one."""
    try:
        return _read(uri).names
    except DataError:
        return []


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def read_class_list(uri: str) -> list[str]:
    """The class names of a text file, one a line; blank lines do not count. `DataError` when it is
    not text or names a class twice.
    """
    try:
        text = to_utf8(files.read_bytes(uri)).decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{uri}: byte {error.start} is not {error.encoding.upper()}; it must hold a class name"
            " a line"
        ) from error
    lines = [line.strip() for line in text.splitlines()]
    names = [line for line in lines if line]
    if len(set(names)) < len(names):
        raise DataError(
            f"{uri}: names {next(name for name in names if names.count(name) > 1)!r} twice; each"
            " class needs a name of its own"
        )
    return names


def read_data_yaml(uri: str) -> Labelling:
    """`names` of a data.yaml: a list, or names by number. They are the text that stands there, also
    where YAML sees a truth value (`no`) or a number (`02146`). `kpt_shape` is that of Ultralytics:
    [keypoints, numbers for each]. `DataError` when one is something else, and where `nc`, the
    number of classes, is not that of the names: Ultralytics refuses such a file too.
    """
    try:
        content = parse(to_utf8(files.read_bytes(uri)).decode(), all_text=True)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{uri}: not valid YAML: {' '.join(str(error).split())}") from error
    names = content.get("names") if isinstance(content, dict) else None
    if names is None:
        raise DataError(f"{uri}: has no `names`; it must list the classes: `names: [cat, dog]`")
    if isinstance(names, str):
        raise DataError(
            f"{uri}: `names` is one text, {names[:60]!r}; write a list, `names: [cat, dog]`, or a"
            " line for each number with a blank behind the colon, `0: cat`"
        )
    if isinstance(names, dict):
        numbers = [str(number) for number in range(len(names))]
        if set(names) != set(numbers):
            missing = next((number for number in numbers if number not in names), None)
            raise DataError(
                f"{uri}: `names` must give one for each number from 0 on; {missing} is missing"
            )
        names = [names[number] for number in numbers]
    for number, name in enumerate(names):
        if not isinstance(name, str) or not is_text(name):
            raise DataError(f"{uri}: name {number} of `names` is no text ({str(name)[:60]!r})")
        if name in names[:number]:
            raise DataError(f"{uri}: `names` has {name!r} twice; each class needs its own name")
    if (count := content.get("nc", "")) != "" and as_whole(count) != len(names):
        raise DataError(
            f"{uri}: `nc`, the number of classes, is {str(count)[:60]}, but `names` has"
            f" {len(names)}; correct the one that is wrong"
        )
    shape = content.get("kpt_shape", ["0", "0"])
    if not isinstance(shape, list) or not all(str(one).isdecimal() for one in shape):
        raise DataError(
            f"{uri}: `kpt_shape` must be the keypoints and the numbers for each, such as [17, 3],"
            f" is {str(shape)[:60]}"
        )
    return Labelling(names, math.prod(map(int, shape)))
