"""The door every verb goes through: YAML + flags + environment -> one frozen config; errors -> one plain line and an exit code.

Later sources win over earlier ones: defaults, `--config file.yaml`, environment (`RETINARAY_SECTION__FIELD`), flags (`--section.field value`).
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from cluster.errors import InterruptedRun, PlainError, UsageError

ENVIRONMENT_PREFIX = "RETINARAY_"


def run_verb(config_class: type[BaseModel], main: Callable[[Any], None], *, description: str, argv: list[str] | None = None) -> None:
    """Parse the command line into `config_class`, call `main(config)` and leave the process with the exit code of the design.

    0 done, 1 failed, 2 usage or configuration, 3 the data is not acceptable, 4 the gate said no, 5 interrupted but resumable.
    `--debug` adds the traceback to whatever went wrong.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        main(parse(config_class, [a for a in arguments if a != "--debug"], description=description))
    except KeyboardInterrupt:
        code, message = InterruptedRun.exit_code, "interrupted; the same command continues where it stopped"
    except PlainError as error:
        code, message = error.exit_code, str(error)
    except Exception as error:
        code = 1
        message = f"{type(error).__name__}: {str(error).strip() or 'no message'} (a bug or a failing machine; --debug shows the traceback)"
    else:
        code, message = 0, ""
    if code and debug:
        traceback.print_exc()
    if message:
        first_lines = " ".join(line.strip() for line in message.splitlines() if line.strip())
        print(f"error: {first_lines[:2000]}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)


def parse(config_class: type[BaseModel], argv: list[str], *, description: str) -> Any:
    """A checked, frozen `config_class` from YAML, environment and flags. `UsageError` names the field, the value, the rule and the remedy."""
    door = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    door.add_argument("--config")
    known, flags = door.parse_known_args(argv)
    from_yaml = read_yaml(known.config) if known.config else {}
    names = list(field_names(config_class))
    check_names(from_yaml, names, where=f"in {known.config}")
    for flag in flags:
        name = flag[2:].split("=")[0]
        if flag.startswith("--") and name not in names and name not in ("help",):
            raise UsageError(f"--{name} is not an option; {did_you_mean(name, names)} (--help lists all of them)")

    class Verb(config_class, BaseSettings):
        model_config = SettingsConfigDict(
            frozen=True,
            extra="forbid",
            cli_prog_name=os.path.basename(sys.argv[0]),
            cli_parse_args=flags,
            cli_hide_none_type=True,
            cli_avoid_json=True,
            env_prefix=ENVIRONMENT_PREFIX,
            env_nested_delimiter="__",
            nested_model_default_partial_update=True,
        )

        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, env_settings: PydanticBaseSettingsSource, **_: Any
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return env_settings, init_settings

    Verb.__doc__ = description + "\n\nAlso: --config FILE.yaml (same names, nested), --debug (tracebacks), environment RETINARAY_SECTION__FIELD."
    try:
        parsed = Verb(**from_yaml)
    except ValidationError as error:
        raise UsageError(describe(error)) from error
    except yaml.YAMLError as error:
        raise UsageError(f"the configuration is not valid YAML: {error}") from error
    # The caller gets the plain model: settings machinery must not travel into Ray tasks.
    return config_class.model_validate(parsed.model_dump())


def read_yaml(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.safe_load(file)
    except OSError as error:
        raise UsageError(f"--config {path}: cannot be read ({error.strerror}); give the path of a YAML file") from error
    except yaml.YAMLError as error:
        raise UsageError(f"--config {path}: not valid YAML: {error}") from error
    if content is not None and not isinstance(content, dict):
        raise UsageError(f"--config {path}: must hold 'section: field: value' pairs, holds a {type(content).__name__}")
    return content or {}


def field_names(config_class: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The dotted names of all fields, sections included: `model`, `model.backbone`, ..."""
    for name, field in config_class.model_fields.items():
        yield prefix + name
        for inner in (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from field_names(inner, f"{prefix}{name}.")


def check_names(content: dict[str, Any], names: list[str], *, where: str, prefix: str = "") -> None:
    for key, value in content.items():
        name = f"{prefix}{key}"
        if name not in names:
            raise UsageError(f"{name} ({where}) is not an option; {did_you_mean(name, names)}")
        if isinstance(value, dict) and any(n.startswith(name + ".") for n in names):
            check_names(value, names, where=where, prefix=name + ".")


def did_you_mean(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=2, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"the sections are {', '.join(n for n in names if '.' not in n)}"


def describe(error: ValidationError) -> str:
    """The first complaints of pydantic as plain sentences: name, value, rule."""
    lines = []
    for problem in error.errors()[:3]:
        name = ".".join(str(part) for part in problem["loc"]) or "the configuration"
        rule = problem["msg"].removeprefix("Value error, ")
        value = "" if problem["type"] in ("missing", "value_error") else f" (got {problem['input']!r})"
        lines.append(f"{name}: {rule[0].lower() + rule[1:]}{value}")
    return "; ".join(lines) + "; --help shows the units and ranges"
