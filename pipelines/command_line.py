"""The door every verb goes through: YAML + flags + environment -> one frozen config; errors -> one
plain line and an exit code.

Later sources win over earlier ones: defaults, `--config file.yaml`, environment
(`RETINARAY_SECTION__FIELD`), flags (`--section.field value`).
"""

from __future__ import annotations

import argparse
import difflib
import json
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from cluster.errors import InterruptedRun, PlainError, UsageError, on_one_line

ENVIRONMENT_PREFIX = "RETINARAY_"
KINDS = {int: "integer", float: "number", str: "text", bool: "true | false"}
BOUNDS = {"ge": "at least {}", "gt": "above {}", "le": "at most {}", "lt": "below {}"}

Fields = dict[str, FieldInfo]
"""Every field by its dotted name, sections before their fields: `model`, `model.backbone`, ..."""


def run_verb(
    config_class: type[BaseModel],
    main: Callable[[Any], None],
    *,
    description: str,
    argv: list[str] | None = None,
) -> None:
    """Parse the command line into `config_class`, call `main(config)` and leave the process with
    the exit code of the design.

    0 done, 1 failed, 2 usage or configuration, 3 the data is not acceptable, 4 the gate said no, 5
    interrupted but resumable. `--debug` adds the traceback to whatever went wrong.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    caught: BaseException | None = None
    code, message = 0, ""
    try:
        if "--help" in arguments or "-h" in arguments:
            print(help_text(config_class, description=description))
        else:
            main(parse(config_class, [a for a in arguments if a != "--debug"]))
    except KeyboardInterrupt as error:
        caught, code, message = (
            error,
            InterruptedRun.exit_code,
            "interrupted; the same command continues where it stopped",
        )
    except PlainError as error:
        caught, code, message = error, error.exit_code, str(error)
    except Exception as error:
        caught, code = error, 1
        message = (
            f"{type(error).__name__}: {str(error).strip() or 'no message'} (a bug or a failing"
            " machine; --debug shows the traceback)"
        )
    if caught is not None and debug:
        traceback.print_exception(caught)
    if message:
        one_line = " ".join(line.strip() for line in message.splitlines() if line.strip())
        print(f"error: {on_one_line(one_line)[:2000]}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)


def parse(config_class: type[BaseModel], argv: list[str]) -> Any:
    """A checked, frozen `config_class` from YAML, environment and flags. `UsageError` names the
    field, the value, the rule and the remedy.
    """
    door = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    door.add_argument("--config")
    fields = all_fields(config_class)
    try:
        known, flags = door.parse_known_args(argv)
    except argparse.ArgumentError:
        raise UsageError("--config needs a value, the path of a YAML file") from None
    from_yaml = read_yaml(known.config) if known.config else {}
    check_names(from_yaml, fields, where=f"in {known.config}")
    for flag in flags:
        name = flag[2:].split("=")[0]
        if flag.startswith("--") and name not in fields:
            raise UsageError(
                f"--{name} is not an option; {did_you_mean(name, fields, prefix='--')} (--help"
                " lists all of them)"
            )

    class Verb(config_class, BaseSettings):
        model_config = SettingsConfigDict(
            frozen=True,
            extra="forbid",
            cli_parse_args=flags,
            cli_exit_on_error=False,
            env_prefix=ENVIRONMENT_PREFIX,
            env_nested_delimiter="__",
            nested_model_default_partial_update=True,
        )

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            **_: Any,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return env_settings, init_settings

    try:
        parsed = Verb(**from_yaml)
    except ValidationError as error:
        raise UsageError(describe(error, fields)) from error
    except SettingsError as error:
        raise UsageError(
            f"{describe_settings(error, fields, flags)}; --help shows what each option takes"
        ) from error
    # The caller gets the plain model: settings machinery must not travel into Ray tasks.
    return config_class.model_validate(parsed.model_dump())


def read_yaml(path: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"--config {path}: cannot be read ({error.strerror}); give the path of a YAML file"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(
            f"--config {path}: not valid YAML: {' '.join(str(error).split())}"
        ) from error
    if content is not None and not isinstance(content, dict):
        raise UsageError(
            f"--config {path}: must hold 'section: field: value' pairs, holds a"
            f" {type(content).__name__}"
        )
    return content or {}


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The model whose fields this field holds, also where it may be absent (`Section | None`); None
    for a plain value and for a list of models.
    """
    candidates = (
        field.annotation,
        *(get_args(field.annotation) if type(None) in get_args(field.annotation) else ()),
    )
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


