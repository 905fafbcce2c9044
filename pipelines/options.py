"""The fields of a configuration as options: their dotted names, what each takes, and the text of
`--help`.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cluster.errors import UsageError

ENVIRONMENT_PREFIX = "RETINARAY_"
EXIT_CODES = (
    "exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 data not acceptable, 4 refused"
    " by the gate, 5 interrupted, resumable"
)
YAML_HELP = "YAML with the names below, nested: `section:` and under it `field: value`"
RECIPE_HELP = "; or the name of a recipe that comes with the program, such as small_r18"
WIDTH = 100
_KINDS = {int: "integer", float: "number", str: "text", bool: "true | false"}
_BOUNDS = {"ge": "at least {}", "gt": "above {}", "le": "at most {}", "lt": "below {}"}

Fields = dict[str, FieldInfo]
"""Every field by its dotted name, sections before their fields (`model`, `model.backbone`, ...)
and plain fields before the sections beside them: in `--help` each stands under its own heading.
"""


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The class of a section, also of one that may be absent (`Section | None`); None for a plain
    value and for a list of sections.
    """
    kinds: list[Any] = [field.annotation]
    if type(None) in get_args(field.annotation):
        kinds += get_args(field.annotation)
    return next((kind for kind in kinds if _is_model(kind)), None)


def item_of(field: FieldInfo) -> type[BaseModel] | None:
    """The class of the items of a list of sections (`tuple[Section, ...]`); None for every other
    field.
    """
    items = get_args(field.annotation)[:1]
    return items[0] if get_origin(field.annotation) is tuple and _is_model(items[0]) else None


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def all_fields(config_class: type[BaseModel], prefix: str = "") -> Fields:
    fields: Fields = {}
    own = sorted(
        config_class.model_fields.items(), key=lambda item: section_of(item[1]) is not None
    )
    for name, field in own:
        fields[prefix + name] = field
        if section := section_of(field):
            fields |= all_fields(section, f"{prefix}{name}.")
    return fields


def takes(field: FieldInfo) -> str:
    """The kind of value and its range: `integer, at least 1, at most 10000`."""
    kinds = [kind for kind in get_args(field.annotation) if kind is not type(None)]
    optional = type(None) in get_args(field.annotation)
    kind = kinds[0] if optional else field.annotation
    if get_origin(kind) in (Union, UnionType):
        return " | ".join(takes(FieldInfo.from_annotation(one)) for one in get_args(kind))
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) is Literal:
        return " | ".join(map(str, get_args(kind)))
    rules = [
        rule.format(getattr(bound, name))
        for bound in field.metadata
        for name, rule in _BOUNDS.items()
        if getattr(bound, name, None) is not None
    ]
    return ", ".join([_kind_in_words(kind), *rules])


def has_kinds(field: FieldInfo) -> bool:
    """Whether the field takes values of several kinds, such as a number or `auto`."""
    return (
        get_origin(field.annotation) in (Union, UnionType)
        and section_of(field) is None
        and len([kind for kind in get_args(field.annotation) if kind is not type(None)]) > 1
    )


def _kind_in_words(kind: Any) -> str:
    inner = get_args(kind)
    if not inner:
        return _KINDS.get(kind, "text")
    if _is_model(inner[0]):
        return f"JSON, a list of {{{', '.join(inner[0].model_fields)}}}"
    if get_origin(inner[0]) is tuple:
        return "JSON, a list of lists such as [[1,2],[3,4]]"
    if is_mapping(kind):
        example = '{"a":1,"b":2}' if inner[1] in (int, float) else '{"a":"x","b":"y"}'
        return f"JSON, {_KINDS.get(inner[1], 'value')}s by name such as {example}"
    if get_origin(inner[0]) is Literal:
        return f"some of {', '.join(map(str, get_args(inner[0])))}, with commas between"
    exactly = "" if ... in inner or len(inner) == 1 else f", exactly {len(inner)}"
    return f"{_KINDS.get(inner[0], 'value')}s with commas between{exactly}"


