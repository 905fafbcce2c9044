"""What the parsers refuse, in plain sentences: name, value, rule and remedy."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from typing import Any, get_origin

from pydantic import ValidationError
from pydantic_settings import SettingsError

from cluster.errors import joined
from detector import json_text
from pipelines.options import (
    ENVIRONMENT_PREFIX,
    Fields,
    has_kinds,
    is_mapping,
    item_of,
    meaning_of_section,
    section_of,
    takes,
)

MOST = 3
"""Complaints in one message."""
FOREIGN_WORDS = {
    "lr": ("optimizer.learning_rate",),
    "lr0": ("optimizer.learning_rate",),
    "imgsz": ("canvas.height", "canvas.width"),
    "img_size": ("canvas.height", "canvas.width"),
    "batch": ("training.batch_size",),
    "device": ("training.gpus_per_worker", "gpus_per_worker"),
    "gpus": ("training.gpus_per_worker", "gpus_per_worker"),
    "num_workers": ("training.workers", "workers"),
    "weights": ("pretrained", "run", "model"),
    "source": ("images",),
    "input": ("images",),
    "conf": ("thresholds",),
    "score_threshold": ("thresholds",),
    "project": ("storage",),
    "save_dir": ("output", "storage"),
    "out": ("output", "storage"),
    "exist_ok": ("overwrite",),
    "dataset": ("data", "data.train"),
    "arch": ("model.architecture", "model.backbone"),
    "momentum": ("optimizer.momentum",),
    "wd": ("optimizer.weight_decay",),
    "max_epochs": ("training.epochs",),
    "checkpoint": ("from_checkpoint", "run"),
    "cfg": ("config",),
}
"""Words of Ultralytics, detectron2, MMDetection and Lightning, and the options they stand for."""
SENTENCES = {
    "resume": "the same command resumes what was interrupted",
    "verbose": "--debug shows the traceback of an error",
}
_WRONG_MAPPING = "Parsing error encountered for "
"""How the settings library begins its message on a flag that is no mapping."""


def meant(name: str, fields: Fields, *, prefix: str = "") -> str:
    """What a name that is no option was meant to be: the option of that name in a section, the
    option for a word of other programs, or one that looks like it.
    """
    # A section cannot be given as a flag.
    names = [n for n, field in fields.items() if not prefix or not section_of(field)]
    word = name.replace("-", "_").lower()
    if word in SENTENCES:
        return SENTENCES[word]
    close = [n for n in names if word in (n, n.rpartition(".")[2])]
    close = close or [n for n in FOREIGN_WORDS.get(word, ()) if n in names]
    close = close or difflib.get_close_matches(name, names, n=2, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(prefix + n for n in close[:2])}?"
    return f"there are {', '.join(n for n in fields if '.' not in n)}"


def describe(error: ValidationError, fields: Fields) -> str:
    """The first complaints of pydantic."""
    found = [line for problem in error.errors() for line in _sentences(dict(problem), fields)]
    # A value of several kinds is refused once as each of them.
    lines = [*dict.fromkeys(found)]
    more = [f"and {len(lines) - MOST} more"] if len(lines) > MOST else []
    return joined(*lines[:MOST], *more, "--help shows the units and ranges")


def _sentences(problem: dict[str, Any], options: Fields) -> list[str]:
    kind, path = problem["type"], problem["loc"]
    # A field inside a list of sections is no option, but it may be wrong like one.
    fields = options | {
        f"{name}.{inner}": inner_field
        for name, field in options.items()
        if (item := item_of(field))
        for inner, inner_field in item.model_fields.items()
    }
    name = ".".join(str(part) for part in path if isinstance(part, str))
    # The key of a mapping's value, and the kind that a value might have been, are part of the path
    # and of no field.
    while name not in fields and (parent := name.rpartition(".")[0]) in fields:
        if not is_mapping(fields[parent].annotation) and not has_kinds(fields[parent]):
            break
        name = parent
    field = fields.get(name)
    rule = (
        problem["msg"]
        .removeprefix("Value error, ")
        .replace("Input should", "must")
        .replace("valid tuple", "list")
    )
    # A list that is too short is missing an item, whose name is a number.
    if kind == "missing" and isinstance(path[-1], str):
        return _missing(name, options if name in options else fields)
    if kind == "extra_forbidden":
        return [f"{name} is not an option; {meant(name, fields)}"]
    if field is None or section_of(field) is not None:
        if kind != "value_error":
            inside = [n for n in fields if n.rpartition(".")[0] == name]
            few = ", ".join(inside[:4])
            return [f"{name}: is a section of fields ({few}, ...), got {problem['input']!r}"]
        # The validator of a section that one place in the configuration has writes the whole name.
        named = not name or rule.startswith((f"{name}.", f"{name} ", f"{name}:"))
        return [rule if named else f"{name}: {rule}"]
    if kind == "value_error":
        return [f"{name}: {rule}"]
    key = ""
    if is_mapping(field.annotation):
        whole = name == ".".join(map(str, path))
        key, rule = ("", f"must be {takes(field)}") if whole else (f" of {path[-1]!r}", rule)
    elif kind.endswith(("_parsing", "_type")) or has_kinds(field):
        rule = f"must be {takes(field)}"
    rule = rule[0].lower() + rule[1:]
    variable = ENVIRONMENT_PREFIX + name.replace(".", "__").upper()
    given = next((one for one in os.environ if one.upper() == variable), None)
    source = f"{given}=" if given and os.environ[given] == problem["input"] else f"{name} "
    return [f"{source}{problem['input']!r}{key}: {rule} ({field.description})"]


def _missing(name: str, fields: Fields) -> list[str]:
    """The options that are required where the field or section is missing."""
    inside = [n for n in fields if n == name or n.startswith(name + ".")]
    options = [n for n in inside if fields[n].is_required() and not section_of(fields[n])]
    if options:
        return [f"--{n} is required: {fields[n].description}" for n in options]
    # A section of which no single option is required, because one of several kinds is.
    sections = [n for n in inside if fields[n].is_required() and section_of(fields[n])]
    innermost = [n for n in sections if not any(m.startswith(n + ".") for m in sections)]
    lines = []
    for section in innermost:
        some = ", ".join([f"--{n}" for n in fields if n.rpartition(".")[0] == section][:2])
        meaning = meaning_of_section(fields[section])
        lines.append(f"{section} is required: {meaning} ({some}, ...)")
    return lines


def describe_settings(error: SettingsError, fields: Fields, flags: Sequence[str]) -> str:
    """What the parser of flags and environment could not read, before pydantic saw any value."""
    text = str(error)
    if 'source "EnvSettingsSource"' in text:
        section = text.split('"')[1]
        return (
            f"{ENVIRONMENT_PREFIX}{section.upper()}...: a variable of this section cannot be read;"
            ' lists and mappings are JSON there, such as [1, 2] or {"a": 1}'
        )
    if text.startswith(_WRONG_MAPPING):
        name = text.removeprefix(_WRONG_MAPPING).partition(":")[0]
        values = [value for flag, value in _pairs(flags) if flag == f"--{name}"]
        if name in fields and values:
            return f"--{name} {values[-1]}: must be {takes(fields[name])}"
    if text.startswith("error parsing value"):
        wrong = _unreadable(text.split('"')[1], fields, flags)
        if wrong:
            return "; ".join(wrong)
    argument, _, reason = (
        text.removeprefix("error parsing CLI: ").removeprefix("argument ").partition(": ")
    )
    return f"{argument} {reason.replace('expected one argument', 'needs a value')}".strip()


def _unreadable(section: str, fields: Fields, flags: Sequence[str]) -> list[str]:
    """The flags of a section whose value is no list or mapping: the settings library names only
    the section.
    """
    lines = []
    for flag, value in _pairs(flags):
        field = fields.get(flag[2:])
        if field is None or not (flag[2:] + ".").startswith(section + "."):
            continue
        mapping, is_list = is_mapping(field.annotation), get_origin(field.annotation) is tuple
        whole = value if mapping or value.startswith("[") else f"[{value}]"
        if (mapping or is_list) and not _is_json(whole):
            lines.append(f"{flag} {value}: must be {takes(field)}")
    return lines


def _pairs(flags: Sequence[str]) -> list[tuple[str, str]]:
    """Each argument with its value, written after = or as the next argument."""
    pairs = []
    for flag, following in zip(flags, [*flags[1:], ""], strict=True):
        name, equals, value = flag.partition("=")
        pairs.append((name, value) if equals else (flag, following))
    return pairs


def _is_json(text: str) -> bool:
    try:
        json_text.parse(text)
    except ValueError:
        return False
    return True
