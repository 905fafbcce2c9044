"""The command line of every verb: YAML, flags and environment become one frozen configuration;
errors become one plain line and an exit code.

Later sources win over earlier ones: defaults, `--config FILE`, environment
(`RETINARAY_SECTION__FIELD`), flags (`--section.field value`).
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError, create_model
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from cluster.compute import session
from cluster.errors import InterruptedRun, PlainError, UsageError, on_one_line
from cluster.storage import yaml_text
from pipelines import entry_flags, refusals, terminal
from pipelines.options import ENVIRONMENT_PREFIX, Fields, all_fields, help_text, section_of

Config = TypeVar("Config", bound=BaseModel)
PATH_ERRORS = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)
"""Of a path that a user gave, and that no check before has refused in words of its own."""
RECIPES = {path.stem: path for path in sorted((Path(__file__).parent / "recipes").glob("*.yaml"))}
"""The recipes that come with the program, by the name that `--config` takes in any folder."""


class _Sources(BaseSettings):
    """Reads a configuration from flags and environment too. Flags are passed when it is made."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
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
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return env_settings, init_settings


def run_verb(
    config_class: type[Config],
    main: Callable[[Config], None],
    *,
    description: str | None,
    resumes: bool = True,
    argv: list[str] | None = None,
    read: Callable[[list[str]], Config] | None = None,
) -> None:
    """Parse the command line into `config_class`, call `main(config)` and end the process with an
    exit code. `description`: what the verb does, with commands to type. `resumes`: after an
    interruption the same command continues. `read`: in place of `parse`.

    0 done, 1 failed, 2 wrong usage or configuration, 3 data not acceptable, 4 refused by the gate,
    5 interrupted, resumable. `--debug` adds the traceback of an error.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    with terminal.plain_output():
        code = _run(
            config_class,
            main,
            arguments,
            description=description,
            resumes=resumes,
            read=read or partial(parse, config_class),
        )
    sys.exit(code)


def _run(
    config_class: type[Config],
    main: Callable[[Config], None],
    arguments: list[str],
    *,
    description: str | None,
    resumes: bool,
    read: Callable[[list[str]], Config],
) -> int:
    """The exit code of `run_verb`, after its message."""
    debug = "--debug" in arguments
    caught: BaseException | None = None
    code, message = 0, ""
    try:
        session.end_like_ctrl_c()
        asked = next((word for word in arguments if word in ("--help", "-h")), None)
        if asked:
            after = arguments[arguments.index(asked) + 1 :][:1]
            topic = "".join(word for word in after if not word.startswith("-"))
            print(help_text(config_class, description=description or "", topic=topic))
        else:
            config = read([a for a in arguments if a != "--debug"])
            if isinstance(output := getattr(config, "output", None), str):
                # Imported here: it loads pyarrow, which `--help` does not need.
                from cluster.storage.uris import refuse_job_folder

                refuse_job_folder("--output", output)
            main(config)
    except KeyboardInterrupt as error:
        caught, code = error, InterruptedRun.exit_code
        then = "continues where it stopped" if resumes else "starts again"
        message = f"interrupted; the same command {then}"
    except PlainError as error:
        caught, code, message = error, error.exit_code, str(error)
    except BrokenPipeError:
        _leave_the_pipe()
    except PATH_ERRORS as error:
        caught, code = error, UsageError.exit_code
        message = f"{_without_errno(error)}; check the path"
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
        print(f"error: {on_one_line(one_line[:2000])[:2000]}", file=sys.stderr)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _leave_the_pipe()
    sys.stderr.flush()
    return code


def _without_errno(error: OSError) -> str:
    """The message of a path that is not what is needed. pyarrow puts the path into the text, Python
    beside it.
    """
    if error.filename is not None:
        return f"{error.filename}: {(error.strerror or 'cannot be used').lower()}"
    return re.sub(r"^\[Errno \d+\] ", "", str(error)).partition(". Detail:")[0]


def _leave_the_pipe() -> None:
    """Whoever reads stdout, such as `head`, has read enough. Python flushes it once more at its
    end, and must not fail there.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parse(
    config_class: type[Config], argv: Sequence[str], *, under: Mapping[str, Any] | None = None
) -> Config:
    """A validated, frozen `config_class` from YAML, environment and flags; `under` all of them lie
    other values in place of the defaults. `UsageError` names the field, the value, the rule and
    the remedy.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", action="append", default=[])
    fields = all_fields(config_class)
    try:
        known, flags = parser.parse_known_args(argv)
    except argparse.ArgumentError:
        raise UsageError("--config needs a value: a YAML file or a recipe's name") from None
    if len(known.config) > 1:
        raise UsageError(
            f"--config is given {len(known.config)} times ({', '.join(known.config)}); give one,"
            " and the rest as flags"
        )
    from_yaml, wrong, shown = {}, [], ""
    for file in known.config:
        from_yaml = read_yaml(file)
        wrong += _wrong_names(from_yaml, fields, where=f"in {file}")
        if wrong and file in RECIPES and not Path(file).is_file():
            raise UsageError(f"--config {file}: is no recipe for this verb; {wrong[0]}")
    wrong += _wrong_variables(fields)
    flags = entry_flags.as_lists(entry_flags.as_mappings(flags, fields), fields)
    for flag in flags:
        name = flag[2:].split("=")[0]
        if flag.startswith("--") and name not in fields:
            wrong.append(f"--{name} is not an option; {refusals.meant(name, fields, prefix='--')}")
            shown = " (--help all lists every option)"
    if wrong:
        raise UsageError("; ".join(wrong) + shown)

    # Any: pyright takes the class for one without the arguments of `BaseSettings`.
    verb: Any = create_model("Verb", __base__=(config_class, _Sources))
    try:
        parsed = verb(_cli_parse_args=flags, **_merged(under or {}, from_yaml))
    except ValidationError as error:
        raise UsageError(refusals.describe(error, fields)) from error
    except SettingsError as error:
        described = refusals.describe_settings(error, fields, flags)
        raise UsageError(f"{described}; --help shows what each option takes") from error
    # The caller gets the plain model: settings machinery must not travel into Ray tasks.
    return config_class.model_validate(parsed.model_dump())


def _merged(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """Both, section by section; where both have a field, that of `high`."""
    merged = dict(low)
    for name, value in high.items():
        both = isinstance(value, Mapping) and isinstance(low.get(name), Mapping)
        merged[name] = _merged(low[name], value) if both else value
    return merged


def read_yaml(path: str) -> dict[str, Any]:
    """The content of a YAML file or of the recipe of this name, empty for an empty one. A file of
    the user comes before a recipe. `UsageError` where it is not pairs of section and fields.
    """
    file = Path(path) if Path(path).is_file() else RECIPES.get(path, Path(path))
    try:
        content = yaml_text.parse(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"--config {path}: cannot be read ({error.strerror}); give a YAML file or one of the"
            f" recipes {', '.join(RECIPES)}"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {path}: not valid YAML: {_yaml_reason(error)}") from error
    if content is not None and not isinstance(content, dict):
        raise UsageError(
            f"--config {path}: must hold lines `section: {{field: value}}`, holds a"
            f" {'list' if isinstance(content, list) else 'single value'}"
        )
    return content or {}


def _yaml_reason(error: Exception) -> str:
    return " ".join(str(error).replace('in "<unicode string>", ', "in ").split())


def _wrong_variables(fields: Fields) -> list[str]:
    """A sentence for each variable with our prefix that is a setting of no verb: it would be lost.
    One of another verb is none of this verb's business.
    """
    known = _variables(fields)
    given = [name for name in os.environ if name.upper().startswith(ENVIRONMENT_PREFIX)]
    if all(name.upper() in known for name in given):
        return []
    for config_class in all_verbs().values():
        known |= _variables(all_fields(config_class))
    names = sorted(one.removeprefix(ENVIRONMENT_PREFIX) for one in known)
    wrong = []
    for name in given:
        if name.upper() not in known:
            own = name[len(ENVIRONMENT_PREFIX) :].upper()
            close = difflib.get_close_matches(own, names, n=1, cutoff=0.5)
            remedy = f"did you mean {ENVIRONMENT_PREFIX}{close[0]}?" if close else "unset it"
            wrong.append(f"environment variable {name}: is no setting of any verb; {remedy}")
    return wrong


def _variables(fields: Fields) -> set[str]:
    """The names of the environment variables of these fields."""
    return {ENVIRONMENT_PREFIX + name.replace(".", "__").upper() for name in fields}


def all_verbs() -> dict[str, type[BaseModel]]:
    """The configuration of each verb."""
    # Imported here: each verb imports this module.
    from pipelines import (
        approve,
        evaluate_config,
        export,
        history,
        predict,
        preflight,
        prepare,
        promote,
        register,
        rollback,
        run_config,
        shards,
        sweep,
        train,
        versions,
    )

    return {
        "prepare": prepare.PrepareConfig,
        "shards": shards.ShardsConfig,
        "train": train.TrainVerb,
        "sweep": sweep.SweepVerb,
        "evaluate": evaluate_config.EvaluateConfig,
        "register": register.RegisterConfig,
        "promote": promote.PromoteConfig,
        "approve": approve.ApproveConfig,
        "rollback": rollback.RollbackConfig,
        "history": history.HistoryConfig,
        "versions": versions.VersionsConfig,
        "predict": predict.PredictConfig,
        "export": export.ExportConfig,
        "run": run_config.RunConfig,
        "preflight": preflight.PreflightConfig,
    }


def _wrong_names(
    content: dict[str, Any], fields: Fields, *, where: str, prefix: str = ""
) -> list[str]:
    """A sentence for each name that is no option."""
    wrong = []
    for key, value in content.items():
        name = f"{prefix}{key}"
        if name not in fields:
            wrong.append(f"{name} ({where}) is not an option; {refusals.meant(name, fields)}")
        elif section_of(fields[name]) and isinstance(value, dict):
            wrong += _wrong_names(value, fields, where=where, prefix=name + ".")
    return wrong
