"""What the gate found about a version, and promotions that wait for a second person, as tags of the
version:

gate.json             the last verdict
refused.<UTC time>    each verdict that was no
approval.json         `Request`
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from cluster.errors import UsageError
from cluster.judging.gate import Verdict
from cluster.tracking.client import connected
from cluster.tracking.history import TIME_FORMAT
from cluster.tracking.promotion import Evidence, promote, user
from cluster.tracking.registry import Version

GATE, REFUSED, REQUEST = "gate.json", "refused.", "approval.json"


@dataclass(frozen=True)
class Judged:
    """A verdict, by whom and when."""

    at: str
    """UTC, as `TIME_FORMAT`."""
    by: str
    """USER@HOST."""
    verdict: Verdict

    def to_json(self) -> dict[str, Any]:
        return {"at": self.at, "by": self.by, **self.verdict.to_json()}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Judged:
        return cls(stored["at"], stored["by"], Verdict.from_json(stored))


@dataclass(frozen=True)
class Request:
    """A promotion that waits for a second person."""

    at: str
    by: str
    reason: str
    is_forced: bool
    """The gate said no."""
    evidence: Evidence

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Request:
        return cls(**{**stored, "evidence": Evidence(**stored["evidence"])})


def keep(version: Version, verdict: Verdict, *, tracking: str) -> None:
    """Keep the last verdict, and every refusal. A request for approval that rests on an earlier one
    is withdrawn.
    """
    judged = Judged(datetime.now(UTC).strftime(TIME_FORMAT), user(), verdict)
    text, number = json.dumps(judged.to_json()), str(version.version)
    names = [GATE] if verdict.passed else [GATE, REFUSED + judged.at]
    with connected(tracking) as client:
        if REQUEST in client.get_model_version(version.name, number).tags:
            client.delete_model_version_tag(version.name, number, REQUEST)
        for name in names:
            client.set_model_version_tag(version.name, number, name, text)


def last(tags: Mapping[str, str]) -> Judged | None:
    """The last verdict among the tags of a version."""
    return Judged.from_json(json.loads(tags[GATE])) if GATE in tags else None


def refusals(tags: Mapping[str, str]) -> list[Judged]:
    """Those among the tags of a version, oldest first."""
    return [
        Judged.from_json(json.loads(tags[name]))
        for name in sorted(tags)
        if name.startswith(REFUSED)
    ]


def request(
    version: Version, *, reason: str, is_forced: bool, evidence: Evidence, tracking: str
) -> None:
    """Ask for the approval of a second person."""
    now = datetime.now(UTC).strftime(TIME_FORMAT)
    asked = Request(now, user(), reason, is_forced, evidence)
    with connected(tracking) as client:
        client.set_model_version_tag(
            version.name, str(version.version), REQUEST, json.dumps(asked.to_json())
        )


def approve(version: Version, *, tracking: str) -> Request:
    """Make a version the champion for which another person has asked. `UsageError` where nobody
    has, where the same person asks, and where the champion has changed since.
    """
    with connected(tracking) as client:
        tags = client.get_model_version(version.name, str(version.version)).tags
    if REQUEST not in tags:
        raise UsageError(
            f"{version}: no promotion waits for approval; promote --needs_approval true asks for it"
        )
    asked = Request.from_json(json.loads(tags[REQUEST]))
    if asked.by == user():
        raise UsageError(
            f"{version}: {asked.by} has asked for this promotion; another person must approve"
        )
    promote(
        version,
        reason=f"{asked.reason} (asked by {asked.by}, approved)",
        tracking=tracking,
        kind="forced" if asked.is_forced else "promotion",
        evidence=asked.evidence,
    )
    with connected(tracking) as client:
        client.delete_model_version_tag(version.name, str(version.version), REQUEST)
    return asked
