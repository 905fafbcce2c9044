"""Writes docs/reference/options.md from the configuration fields of the verbs.

python docs/reference.py
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pydantic import BaseModel  # noqa: E402

from pipelines.__main__ import VERBS  # noqa: E402
from pipelines.options import ENVIRONMENT_PREFIX, section_of, show, takes  # noqa: E402

TARGET = ROOT / "docs" / "reference" / "options.md"
COMMAND = "python docs/reference.py"
HEAD = f"""\
# Options of every verb

<!-- Written by `{COMMAND}` from the configuration fields; edit those, not this file. -->

Each option is a flag (`--training.epochs 3`), a variable of the environment
(`{ENVIRONMENT_PREFIX}TRAINING__EPOCHS=3`), and a name in a YAML file for `--config`
(`training: {{epochs: 3}}`). A flag wins over the environment, the environment over the YAML file,
and the YAML file over the default.

An option that takes values by name takes each of them as a flag, too:
`--sampling.source_weights.night 2` is `--sampling.source_weights '{{"night": 2}}'`.

Every verb also takes `--config` (a YAML file, or the name of a recipe such as `small_r18`),
`--debug`, which shows the traceback of an error, and `--help`, which shows the options that matter
first; `--help SECTION` shows those of a section, `--help all` every one.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 unacceptable data, 4 refused by the
gate, 5 interrupted, resumable.
"""


class Verb(NamedTuple):
    name: str
    config: type[BaseModel]
    description: str


class Part(NamedTuple):
    """A section of a configuration: its dotted name and its class. A verb may narrow a class, so
    the name alone does not identify it.
    """

    name: str
    config: type[BaseModel]


def verbs() -> list[Verb]:
    """Every file of pipelines/ that calls `run_verb(Config, main, ...)`, with the first paragraph
    of its docstring.
    """
    found = {}
    for path in sorted((ROOT / "pipelines").glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id == "run_verb"
            ):
                name = node.args[0]
                assert isinstance(name, ast.Name), f"{path}: run_verb is given no class"
                config = getattr(importlib.import_module(f"pipelines.{path.stem}"), name.id)
                description = one_line((ast.get_docstring(tree) or "").partition("\n\n")[0])
                found[path.stem] = Verb(path.stem, config, description)
    assert sorted(found) == sorted(VERBS), f"the verbs are {sorted(found)}; VERBS has others"
    return [found[name] for name in VERBS]


def sections(config: type[BaseModel], prefix: str = "") -> Iterator[tuple[Part, str]]:
    """The sections of a configuration with their meaning, each before those inside it."""
    for name, field in config.model_fields.items():
        if section := section_of(field):
            first_paragraph = (section.__doc__ or "").strip().partition("\n\n")[0]
            yield (
                Part(f"{prefix}{name}", section),
                one_line(field.description or first_paragraph),
            )
            yield from sections(section, f"{prefix}{name}.")


def table(config: type[BaseModel], prefix: str) -> str:
    """The options of one section, without those of the sections inside it; empty for none."""
    rows = []
    for name, field in config.model_fields.items():
        if section_of(field):
            continue
        default = (
            "required"
            if field.is_required()
            else f"`{show(field.get_default(call_default_factory=True))}`"
        )
        cells = [f"`--{prefix}{name}`", takes(field), default, field.description or ""]
        rows.append(f"| {' | '.join(map(escaped, cells))} |")
    head = ["| option | takes | default | meaning |", "|---|---|---|---|"]
    return "\n".join([*head, *rows]) if rows else ""


def one_line(text: str) -> str:
    return " ".join(text.split())


def escaped(text: str) -> str:
    """Text for a cell of a Markdown table."""
    return one_line(text).replace("|", r"\|").replace("<", "&lt;")


def link(part: Part) -> str:
    """To the heading of a section, as GitHub makes it."""
    return f"[`{part.name}`](#{part.name.replace('.', '').lower()}-options)"


def render() -> str:
    """The whole of options.md."""
    all_verbs = verbs()
    by_verb = {verb.name: dict(sections(verb.config)) for verb in all_verbs}
    users: dict[Part, list[str]] = {}
    for name, found in by_verb.items():
        for part in found:
            users.setdefault(part, []).append(name)
    shared = [part for part, names in users.items() if len(names) > 1]
    parts = [HEAD]
    for verb in all_verbs:
        parts += [f"## {verb.name}", verb.description, table(verb.config, "")]
        for part, meaning in by_verb[verb.name].items():
            if part not in shared:
                parts += [f"`{part.name}`: {meaning}", table(part.config, f"{part.name}.")]
        links = [link(part) for part in by_verb[verb.name] if part in shared]
        if links:
            parts.append(f"And the sections that several verbs share: {', '.join(links)}.")
    parts.append("## Sections that several verbs share")
    for part in shared:
        names = ", ".join(users[part])
        meaning = by_verb[users[part][0]][part]
        parts += [
            f"### {part.name} options",
            f"In {names}: {meaning}",
            table(part.config, f"{part.name}."),
        ]
    return "\n\n".join(text.strip() for text in parts if text.strip()) + "\n"


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
    print(f"written {TARGET.relative_to(ROOT)}")
