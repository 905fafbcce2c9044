"""Errors that the user can remedy: one plain line and its exit code; and what a text that leaves
the program must not have.

Every message names the thing, its value, the rule that it breaks and the remedy. The entry points
print the message alone; a traceback is for bugs. Each class has only a message, so that it survives
pickling between Ray processes.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence

HIDDEN = "***"
SHORTEST = 8
"""Characters of a value that is recognised. A shorter one is part of many words."""
# A password may contain a slash: in a web address everything up to the last @ goes.
_USER = re.compile(r"(https?://)[^\s'\"<>]*@|([A-Za-z][\w+.-]*://)[^\s/'\"<>@]*@")
_NAMES = "token|secret|passw|credential|signature|apikey|api_key|access_?key"
_QUERY = re.compile(rf"([?&;][^=&\s]*(?:{_NAMES}|sig|key)[^=&\s]*=)[^&\s'\"<>]+", re.IGNORECASE)
_VARIABLE = re.compile(rf"(?i)(?:{_NAMES})(?!.*_(?:PATH|FILE|MODE|DIR)$)")


class PlainError(Exception):
    """An error whose message is for the person who typed the command. Failed infrastructure has
    exit code 1.
    """

    exit_code = 1


class UsageError(PlainError):
    """A wrong name, value, path or resource request: no work has begun."""

    exit_code = 2


class DataError(PlainError):
    """The data is not acceptable: malformed, empty, or too much of it had to be left out."""

    exit_code = 3


class DiskFull(PlainError):
    """A node's disk has no room for a checkpoint. A restarted worker would fail in the same way."""


class GateError(PlainError):
    """A model did not meet the required evidence and was not promoted."""

    exit_code = 4


class InterruptedRun(PlainError):
    """The run was stopped from outside; the same command continues it."""

    exit_code = 5


def joined(*parts: str) -> str:
    """The parts of a message as one line: a question mark ends its part, else a semicolon does."""
    text = ""
    for part in parts:
        text += (" " if text.endswith("?") else "; " if text else "") + part
    return text


def on_one_line(value: str) -> str:
    """`value` for a terminal: characters that move the cursor, change colours or break the line are
    escaped. File names and category names may contain them.
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode()
        for c in value
    )


def instead_of(wrong: str, known: Sequence[str]) -> str:
    """What may be meant by a wrong name, and what there is, as the end of a message."""
    folded = {name.casefold(): name for name in known}
    close = difflib.get_close_matches(wrong.casefold(), list(folded), n=2)
    meant = [f"did you mean {' or '.join(folded[name] for name in close)}?"] if close else []
    return joined(*meant, f"there are {listed(known)}")


def listed(names: Sequence[str], most: int = 10) -> str:
    """The first of some names and the number of the others, as part of a sentence."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "none") + more


def redacted(text: str) -> str:
    """The text, for a person, MLflow or a cluster, with `HIDDEN` in place of each secret that it
    repeats. A secret is known by where it stands, as the user of a URL or a value in its query, and
    by its characters, as the value of a variable with a name such as MLFLOW_TRACKING_TOKEN.
    """
    for value in _secrets():
        text = text.replace(value, HIDDEN)
    text = _USER.sub(lambda found: f"{found[1] or found[2]}{HIDDEN}@", text)
    return _QUERY.sub(rf"\1{HIDDEN}", text)


def has_secret(value: str) -> bool:
    return redacted(value) != value


def _secrets() -> list[str]:
    """Values of the environment, the longest first: one may be part of another."""
    found = {value for name, value in os.environ.items() if _VARIABLE.search(name)}
    return sorted((one for one in found if len(one) >= SHORTEST), key=len, reverse=True)
