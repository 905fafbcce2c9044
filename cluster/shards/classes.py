"""Classes of a data set and of a model, matched by name and never by place: whoever scores a model
on a set, or trains on one set and scores on another, asks here first.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import yaml

from cluster.errors import UsageError
from cluster.storage import files
from cluster.storage.yaml_text import parse

NONE = ("", "~", "null")
"""Values in the file of `--classes` for a class whose objects are left out."""
SHOWN = 5
"""Names in an error, of each kind."""


@dataclass(frozen=True)
class ClassMatch:
    """The labels of a data set in terms of a model's classes."""

    names: tuple[str, ...]
    """The model's classes; a label is the place in them."""
    labels: tuple[int, ...]
    """The model's label of each class of the data set, in its order; -1: left out."""

    @property
    def moves(self) -> bool:
        """Whether a label of the data set means another one of the model, or none."""
        return self.labels != tuple(range(len(self.names)))

    def notes(self, subject: str) -> tuple[str, ...]:
        """What to say about it: nothing, or one line."""
        if not self.moves:
            return ()
        if sorted(self.labels) == list(range(len(self.names))):
            return (f"{subject} has its classes in another order; they are matched by name",)
        left_out = self.labels.count(-1)
        return (
            f"{subject}: {len(self.labels) - left_out} of its {len(self.labels)} classes are"
            f" matched with the {len(self.names)} of the model, {left_out} are left out",
        )

    def relabel(self, labels_N: np.ndarray) -> np.ndarray:
        """The model's labels of the objects with these labels of the data set; -1: left out."""
        return np.asarray(self.labels, np.int64)[labels_N]


def match_classes(
    data: Sequence[str],
    model: Sequence[str],
    *,
    subject: str,
    of: str,
    remedy: str,
    given: Mapping[str, str] | None = None,
) -> ClassMatch:
    """Match the classes of a data set with those of a model, both in the order of their labels.

    Without `given` both have the same names, in any order. `given` renames classes of the data set:
    its keys are their names, its values those of the model, or one of `NONE` to leave a class out;
    then the model may have more classes. `subject` and `of` name the two in errors, `remedy` ends
    them. `UsageError` names the classes that have no counterpart, with near misses.
    """
    if tuple(data) == tuple(model) and not given:
        return ClassMatch(tuple(model), tuple(range(len(model))))
    for names, owner in ((data, subject), (model, of)):
        if twice := sorted({name for name in names if list(names).count(name) > 1}):
            raise UsageError(
                f"{owner}: has two classes of the name {_shown(twice)}, so classes cannot be"
                f" matched by name; {remedy}"
            )
    renamed = given or {}
    if unknown := [name for name in renamed if name not in data]:
        raise UsageError(
            f"--classes: {_shown(unknown)} is no class of {subject}{_near(unknown, data)}; it has"
            f" {_shown(data)}"
        )
    targets = {name: renamed.get(name, name) for name in data}
    left_out = {n for n, to in targets.items() if n in renamed and to in NONE and to not in model}
    missing = [to for name, to in targets.items() if name not in left_out and to not in model]
    absent = [] if given else [name for name in model if name not in targets.values()]
    if missing or absent:
        parts = [f"{subject}: its {len(data)} classes are not the {len(model)} of {of}"]
        if missing:
            parts.append(f"only in the first: {_shown(missing)}{_near(missing, model)}")
        if absent:
            parts.append(f"only in the second: {_shown(absent)}{_near(absent, data)}")
        raise UsageError("; ".join([*parts, remedy]))
    place = {name: label for label, name in enumerate(model)}
    return ClassMatch(
        tuple(model), tuple(-1 if n in left_out else place[to] for n, to in targets.items())
    )


def read_class_map(uri: str) -> dict[str, str]:
    """The YAML file of `--classes`: `class of the data: class of the model`, one a line. Every name
    is read as text, so that the classes `no` and `02146` are what they look like.
    """
    try:
        content = parse(files.read_bytes(uri).decode("utf-8-sig"), all_text=True)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"--classes {uri}: not valid YAML: {reason}") from error
    if not isinstance(content, dict) or not all(
        isinstance(part, str) for pair in content.items() for part in pair
    ):
        raise UsageError(
            f"--classes {uri}: must hold lines `class of the data: class of the model`, such as"
            " `cat: kitty`"
        )
    return content


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(repr(name) for name in names[:SHOWN]) + more


def _near(names: Sequence[str], known: Sequence[str]) -> str:
    """A name that the first of `names` was perhaps meant to be, as ` (near: 'dog')`."""
    folded = {name.strip().casefold(): name for name in known}
    close = difflib.get_close_matches(names[0].strip().casefold(), list(folded), n=1, cutoff=0.6)
    return f" (near: {folded[close[0]]!r})" if close else ""
