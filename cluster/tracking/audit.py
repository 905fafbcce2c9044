"""What the registry knows about a model, for a reader: its versions, and the history of its
champion with the verdicts of the gate.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from cluster.tracking import verdicts
from cluster.tracking.client import connected
from cluster.tracking.history import Move, history, shown_time, strays
from cluster.tracking.promotion import champion_of
from cluster.tracking.registry import DIGEST_TAG, aliases_by_version, refuse_unknown
from cluster.tracking.verdicts import Judged
from detector.scores import shown
from detector.text_table import text_table

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion


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
class Audit:
    name: str
    moves: Sequence[Move]
    refusals: Sequence[tuple[int, Judged]]
    """The version, and the verdict that was no."""
    versions: Sequence[VersionRow]
    strays: Sequence[str] = ()
    """Other aliases that were moved or deleted by hand, in words."""

    def as_json(self) -> str:
        content = {
            "name": self.name,
            "moves": [{"at": move.at, **move.to_json()} for move in self.moves],
            "refusals": [
                {"version": number, **judged.to_json()} for number, judged in self.refusals
            ],
            "by_hand": list(self.strays),
        }
        return json.dumps(content, indent=1)

    def history_lines(self) -> list[str]:
        """For a terminal, oldest first: a line for what happened, and below it why."""
        told: list[tuple[str, list[str]]] = []
        for move in self.moves:
            # Nobody knows when a move by hand was made; it stays behind the one before it.
            told.append((move.at or (told[-1][0] if told else ""), _told(move)))
        told += [(judged.at, _refused(number, judged)) for number, judged in self.refusals]
        now = [f"now  {words}" for words in self.strays]
        if not told:
            return [f"{self.name}: no version was ever the champion", *now]
        ordered = sorted(told, key=lambda pair: pair[0])
        return [*(line for _, lines in ordered for line in lines), *now]

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
        return text_table(["version", "aliases", "AP", "gate", "created", "run"], rows)


def read_audit(name: str, *, tracking: str) -> Audit:
    """`UsageError` for a name that the registry does not have."""
    with connected(tracking) as client:
        refuse_unknown(client, name, tracking)
        model = client.get_registered_model(name)
        champion = champion_of(client, name)
        stored = list(client.search_model_versions(f"name='{name}'"))
    by_version = aliases_by_version(model.aliases)
    moves = history(model.tags, champion)
    ours = [int(each.version) for each in stored if DIGEST_TAG in each.tags]
    aliases = {alias: int(number) for alias, number in model.aliases.items()}
    others = strays(model.tags, aliases, max(ours, default=None))
    rows, refusals = [], []
    for each in sorted(stored, key=lambda one: int(one.version), reverse=True):
        number = int(each.version)
        rows.append(_row(each, number, by_version.get(number, ())))
        refusals += [(number, judged) for judged in verdicts.refusals(each.tags)]
    return Audit(name, moves, refusals, rows, others)


def _row(stored: ModelVersion, number: int, aliases: Sequence[str]) -> VersionRow:
    created = datetime.fromtimestamp(stored.creation_timestamp / 1000, UTC)
    judged = verdicts.last(stored.tags)
    verdict = "-" if judged is None else "passed" if judged.verdict.passed else "refused"
    if verdicts.REQUEST in stored.tags:
        verdict += ", waits for approval"
    return VersionRow(
        number,
        tuple(aliases),
        created.strftime("%Y-%m-%d %H:%M:%S UTC"),
        shown(float(stored.tags["AP"])) if "AP" in stored.tags else "-",
        verdict,
        stored.tags.get("run_folder", "-"),
    )


def _told(move: Move) -> list[str]:
    old, new = ("none" if each is None else each for each in (move.old, move.new))
    head = f"{shown_time(move.at)}  {move.kind}: {old} -> {new}"
    return [
        head + (f", by {move.by}" if move.by else ""),
        f"  {move.reason}",
        *_seen(move.data, move.numbers),
    ]


def _refused(number: int, judged: Judged) -> list[str]:
    return [
        f"{shown_time(judged.at)}  refused: {number}, by {judged.by}",
        f"  {judged.verdict.refusal()}",
        *_seen(judged.verdict.data, judged.verdict.numbers),
    ]


def _seen(data: str, numbers: Mapping[str, float | None]) -> list[str]:
    shown_numbers = [f"{name} {value:.4g}" for name, value in numbers.items() if value is not None]
    return [f"  on {data}: {', '.join(shown_numbers)}"] if data else []
