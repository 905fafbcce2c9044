"""What a workflow would do: which stages it would reuse and which it would run, and which field
changed since an earlier run. Nothing is started and nothing written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.errors import PlainError
from cluster.storage import files, uris
from cluster.storage.flat_json import flatten
from cluster.workflow.stages import (
    MANIFEST,
    SHOWN,
    Finished,
    Results,
    Stage,
    fingerprint,
    look_at,
)

MOST_CHANGES = 6
"""Shown of one stage."""
MOST_READ = 200
"""Earlier runs of a stage that are compared."""


@dataclass(frozen=True)
class Planned:
    """A stage that would be reused, or would run and why. `folder` is None where it is named by
    what an earlier stage has yet to make.
    """

    stage: str
    reused: bool
    folder: str | None
    why: tuple[str, ...] = ()
    seconds: float | None = None
    """That the most similar earlier run of the stage took."""

    def lines(self) -> list[str]:
        """For a terminal."""
        if self.reused:
            return [f"[{self.stage}] would be reused: {self.folder}"]
        took = "" if self.seconds is None else f" (took {self.seconds:.0f} s before)"
        where = f": {self.folder}" if self.folder else ""
        head = f"[{self.stage}] would run{took}{where}"
        return [head, *(f"    {reason}" for reason in self.why)]


def plan_stages(stages: Sequence[Stage], *, root: str, name: str) -> list[Planned]:
    """What `run_stages` with these arguments would do."""
    known: dict[str, Finished] = {}
    planned: list[Planned] = []
    runs: list[str] = []
    for stage in stages:
        before = [other for other in (*stage.inputs, *stage.reads) if other in runs]
        results = {other: known[other] for other in (*stage.inputs, *stage.reads) if other in known}
        ahead = _plan(stage, results, before, root=root, name=name)
        if isinstance(ahead, Finished):
            known[stage.name] = ahead
            planned.append(Planned(stage.name, True, ahead.folder))
            continue
        runs.append(stage.name)
        planned.append(ahead[0])
        if ahead[1] is not None:
            known[stage.name] = ahead[1]
    return planned


def _plan(
    stage: Stage, results: Results, before: Sequence[str], *, root: str, name: str
) -> Finished | tuple[Planned, Finished | None]:
    """The stage where it would be reused. Else what would happen, and the stage as later ones may
    know it without its values: None where its fingerprint waits for a stage `before` it.
    """
    try:
        identity = stage.identity(results)
        digest = fingerprint(stage.name, identity, [results[other] for other in stage.inputs])
    except (PlainError, LookupError):
        if not before:
            raise
        why = f"after {', '.join(before)}, whose output is part of what identifies it"
        return Planned(stage.name, False, None, (why,)), None
    folder = uris.join(uris.absolute(root), stage.folder, f"{name}-{digest[:SHOWN]}")
    values, missing = look_at(stage, folder, digest)
    if values is not None and missing is None:
        return Finished(digest, folder, values, True)
    known = Finished(digest, folder, {})
    if missing is not None:
        return Planned(stage.name, False, folder, (f"{missing} is gone",)), known
    earlier = _most_similar(stage, identity, root=root, name=name)
    if earlier is None:
        why = ("no earlier run of this name has finished it",)
        return Planned(stage.name, False, folder, why), known
    where, seconds, changes = earlier
    if not changes:
        inputs = " or ".join(stage.inputs) or "the version of the program"
        changes = (f"{inputs} has changed",)
    why = (f"compared with {where}:", *(f"  {change}" for change in changes))
    return Planned(stage.name, False, folder, why, seconds), known


def _most_similar(
    stage: Stage, identity: Mapping[str, Any], *, root: str, name: str
) -> tuple[str, float, tuple[str, ...]] | None:
    """Of the finished stages of this name: the folder, the seconds and the changes of the one with
    the fewest changes.
    """
    parent = uris.join(uris.absolute(root), stage.folder)
    folders = [one for one in files.list_names(parent) if one.rpartition("-")[0] == name]
    found = []
    for folder in folders[-MOST_READ:]:
        try:
            manifest = files.read_json(uris.join(parent, folder, MANIFEST))
        except FileNotFoundError:
            continue
        if manifest.get("stage") == stage.name:
            changes = changed_fields(manifest.get("identity", {}), identity)
            found.append((len(changes), folder, manifest.get("seconds", 0.0), changes))
    if not found:
        return None
    _, folder, seconds, changes = min(found, key=lambda one: one[:2])
    more = len(changes) - MOST_CHANGES
    shown = (*changes[:MOST_CHANGES], *((f"and {more} more",) if more > 0 else ()))
    return uris.join(parent, folder), seconds, shown


def changed_fields(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, ...]:
    """One line for each field that differs: `training.optimizer.learning_rate: 0.01 -> 0.02`."""
    old, new = flatten(before), flatten(now)
    return tuple(
        f"{field}: {_shown(old, field)} -> {_shown(new, field)}"
        for field in sorted(old.keys() | new.keys())
        if old.get(field, _ABSENT) != new.get(field, _ABSENT)
    )


_ABSENT = object()


def _shown(fields: Mapping[str, Any], field: str) -> str:
    return "unset" if field not in fields else str(fields[field])[:60]