def item_of(field: FieldInfo) -> type[BaseModel] | None:
    """The model whose list this field holds (`tuple[Section, ...]`); None for every other."""
    items = get_args(field.annotation)[:1]
    return (
        items[0]
        if get_origin(field.annotation) is tuple
        and isinstance(items[0], type)
        and issubclass(items[0], BaseModel)
        else None
    )


def all_fields(config_class: type[BaseModel], prefix: str = "") -> Fields:
    found: Fields = {}
    for name, field in config_class.model_fields.items():
        found[prefix + name] = field
        if section := section_of(field):
            found |= all_fields(section, f"{prefix}{name}.")
    return found


def check_names(content: dict[str, Any], fields: Fields, *, where: str, prefix: str = "") -> None:
    for key, value in content.items():
        name = f"{prefix}{key}"
        if name not in fields:
            raise UsageError(f"{name} ({where}) is not an option; {did_you_mean(name, fields)}")
        if section_of(fields[name]) and isinstance(value, dict):
            check_names(value, fields, where=where, prefix=name + ".")


def did_you_mean(name: str, fields: Fields, *, prefix: str = "") -> str:
    # What may be given as a flag: sections are only headings there.
    names = [n for n, field in fields.items() if not prefix or not section_of(field)]
    close = difflib.get_close_matches(name, names, n=2, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(prefix + n for n in close)}?"
    return f"the sections are {', '.join(n for n in fields if '.' not in n)}"


def describe(error: ValidationError, fields: Fields) -> str:
    """The first complaints of pydantic as plain sentences: name, value, rule, and what the field
    is.
    """
    lines: list[str] = []
    # What is in a list of sections is no flag, but may be wrong like one.
    fields = fields | {
        f"{name}.{inner}": f
        for name, field in fields.items()
        if (item := item_of(field))
        for inner, f in item.model_fields.items()
    }
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"] if isinstance(part, str))
        field = fields.get(name)
        section = field is None or section_of(field) is not None
        rule = (
            problem["msg"]
            .removeprefix("Value error, ")
            .replace("Input should", "must")
            .replace("valid tuple", "list")
        )
        if problem["type"] == "missing" and isinstance(
            problem["loc"][-1], str
        ):  # else a list is too short
            required = [
                n
                for n in fields
                if (n == name or n.startswith(name + "."))
                and fields[n].is_required()
                and not section_of(fields[n])
            ]
            lines += [f"--{n} is required: {fields[n].description}" for n in required]
        elif problem["type"] == "extra_forbidden":
            lines.append(f"{name} is not an option; {did_you_mean(name, fields)}")
        elif problem["type"] == "value_error" and section:
            lines.append(rule)  # from a validator of a whole section, which names its fields itself
        elif problem["type"] == "value_error":
            lines.append(f"{name}: {rule}")
        elif section:
            inside = [
                n for n in fields if n.startswith(name + ".") and "." not in n[len(name) + 1 :]
            ]
            lines.append(
                f"{name}: is a section of fields ({', '.join(inside[:4])}, ...), got"
                f" {problem['input']!r}"
            )
        else:
            lines.append(
                f"{name} {problem['input']!r}: {rule[0].lower() + rule[1:]} ({field.description})"
            )
    more = f"; and {len(lines) - 3} more" if len(lines) > 3 else ""
    return "; ".join(lines[:3]) + more + "; --help shows the units and ranges"


