"""The text of an entry of a search space, the same in YAML and on flags:

    0..5                            an even range
    log 0.001..0.1                  an even range of the logarithm
    int 4..16                       whole numbers
    [smooth_l1, giou]               one of these
    [[0, 0.75], [2, 0.25]]          for the fields a+b: one of these pairs
    log 0.01..1 when loss.box=smooth_l1|l1 and optimizer.name=sgd

In YAML a mapping says the same: {range: [0, 5]}, {log: [0.001, 0.1]}, {int: [4, 16]},
{values: [smooth_l1, giou]}, each with `when: {loss.box: [smooth_l1, l1]}` if it has conditions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

import yaml

from cluster.errors import UsageError
from cluster.storage import yaml_text
from tune import fields
from tune.dimensions import Choice, Dimension, Range, four_digits

_NUMBER = r"[-+]?(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"((?:(?:log|int)\s+)*)({_NUMBER})\s*\.\.\s*({_NUMBER})")
_FORMS = "LOW..HIGH, log LOW..HIGH, int LOW..HIGH, a list [A, B], or none"
_MAPPINGS = ("range", "log", "int", "values")
MOST_CHOICES = 1000


def dimension(name: str, entry: Any, where: str) -> Dimension:
    """The dimension that the entry of `name` (a field, or several with + between) stands for.
    `UsageError`, which begins with `where`, for what is no entry or not of the fields' type.
    """
    names = tuple(name.split("+"))
    for field in names:
        fields.check(field, where)
        if names.count(field) > 1:
            raise UsageError(f"{where}: {field} stands twice in the name; write it once")
    body, conditions = _parts(entry, where)
    text = isinstance(body, str) and _RANGE.fullmatch(body)
    if text:
        words, low, high = text.groups()
        values = _range(names, words.split(), [low, high], where)
    elif isinstance(body, tuple):
        values = _range(names, [body[0]], body[1], where)
    else:
        values = _choice(names, body, where)
    return Dimension(names, values, _conditions(conditions, names, where))


def _parts(entry: Any, where: str) -> tuple[Any, Any]:
    """The values and the conditions of an entry. The values are a text with .., a list, or
    (kind, ends) of a mapping's range.
    """
    if isinstance(entry, Mapping):
        mapping = cast("Mapping[Any, Any]", entry)
        kinds = [kind for kind in _MAPPINGS if kind in mapping]
        unknown = [str(key) for key in mapping if key not in (*_MAPPINGS, "when")]
        if unknown or len(kinds) != 1:
            raise UsageError(
                f"{where}: a mapping must have one of {', '.join(_MAPPINGS)}, and may have when;"
                f" got {', '.join(map(str, mapping)) or 'nothing'}. The name of a field has a dot,"
                " such as loss.gamma"
            )
        body = mapping[kinds[0]]
        return body if kinds == ["values"] else (kinds[0], body), mapping.get("when")
    if isinstance(entry, str):
        body, _, conditions = re.sub(r"\s+when\s+", "\n", entry.strip(), count=1).partition("\n")
        if _RANGE.fullmatch(body):
            return body, conditions
        read = _yaml(body, where)
        # A flag may hold the mapping of a YAML file.
        if not isinstance(read, Mapping):
            return read, conditions
        if conditions:
            raise UsageError(
                f"{where}: has a condition behind a mapping; write it into the mapping, such as"
                " {log: [0.01, 1], when: {loss.box: smooth_l1}}"
            )
        return _parts(read, where)
    return entry, None


def _yaml(text: str, where: str) -> Any:
    try:
        return yaml_text.parse(text)
    except yaml.YAMLError:
        raise UsageError(f"{where} {text}: must be {_FORMS}") from None


def _range(names: Sequence[str], words: Sequence[str], ends: Any, where: str) -> Range:
    name = names[0]
    if len(names) > 1:
        raise UsageError(
            f"{where}: a range is of one field; give {'+'.join(names)} a list of lists with"
            f" {len(names)} values each"
        )
    if not fields.is_number(name):
        raise UsageError(
            f"{where}: {name} is no single number and has no range; give a list such as"
            f" {fields.choices(name)}"
        )
    if not isinstance(ends, list) or len(cast("list[Any]", ends)) != 2:
        raise UsageError(f"{where} {ends}: must be two numbers, [LOW, HIGH]")
    low, high = (four_digits(fields.typed(name, end, where)) for end in cast("list[Any]", ends))
    log, integer = "log" in words, "int" in words or fields.is_integer(name)
    given = f"{where} {low}..{high}"
    if low is None or high is None or low >= high:
        raise UsageError(f"{given}: LOW must be below HIGH; for one value set --{name} instead")
    if log and low <= 0:
        raise UsageError(f"{given}: LOW must be above 0, it has a logarithm; leave out log")
    if integer and not (low == int(low) and high == int(high)):
        raise UsageError(f"{given}: both must be whole numbers, or leave out int")
    return Range(int(low), int(high), log, True) if integer else Range(low, high, log, False)


def _choice(names: Sequence[str], body: Any, where: str) -> Choice:
    if not isinstance(body, list):
        shown = "" if body is None else f" {body}"
        raise UsageError(
            f"{where}{shown}: must be {_FORMS}; to keep one value, set --{names[0]} instead"
        )
    given = cast("list[Any]", body)
    if not 1 <= len(given) <= MOST_CHOICES:
        raise UsageError(f"{where}: a list has 1 to {MOST_CHOICES} values, this one {len(given)}")
    rows = [one if len(names) > 1 else [one] for one in given]
    for row in rows:
        if not isinstance(row, list) or len(cast("list[Any]", row)) != len(names):
            raise UsageError(
                f"{where} {row}: must be a list of {len(names)} values, one for each of"
                f" {', '.join(names)}"
            )
    values: list[tuple[Any, ...]] = []
    for row in rows:
        typed = tuple(
            four_digits(fields.typed(name, one, where))
            for name, one in zip(names, row, strict=True)
        )
        if typed not in values:
            values.append(typed)
    return Choice(tuple(values))


def _conditions(given: Any, names: Sequence[str], where: str) -> dict[str, tuple[Any, ...]]:
    """What `when` says: by field the values of which it must have one."""
    if not given:
        return {}
    pairs: list[tuple[str, list[Any]]] = []
    if isinstance(given, Mapping):
        for name, allowed in cast("Mapping[Any, Any]", given).items():
            pairs.append((str(name), allowed if isinstance(allowed, list) else [allowed]))
    else:
        for part in re.split(r"\s+and\s+", str(given).strip()):
            name, equals, allowed = part.partition("=")
            if not equals:
                raise UsageError(
                    f"{where} when {part}: must be FIELD=VALUE, or FIELD=VALUE|VALUE, with `and`"
                    " between several"
                )
            pairs.append((name.strip(), [_yaml(one, where) for one in allowed.split("|")]))
    when: dict[str, tuple[Any, ...]] = {}
    for name, allowed in pairs:
        if name not in fields.FIELDS:
            fields.check(name, f"{where} when {name}")
        if name in names or name in when:
            raise UsageError(
                f"{where} when {name}: must name another field, once; several of its values have |"
                " between"
            )
        when[name] = tuple(
            four_digits(fields.typed(name, one, f"{where} when {name}")) for one in allowed
        )
    return when
