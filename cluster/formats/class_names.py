"""Class names in a file beside the annotations: classes.txt or data.yaml."""

from __future__ import annotations

import posixpath
from typing import Any

import yaml

from cluster.errors import DataError
from cluster.formats.names import is_text
from cluster.storage import files
from cluster.storage.uris import join

CLASSES = "classes.txt"
DATA = "data.yaml"


def find_class_names(folder: str) -> list[str]:
    """The class names in the order of their numbers, from data.yaml or else classes.txt, in
    `folder` or up to two folders above it. `DataError` when there is no such file or it does not
    name every number from 0 on.
    """
    parent = posixpath.dirname(folder)
    folders = [folder, parent, posixpath.dirname(parent)]
    for name in (DATA, CLASSES):
        for candidate in folders:
            uri = join(candidate, name)
            if candidate.strip("/") in ("", "s3:") or not files.exists(uri):
                continue
            classes = read_class_list(uri) if name == CLASSES else read_data_yaml(uri)
            if not classes:
                raise DataError(f"{uri}: names no class; a detector needs at least one")
            return classes
    raise DataError(
        f"{folder}: no {DATA} and no {CLASSES} there or up to two folders above; YOLO labels are"
        " numbers and need the names of the classes"
    )


def read_class_list(uri: str) -> list[str]:
    """The class names of a text file, one a line; blank lines do not count. `DataError` when it is
    not text or names a class twice.
    """
    try:
        lines = [line.strip() for line in files.read_bytes(uri).decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise DataError(
            f"{uri}: byte {error.start} is not UTF-8; it must hold a class name a line"
        ) from error
    names = [line for line in lines if line]
    if len(set(names)) < len(names):
        raise DataError(
            f"{uri}: names {next(name for name in names if names.count(name) > 1)!r} twice; each"
            " class needs a name of its own"
        )
    return names


def read_data_yaml(uri: str) -> list[str]:
    """`names` of a data.yaml: a list, or names by number. `DataError` when it is neither."""
    try:
        content: Any = yaml.safe_load(files.read_bytes(uri))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{uri}: not valid YAML: {' '.join(str(error).split())}") from error
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict) and set(names) == set(range(len(names))):
        names = [names[number] for number in range(len(names))]
    if (
        not isinstance(names, list)
        or not all(is_text(name) for name in names)
        or len(set(names)) < len(names)
    ):
        raise DataError(
            f"{uri}: its `names` must be a list of different texts, or give one for each number"
            " from 0 on"
        )
    return names