def describe_settings(error: SettingsError, fields: Fields, flags: Sequence[str]) -> str:
    """What the flag or environment parser could not take apart, before pydantic saw any value."""
    text = str(error)
    if 'source "EnvSettingsSource"' in text:
        section = text.split('"')[1]
        return (
            f"{ENVIRONMENT_PREFIX}{section.upper()}...: a variable of this section cannot be read;"
            " lists are JSON there, such as [1, 2]"
        )
    if text.startswith("error parsing value"):
        # Of a list of which an item is no JSON the settings library names only the section.
        given = [
            flag.partition("=")[::2] if "=" in flag else (flag, value)
            for flag, value in zip(flags, [*flags[1:], ""], strict=True)
        ]
        section = text.split('"')[1]
        lists = [
            (flag, value)
            for flag, value in given
            if flag.startswith(f"--{section}.") and get_origin(fields[flag[2:]].annotation) is tuple
        ]
        wrong = [(flag, value) for flag, value in lists if not is_json_list(value)]
        if wrong:
            return "; ".join(
                f"{flag} {value}: must be {takes(fields[flag[2:]])}" for flag, value in wrong
            )
    argument, _, reason = (
        text.removeprefix("error parsing CLI: ").removeprefix("argument ").partition(": ")
    )
    return f"{argument} {reason.replace('expected one argument', 'needs a value')}".strip()


def is_json_list(value: str) -> bool:
    try:
        json.loads(value if value.startswith("[") else f"[{value}]")
    except ValueError:
        return False
    return True


def help_text(config_class: type[BaseModel], *, description: str) -> str:
    """Usage, then every option with what it takes, its range, its default and its meaning."""
    fields = all_fields(config_class)
    required = "".join(
        f" --{name} ..."
        for name, field in fields.items()
        if field.is_required() and not section_of(field)
    )
    lines = [
        (
            f"usage: python -m pipelines.{Path(sys.argv[0]).stem} [--config FILE.yaml]{required}"
            " [--section.field VALUE ...]"
        ),
        "",
        description,
        "",
        "  --config FILE",
        "        YAML with the names below, nested: `section:` and under it `field: value`",
        "  --debug",
        "        show the traceback of an error",
        f"  environment {ENVIRONMENT_PREFIX}SECTION__FIELD",
        "        each field as a variable; flags win over it, it wins over the YAML",
        "",
    ]
    for name, field in fields.items():
        if section := section_of(field):
            meaning = field.description or (section.__doc__ or "").strip().partition("\n")[0]
            lines += ["", f"{name}: {meaning}"]
        else:
            default = (
                "required"
                if field.is_required()
                else f"default {show(field.get_default(call_default_factory=True))}"
            )
            lines.append(f"  --{name}  {takes(field)}; {default}")
            lines += textwrap.wrap(
                field.description or "",
                width=120,
                initial_indent=" " * 8,
                subsequent_indent=" " * 8,
            )
    lines += [
        "",
        (
            "exit codes: 0 done, 1 failed, 2 usage or configuration, 3 data not acceptable, 4 the"
            " gate said no, 5 interrupted, resumable"
        ),
    ]
    return "\n".join(lines)


def takes(field: FieldInfo) -> str:
    """The kind of value and its range: `integer, at least 1, at most 10000`."""
    kinds = (
        [k for k in get_args(field.annotation) if k is not type(None)]
        if type(None) in get_args(field.annotation)
        else [field.annotation]
    )
    kind, inner = kinds[0], get_args(kinds[0])
    if get_origin(kind) is Literal:
        return " | ".join(map(str, inner))
    words = KINDS.get(kind, "text")
    if item := item_of(field):
        words = f"list of {{{', '.join(item.model_fields)}}}"
    elif inner and get_origin(inner[0]) is tuple:
        words = "JSON, a list of lists such as [[1,2],[3,4]]"
    elif inner:
        words = f"{KINDS.get(inner[0], 'value')}s with commas between" + (
            f", exactly {len(inner)}" if ... not in inner and len(inner) > 1 else ""
        )
    rules = [
        rule.format(getattr(m, name))
        for m in field.metadata
        for name, rule in BOUNDS.items()
        if getattr(m, name, None) is not None
    ]
    return ", ".join([words, *rules])


def show(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(show, value)) or "empty"
    if isinstance(value, float):
        return f"{value:.6g}"
    return (
        {True: "true", False: "false"}.get(value, str(value))
        if isinstance(value, bool)
        else "unset"
        if value is None
        else str(value)
    )
