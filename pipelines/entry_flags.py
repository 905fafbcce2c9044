"""Ways to write a command: a word without a flag, a list of texts with spaces between
(`--compare A B`), and a flag for one entry of a mapping. `--sampling.source_weights.night 2` says
the same as `--sampling.source_weights '{"night": 2}'`. Names of entries may have dots, as in
`--sweep.space.loss.gamma 0..5`.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence

from cluster.errors import UsageError
from pipelines.options import Fields, is_mapping


def positional(flags: Sequence[str]) -> tuple[str | None, list[str]]:
    """The word that is no flag and no flag's value, and everything else. `UsageError` for several
    such words.
    """
    words, rest = list[str](), list[str]()
    waiting = list(flags)
    while waiting:
        flag = waiting.pop(0)
        if not flag.startswith("-"):
            words.append(flag)
            continue
        rest.append(flag)
        if "=" not in flag and waiting and not waiting[0].startswith("--"):
            rest.append(waiting.pop(0))
    if len(words) > 1:
        raise UsageError(
            f"{words[0]} and {words[1]}: one folder is taken; give the other in a flag"
        )
    return (words[0] if words else None), rest


def as_lists(flags: Sequence[str], fields: Fields) -> list[str]:
    """The flags, with several values of a list of texts as one."""
    rewritten: list[str] = []
    waiting = list(flags)
    while waiting:
        rewritten.append(flag := waiting.pop(0))
        field = fields.get(flag.removeprefix("--")) if flag.startswith("--") else None
        if field is None or field.annotation != tuple[str, ...]:
            continue
        values = list(itertools.takewhile(lambda word: not word.startswith("--"), waiting))
        if len(values) > 1:
            del waiting[: len(values)]
            rewritten[-1] = f"{flag}={json.dumps(values)}"
    return rewritten


def as_mappings(flags: Sequence[str], fields: Fields) -> list[str]:
    """The flags, with each flag of an entry as a flag of its mapping. `UsageError` for one without
    a value.
    """
    rewritten: list[str] = []
    waiting = list(flags)
    while waiting:
        flag = waiting.pop(0)
        name, equals, value = flag.removeprefix("--").partition("=")
        mapping = mapping_of(name, fields) if flag.startswith("--") else None
        if mapping is None:
            rewritten.append(flag)
            continue
        if not equals and (not waiting or waiting[0].startswith("--")):
            raise UsageError(f"--{name} needs a value; --help shows what {mapping} takes")
        entry = {name[len(mapping) + 1 :]: value if equals else waiting.pop(0)}
        rewritten.append(f"--{mapping}={json.dumps(entry)}")
    return rewritten


def mapping_of(name: str, fields: Fields) -> str | None:
    """The option of which a flag's name is an entry; None where it is of none."""
    if name in fields:
        return None
    mappings = [option for option, field in fields.items() if is_mapping(field.annotation)]
    return next((one for one in mappings if name[: len(one) + 1] == f"{one}." != name), None)
