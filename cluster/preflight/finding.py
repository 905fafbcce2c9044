"""The result of one check, and how a terminal shows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cluster.errors import UsageError, on_one_line

State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One line. `figure` is what was found; `remedy`, for all but ok, is what to do about it."""

    state: State
    check: str
    figure: str
    remedy: str = ""

    @property
    def text(self) -> str:
        return f"{self.figure}; {self.remedy}" if self.remedy else self.figure

    def line(self) -> str:
        return on_one_line(f"{self.state:<5} {self.check:<9} {self.text}")


def parted(message: str) -> tuple[str, str]:
    """What is wrong, and the remedy, which our messages have behind the last semicolon."""
    fault, _, remedy = message.rpartition("; ")
    return (fault, remedy) if fault else (remedy, "")


def failed(findings: Sequence[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.state == "fail"]


def refuse_failed(findings: Sequence[Finding]) -> None:
    """`UsageError` for the first check that failed; it says how many more did."""
    wrong = failed(findings)
    if wrong:
        first, more = wrong[0], len(wrong) - 1
        others = f" ({more} more failed: retinaray preflight lists them)" if more else ""
        raise UsageError(f"{first.check}: {first.text}{others}")