def is_mapping(kind: Any) -> bool:
    origin = get_origin(kind)
    return isinstance(origin, type) and issubclass(origin, Mapping)


def show(value: Any) -> str:
    """A default as one would type it; `unset` for None and `empty` for a list or mapping of
    nothing.
    """
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ",".join(map(show, value)) or "empty"
    if isinstance(value, Mapping):
        return json.dumps(dict(value)) if value else "empty"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def default_of(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    return f"default {show(field.get_default(call_default_factory=True))}"


def meaning_of_section(field: FieldInfo) -> str:
    """The field's description, else the first paragraph of the section's docstring, in one line."""
    section = section_of(field)
    docstring = (section.__doc__ or "") if section else ""
    return " ".join((field.description or docstring.strip().partition("\n\n")[0]).split())


def help_text(config_class: type[BaseModel], *, description: str, topic: str = "") -> str:
    """Usage, what the verb does, and options with what they take, their ranges, defaults and
    meanings.

    A class with many options names in `FIRST` those that matter first: they alone are shown, with
    a list of the sections. `topic`: `all`, or a section or option whose options are shown.
    `UsageError` where there is none of that name.
    """
    fields = all_fields(config_class)
    first: tuple[str, ...] = getattr(config_class, "FIRST", ())
    if topic not in ("", "all"):
        return "\n".join(_topic(topic, fields))
    required = "".join(
        f" --{name} ..."
        for name, field in fields.items()
        if field.is_required() and not section_of(field)
    )
    lines = [
        f"usage: {program()} [--config FILE]{required} [--section.field VALUE ...]",
        "",
        *description.strip().splitlines(),
        "",
        "  --config FILE",
        *_indented(YAML_HELP + (RECIPE_HELP if "training" in fields else ""), by=8),
        "  --debug",
        "        show the traceback of an error",
        f"  environment {ENVIRONMENT_PREFIX}SECTION__FIELD",
        "        each field as a variable; flags override it, it overrides the YAML",
        "",
    ]
    if first and not topic:
        lines.append("What matters first:")
        for name in first:
            lines += _option(name, fields[name])
        lines += ["", "More, by section: --help SECTION; --help all shows every option."]
        for name, field in fields.items():
            if section_of(field):
                lines += _indented(f"{name}: {meaning_of_section(field)}", by=2, hanging=6)
    else:
        for name, field in fields.items():
            lines += _option(name, field)
    return "\n".join([*lines, "", *textwrap.wrap(EXIT_CODES, width=WIDTH)])


def program() -> str:
    """How the running verb was called, to be typed again: `retinaray train`."""
    called = Path(sys.argv[0])
    return f"python -m pipelines.{called.stem}" if called.suffix == ".py" else sys.argv[0]


def _topic(topic: str, fields: Fields) -> list[str]:
    inside = [name for name in fields if name == topic or name.startswith(f"{topic}.")]
    if not inside:
        sections = [name for name, field in fields.items() if section_of(field)]
        raise UsageError(
            f"--help {topic}: is no section or option; give all, or one of {', '.join(sections)}"
        )
    return [line for name in inside for line in _option(name, fields[name])]


def _option(name: str, field: FieldInfo) -> list[str]:
    """The lines of one option, or the heading of a section."""
    if section_of(field):
        return ["", *textwrap.wrap(f"{name}: {meaning_of_section(field)}", width=WIDTH)]
    lines = [f"  --{name}  {takes(field)}; {default_of(field)}"]
    lines += _indented(field.description or "", by=8)
    if is_mapping(field.annotation):
        lines.append(f"        one of them as a flag of its own: --{name}.NAME VALUE")
    if item := item_of(field):
        for inner, part in item.model_fields.items():
            about = f"{inner}: {takes(part)}; {default_of(part)}; {part.description}"
            lines += _indented(about, by=10)
    return lines


def _indented(text: str, *, by: int, hanging: int | None = None) -> list[str]:
    after = " " * (by if hanging is None else hanging)
    return textwrap.wrap(text, width=WIDTH, initial_indent=" " * by, subsequent_indent=after)
