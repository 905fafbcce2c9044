"""What goes wrong in a way the user can mend: one plain line and the exit code that belongs to it.

Every message names the thing, its value, the rule it breaks and the remedy. The entry points print
the message alone; a traceback is for bugs. Each class carries only a message, so that it survives
the pickling between Ray processes.
"""

from __future__ import annotations


class PlainError(Exception):
    """An error whose message is meant for the person who typed the command. Infrastructure that
    failed is exit code 1.
    """

    exit_code = 1


class UsageError(PlainError):
    """A wrong name, value, path or resource request: nothing was spent yet."""

    exit_code = 2


class DataError(PlainError):
    """The data is not acceptable: malformed, empty, or too much of it had to be left out."""

    exit_code = 3


class DiskFull(PlainError):
    """A node's disk has no room for a checkpoint; a worker that is started again there would meet
    it again.
    """


class GateError(PlainError):
    """A model did not meet the evidence asked of it and was not promoted."""

    exit_code = 4


class InterruptedRun(PlainError):
    """The run was stopped from outside; the same command continues it."""

    exit_code = 5


def on_one_line(value: str) -> str:
    """`value` for a terminal: what would move its cursor, colour it or break the line is escaped.
    File names and categories may hold any of it.
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode()
        for c in value
    )
