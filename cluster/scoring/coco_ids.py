"""The user's own ids of images and classes, from a COCO JSON, for results that are to be scored
with it.
"""

from __future__ import annotations

import difflib
import posixpath
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.errors import DataError, UsageError
from cluster.formats.json_stream import read_lists
from cluster.formats.names import name_in_url, plain_name
from cluster.formats.numbers import as_whole
from cluster.formats.tails import Tails
from cluster.storage import files

MOST = 1 << 63
"""Ids are below; so are those of the results."""


@dataclass(frozen=True)
class CocoIds:
    """What a COCO JSON calls its images and classes."""

    uri: str
    images: Mapping[str, int]
    """Id by file name."""
    categories: Mapping[str, int]
    """Id by class name; empty where the JSON lists no classes."""


def read_coco_ids(uri: str) -> CocoIds:
    """The ids of a COCO JSON. `DataError` where it is none."""
    lists: dict[str, list[Any]] = {"images": [], "categories": []}
    with files.open_input(uri) as file:
        names, _ = read_lists(file, uri, {name: lists[name].append for name in lists})
    if "images" not in names:
        raise DataError(f"annotations {uri}: has no list 'images'; give a COCO JSON")
    return CocoIds(
        uri,
        _ids(lists["images"], uri, "images", name="file_name"),
        _ids(lists["categories"], uri, "categories", name="name"),
    )


def _ids(entries: Sequence[Any], uri: str, key: str, *, name: str) -> dict[str, int]:
    ids: dict[str, int] = {}
    for number, entry in enumerate(entries):
        given = entry.get(name) if isinstance(entry, dict) else None
        if given is None and isinstance(entry, dict) and isinstance(entry.get("coco_url"), str):
            given = name_in_url(entry["coco_url"])
        id_ = as_whole(entry.get("id")) if isinstance(entry, dict) else None
        if not isinstance(given, str) or id_ is None or not -MOST <= id_ < MOST:
            raise DataError(
                f"annotations {uri}: {key}[{number}] must have {name!r}, a text, and 'id', a whole"
                " number of 64 bits"
            )
        if ids.setdefault(given, id_) != id_:
            raise DataError(f"annotations {uri}: {key} has two ids for {given!r}; keep one")
    return ids


def ids_of_images(uris: Iterable[str], root: str, ids: CocoIds) -> dict[str, int]:
    """The id of each picture below the folder `root` that the JSON names, perhaps by its path on
    another machine (see `Tails`). `UsageError` where it names none of them.
    """
    below = root.rstrip("/") + "/"
    names = {uri: uri.removeprefix(below) for uri in uris}
    found = {uri: ids.images[name] for uri, name in names.items() if name in ids.images}
    if paths := _paths_of_another_machine(ids):
        taken = {names[uri] for uri in found}
        path_of = {file: path for path, file in Tails(names.values()).match(paths, taken).items()}
        found |= {uri: paths[path_of[name]] for uri, name in names.items() if name in path_of}
    if names and not found:
        listed, there = next(iter(ids.images), None), next(iter(names.values()))
        raise UsageError(
            f"annotations {ids.uri}: names none of the {len(names)} pictures below {root}"
            f" ({_example(ids.images, names.values(), listed, there)}); give the folder that its"
            " file names start from as --images"
        )
    return found


def _paths_of_another_machine(ids: CocoIds) -> dict[str, int]:
    """The ids by the paths without their roots; two images of one path have none."""
    found: defaultdict[str, list[int]] = defaultdict(list)
    for given, id_ in ids.images.items():
        plain = plain_name(given)
        if plain is not None and plain.startswith("/"):
            found[plain.lstrip("/")].append(id_)
    return {path: several[0] for path, several in found.items() if len(several) == 1}


def _example(images: Iterable[str], names: Iterable[str], listed: str | None, there: str) -> str:
    """A file that both have at other places, else the first of each."""
    last = {posixpath.basename(name): name for name in images}
    for name in names:
        if posixpath.basename(name) in last:
            listed, there = last[posixpath.basename(name)], name
            break
    return f"it lists {listed!r}, there is {there!r}" if listed else "it lists no picture"


def category_ids(
    model: Sequence[tuple[str, int]], ids: CocoIds | None, *, given: Mapping[str, str] | None = None
) -> list[int | None]:
    """For each class of the model, (name, id), the id in results: that of the class of this name in
    the JSON, else the model's own. None: the JSON has no such class, which only `given` allows.

    `given` says which class of the JSON, its keys, is which of the model. `UsageError` where a
    class of the model is not in the JSON.
    """
    if ids is None or not ids.categories:
        return [id_ for _, id_ in model]
    known = dict(ids.categories)
    if given is not None:
        if unknown := [name for name in given if name not in known]:
            raise UsageError(
                f"--classes: {unknown[0]!r} is no class of {ids.uri}, which has"
                f" {', '.join(map(repr, list(known)[:5]))}"
            )
        names = [name for name, _ in model]
        targets = [to for to in given.values() if to is not None]
        if wrong := [to for to in targets if to not in names]:
            near = difflib.get_close_matches(wrong[0], names, 1)
            raise UsageError(
                f"--classes: {wrong[0]!r} is no class of the model, which has"
                f" {', '.join(map(repr, near or names[:5]))}"
            )
        if len(set(targets)) < len(targets):
            twice = next(to for to in targets if targets.count(to) > 1)
            raise UsageError(
                f"--classes: {twice!r} is given for two classes of {ids.uri}, and a detection of it"
                " can have one id; choose one"
            )
        known |= {to: ids.categories[name] for name, to in given.items()}
    missing = [name for name, _ in model if name not in known]
    if missing and given is None:
        raise UsageError(
            f"annotations {ids.uri}: lists no class {', '.join(map(repr, missing[:5]))} of the"
            f" model, it has {', '.join(map(repr, list(known)[:5]))}; --classes FILE says which are"
            " the same"
        )
    return [known.get(name) for name, _ in model]
