"""From a preset and the entries of `sweep.space` to a space that the configuration allows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from cluster.errors import UsageError
from cluster.runs.config import TrainConfig
from tune import fields, grammar, presets
from tune.dimensions import Dimension, Range, same
from tune.presets import Preset
from tune.space import OLD_NAMES, Sample, Space, multiplied


def space_of(preset: Preset, entries: Mapping[str, Any], config: TrainConfig) -> Space:
    """The space of a preset, with the entries of `sweep.space` in place of its own. Each end of a
    range and each choice is tried in the configuration of a trial, `config`. `UsageError` names the
    entry that is wrong.
    """
    entries = {"".join(name.split()): entry for name, entry in entries.items()}
    own = {name: entry for name, entry in entries.items() if entry not in ("none", None)}
    read = {name: _read(name, entry) for name, entry in own.items()}
    base = {
        name: grammar.dimension(name, entry, f"sweep.preset {preset}: {name}")
        for name, entry in presets.entries(preset, config).items()
    }
    removed = [name for name in entries if name not in own]
    for name in removed:
        if not any(set(name.split("+")) & set(one.fields) for one in base.values()):
            raise UsageError(
                f"sweep.space.{name} none: sweep.preset {preset} does not search it; it searches"
                f" {', '.join(base) or 'nothing'}"
            )
    replaced = {field for name in [*own, *removed] for field in name.split("+")}
    configured = fields.values_of(config)
    kept = [one for one in base.values() if not replaced & set(one.fields)]
    ordered = _ordered([*kept, *read.values()])
    space = Space(tuple(_possible(ordered, configured, own=own)), configured)
    if not space.dimensions:
        unmet = "; ".join(f"{one.name}: {_unmet(one, configured)}" for one in ordered)
        raise UsageError(
            f"sweep.preset {preset}: nothing is searched{unmet and f' here ({unmet})'}; give"
            " entries of sweep.space, such as --sweep.space.optimizer.learning_rate 'log"
            " 0.001..0.1', or take another preset"
        )
    for dimension in space.dimensions:
        _try(dimension, space, config, preset="" if dimension.name in own else preset)
    return space


def _read(name: str, entry: Any) -> Dimension:
    where = f"sweep.space.{name}"
    if name in OLD_NAMES:
        ends = re.findall(r"[\d.eE+-]+", str(entry).replace("..", " "))
        span = f"{ends[0]}..{ends[1]}" if len(ends) == 2 else "LOW..HIGH"
        log = "log " if name == "learning_rate" else ""
        raise UsageError(
            f"{where}: is now the setting {OLD_NAMES[name]}, and its range has two dots: write"
            f" --sweep.space.{OLD_NAMES[name]} '{log}{span}'"
        )
    return grammar.dimension(name, entry, where)


def _ordered(dimensions: Sequence[Dimension]) -> list[Dimension]:
    """The dimensions, each behind those that its conditions name, else in the given order."""
    owner: dict[str, Dimension] = {}
    for dimension in dimensions:
        for field in dimension.fields:
            if field in owner:
                raise UsageError(
                    f"sweep.space: {field} is searched twice, in {owner[field].name} and in"
                    f" {dimension.name}; remove one"
                )
            owner[field] = dimension
    ordered, waiting = list[Dimension](), list(dimensions)
    while waiting:
        fields_left = {field for dimension in waiting for field in dimension.fields}
        free = next((one for one in waiting if not set(one.when) & fields_left), None)
        if free is None:
            names = ", ".join(one.name for one in waiting)
            raise UsageError(f"sweep.space: the conditions of {names} form a circle; remove one")
        waiting.remove(free)
        ordered.append(free)
    return ordered


def _possible(
    ordered: Sequence[Dimension], configured: Mapping[str, Any], *, own: Mapping[str, Any]
) -> list[Dimension]:
    """The dimensions whose conditions can hold, without the conditions on settings that are not
    searched. `UsageError` where one of the user's never holds; a preset has dimensions for several
    kinds of models.
    """
    possible: list[Dimension] = []
    for dimension in ordered:
        for field in dimension.when:
            if any(field in one.fields and isinstance(one.values, Range) for one in possible):
                raise UsageError(
                    f"sweep.space.{dimension.name} {dimension}: {field} is searched as a range,"
                    " which rarely has a certain value; give it a list"
                )
        if _settings(dimension, possible, configured):
            searched = {field for one in possible for field in one.fields}
            when = {field: dimension.when[field] for field in dimension.when if field in searched}
            possible.append(replace(dimension, when=when))
        elif dimension.name in own:
            raise UsageError(
                f"sweep.space.{dimension.name} {dimension}: its condition never holds"
                f" ({_unmet(dimension, configured)}); change that setting, or search it too"
            )
    return possible


def _unmet(dimension: Dimension, configured: Mapping[str, Any]) -> str:
    """Which settings are in the way of the conditions."""
    unmet: list[str] = []
    for field, allowed in dimension.when.items():
        value = configured[field]
        if not any(same(value, one) for one in allowed):
            others = " or ".join(map(fields.shown, allowed))
            unmet.append(f"{field} is {fields.shown(value)}, not {others}")
    return ", ".join(unmet) or "the values that are searched lack it"


def _settings(
    dimension: Dimension, before: Sequence[Dimension], configured: Mapping[str, Any]
) -> list[Sample]:
    """Values of the dimensions that the conditions ask for, also through others, with which the
    conditions hold.
    """
    asked = set(dimension.when)
    needed: list[Dimension] = []
    for one in reversed(before):
        if asked & set(one.fields):
            asked |= set(one.when)
            needed.insert(0, one)
    samples = list[Sample]([{}])
    for one in needed:
        samples = multiplied(samples, one, configured, 2)
    return [sample for sample in samples if dimension.applies({**configured, **sample})]


def _try(dimension: Dimension, space: Space, config: TrainConfig, *, preset: str) -> None:
    """`UsageError` where the configuration refuses an end or a choice of the dimension in every
    setting that its conditions allow. What only some combinations break is for `Space.valid`.
    """
    before = space.dimensions[: space.dimensions.index(dimension)]
    settings = _settings(dimension, before, space.configured)
    for value in dimension.points(2):
        reason = _refused([{**setting, **value} for setting in settings], space, config)
        if reason and preset:
            raise UsageError(
                f"sweep.preset {preset}: {dimension.name} {dimension}: {reason}; or leave it out:"
                f" --sweep.space.{dimension.name} none"
            )
        if reason:
            raise UsageError(f"sweep.space.{dimension.name} {dimension}: {reason}")


def _refused(samples: Sequence[Sample], space: Space, config: TrainConfig) -> str | None:
    """Why the first of the samples is refused; None where the configuration allows one of them."""
    first = None
    for sample in samples:
        reason = space.valid(config, sample)
        if reason is None:
            return None
        first = first or reason
    return first
