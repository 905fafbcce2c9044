"""What verbs print: plain text without secrets, whatever the names in it are."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO, cast

from cluster.errors import on_one_line, redacted

REPLACES = "\r\x1b[K"
"""How a progress line begins that takes the place of the one before."""


@contextmanager
def plain_output() -> Iterator[None]:
    """Within it stdout and stderr take `plain` text alone."""
    with (
        redirect_stdout(cast(TextIO, _Plain(sys.stdout))),
        redirect_stderr(cast(TextIO, _Plain(sys.stderr))),
    ):
        yield


def next_command(verb: str, **options: str | None) -> str:
    """The line with the command that usually comes next, to be typed as it stands; without the
    options that are None. An option with a dot is written with two underscores.
    """
    words = ["retinaray", verb]
    for name, value in options.items():
        words += [] if value is None else [f"--{name.replace('__', '.')}", value]
    return f"next     {shlex.join(words)}"


def plain(text: str) -> str:
    """`text` without secrets and without characters that move the cursor, change colours or set the
    title of a window: they are written as their codes. Line ends, tabs and `REPLACES` stay.
    """
    start = REPLACES if text.startswith(REPLACES) else ""
    lines = redacted(text.removeprefix(start)).split("\n")
    return start + "\n".join("\t".join(map(on_one_line, line.split("\t"))) for line in lines)


class _Plain:
    """A stream whose text is written as `plain` gives it."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(plain(text))
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
