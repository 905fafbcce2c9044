"""Which sets of a folder, zip or file are for training and which for evaluation. Names say it:

    train/, valid/, test/; images/train, labels/val; annotations/instances_train2017.json
    data/train-00000-of-00002.parquet, data/validation-00000-of-00001.parquet

A name in the path counts, not the content.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from cluster.errors import UsageError, listed
from cluster.formats.annotation_files import list_annotations
from cluster.formats.layout import Set, find_sets
from cluster.storage import files, parquet_pictures, uris

Split = Literal["train", "val", "test"]
_WORD = re.compile(
    r"(?<![a-z])(?:(train(?:ing)?)|(val(?:id(?:ation)?)?|dev)|(test(?:ing)?))(?![a-z])"
)
_NAMES: tuple[Split, ...] = ("train", "val", "test")


class Splits(NamedTuple):
    """Several sets of one split are its sources. `val` is empty where no name says it."""

    train: tuple[Set, ...]
    val: tuple[Set, ...]
    lines: tuple[str, ...]
    """What was recognised, for a terminal."""


def find_splits(root: str) -> Splits:
    """The sets below `root` by their split. A set that is alone, or has no set for evaluation
    beside it, is for training. `UsageError` where several sets have no split in their names or
    one split has several formats; else the errors of `find_set`.
    """
    found = _sets(root)
    by_split: dict[Split | None, list[tuple[str, Set]]] = {}
    for name, one in found:
        by_split.setdefault(split_of(name), []).append((name, one))
    train, val = by_split.pop("train", []), by_split.pop("val", [])
    if not train:
        if len(found) > 1:
            raise UsageError(
                f"{root}: holds {len(found)} sets, and none has train in its name"
                f" ({listed([name for name, _ in found], 6)}); name them: --data.train.annotations"
                f" and --data.val.annotations in place of the folder, such as"
                f" {uris.join(root, found[0][0])}"
            )
        train, val, by_split = found, [], {}
    for split, sets in (("train", train), ("val", val)):
        if len(formats := sorted({one.format for _, one in sets})) > 1:
            raise UsageError(
                f"{root}: its {split} has annotations of several formats ({', '.join(formats)});"
                f" name those that count with --data.train.annotations and --data.val.annotations"
                " in place of the folder"
            )
    lines = [*_shown("train", train), *_shown("val", val)]
    for split, sets in by_split.items():
        what = "for `evaluate` when all is decided" if split == "test" else "no split in its name"
        lines.append(f"not used    {listed([name for name, _ in sets], 3)} ({what})")
    return Splits(tuple(one for _, one in train), tuple(one for _, one in val), tuple(lines))


def split_of(name: str) -> Split | None:
    """The split that a relative path names, the last one where it names several."""
    found = [*_WORD.finditer(name.lower())]
    if not found:
        return None
    return _NAMES[next(i for i, word in enumerate(found[-1].groups()) if word)]


def _sets(root: str) -> list[tuple[str, Set]]:
    """Those of `find_sets`, but each Parquet file with a split in its name for itself: the files of
    several splits often lie in one folder.
    """
    found = find_sets(root)
    alone = found[0][1]
    if len(found) > 1 or alone.images is not None or files.size(alone.annotations) is not None:
        return found
    parts = [
        (uris.relative_to(uri, alone.annotations), Set(alone.format, uri, None))
        for uri in list_annotations(alone.annotations, parquet_pictures.SUFFIX)
    ]
    return parts if any(split_of(name) for name, _ in parts) else found


def _shown(split: str, sets: Sequence[tuple[str, Set]]) -> list[str]:
    if not sets:
        return []
    names = listed([name for name, _ in sets], 3)
    return [f"{split:<11} {names}: {sets[0][1].format}"]
