"""What the registry knows about a model, for a reader: its versions, and the history of its
champion with the verdicts of the gate.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from cluster.tracking.client import connected
from cluster.tracking.history import Move, history
from cluster.tracking.promotion import APPROVAL_TAG, GATE_TAG, REFUSED, champion_of
from cluster.tracking.registry import aliases_by_version, refuse_unknown
from detector.scores import shown


@dataclass(frozen=True)
class VersionRow:
    version: int
    aliases: tuple[str, ...]
    created: str
    """UTC."""
    ap: str
    """Of its training; a dash where it is unknown."""
    verdict: str
    """The last one of the gate, in words; a dash where there was none."""
    run: str
    """Folder of its training; a dash where it is unknown."""


@dataclass(frozen=True)
class Refusal:
    """A verdict of the gate that was no."""

    at: str
    by: str
    version: int
    reason: str
    data: str
    numbers: Mapping[str, float | None]


@dataclass(frozen=True)
class Audit:
    name: str
    moves: Sequence[Move]
    refusals: Sequence[Refusal]
    """All of them."""
    versions: Sequence[VersionRow]

    def as_json(self) -> str:
        content = {
            "name": self.name,
            "moves": [{"at": move.at, **move.to_json()} for move in self.moves],
            "refusals": [asdict(refusal) for refusal in self.refusals],
        }
        return json.dumps(content, indent=1)

    def history_lines(self) -> list[str]:
        """A table for a terminal, oldest first."""
        rows = [(move.at, _told(move)) for move in self.moves]
        # A move by hand has no time; it stays behind the one before it.
        times: list[str] = []
        for at, _ in rows:
            times.append(at or (times[-1] if times else ""))
        told = [(at, row) for at, (_, row) in zip(times, rows, strict=True)]
        told += [(refusal.at, _refused(refusal)) for refusal in self.refusals]
        if not told:
            return [f"{self.name}: no version was ever the champion"]
        ordered = [row for _, row in sorted(told, key=lambda pair: pair[0])]
        return _table(["when", "what", "from", "to", "by", "why", "on", "numbers"], ordered)

    def version_lines(self) -> list[str]:
        """A table for a terminal, newest first."""
        if not self.versions:
            return [f"{self.name}: has no version"]
        rows = [
            [
                str(row.version),
                ", ".join(row.aliases) or "-",
                row.ap,
                row.verdict,
                row.created,
                row.run,
            ]
            for row in self.versions
        ]
        return _table(["version", "aliases", "AP", "gate", "created", "run"], rows)


def read_audit(name: str, *, tracking: str) -> Audit:
    """`UsageError` for a name that the registry does not have."""
    with connected(tracking) as client:
        refuse_unknown(client, name, tracking)
        model = client.get_registered_model(name)
        champion = champion_of(client, name)
        stored = list(client.search_model_versions(f"name='{name}'"))
    by_version = aliases_by_version(model.aliases)
    moves = history(model.tags, champion)
    rows, refusals = [], []
    for each in sorted(stored, key=lambda one: int(one.version), reverse=True):
        number = int(each.version)
        gate = json.loads(each.tags[GATE_TAG]) if GATE_TAG in each.tags else None
        rows.append(_row(each, number, by_version.get(number, ()), gate))
        refusals += [
            _refusal(number, json.loads(text))
            for name, text in each.tags.items()
            if name.startswith(REFUSED)
        ]
    return Audit(name, moves, refusals, rows)


def _row(stored: Any, number: int, aliases: Sequence[str], gate: Any) -> VersionRow:
    created = datetime.fromtimestamp(stored.creation_timestamp / 1000, UTC)
    verdict = "-" if gate is None else "passed" if gate["passed"] else "refused"
    if APPROVAL_TAG in stored.tags:
        verdict += ", waits for approval"
    return VersionRow(
        number,
        tuple(aliases),
        created.strftime("%Y-%m-%d %H:%M:%S UTC"),
        shown(float(stored.tags["AP"])) if "AP" in stored.tags else "-",
        verdict,
        stored.tags.get("run_folder", "-"),
    )


def _refusal(number: int, gate: Mapping[str, Any]) -> Refusal:
    failed = [check for check in gate["checks"] if not check["passed"]]
    reason = "; ".join(f"{check['name']}: {check['found']}" for check in failed)
    return Refusal(gate["at"], gate["by"], number, reason, gate["data"], gate["numbers"])


def _told(move: Move) -> list[str]:
    old = "-" if move.old is None else str(move.old)
    return [
        move.when,
        move.kind,
        old,
        str(move.new),
        move.by or "?",
        move.reason,
        move.data or "-",
        _numbers(move.numbers),
    ]


def _refused(refusal: Refusal) -> list[str]:
    when = Move(refusal.at, refusal.by, "promotion", None, refusal.version, "").when
    return [
        when,
        "refused",
        "-",
        str(refusal.version),
        refusal.by,
        refusal.reason,
        refusal.data,
        _numbers(refusal.numbers),
    ]


def _numbers(numbers: Mapping[str, float | None]) -> str:
    shown = [f"{name} {value:.4g}" for name, value in numbers.items() if value is not None]
    return ", ".join(shown) or "-"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[n]) for row in [heads, *rows]) for n in range(len(heads))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [heads, *rows]
    ]
