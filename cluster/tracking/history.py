"""Which version of a registered model was the champion when, and why. MLflow keeps no history of
aliases (mlflow#2169), so every move is a tag of the registered model:

promotion.<UTC time>    `Move` as JSON. It is written before the alias moves and again after that,
                        so that a move that was cut off is known as one.

A champion that was moved or deleted by hand is found where a move does not begin at the version at
which the one before it ended.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from cluster.tracking.registry import CHALLENGER, CHAMPION, PREVIOUS

if TYPE_CHECKING:
    from mlflow import MlflowClient

PREFIX = "promotion."
TIME_FORMAT = "%Y%m%dT%H%M%S.%fZ"
Kind = Literal["first", "promotion", "forced", "rollback", "by hand"]


@dataclass(frozen=True)
class Move:
    """The champion becomes another version."""

    at: str
    """UTC, as `TIME_FORMAT`; empty for a move by hand, whose time nobody knows."""
    by: str
    """USER@HOST; empty for a move by hand."""
    kind: Kind
    old: int | None
    new: int | None
    """None: the alias was deleted by hand."""
    reason: str
    is_done: bool = True
    """False: the alias was to move; whether it did is seen by `champion`."""
    data: str = ""
    """The shard set on which the two were compared."""
    data_digest: str = ""
    numbers: Mapping[str, float | None] = field(default_factory=dict)
    """What the gate found, such as `AP` and `AP of the champion`."""

    def to_json(self) -> dict[str, Any]:
        stored = asdict(self)
        # The names of the first versions of this file.
        return {"from": stored.pop("old"), "to": stored.pop("new"), **stored}

    @classmethod
    def from_json(cls, at: str, stored: Mapping[str, Any]) -> Move:
        """A move of an earlier version has `from`, `to`, `reason` and `by` alone."""
        rest = {
            name: value
            for name, value in stored.items()
            if name in cls.__dataclass_fields__ and name != "at"
        }
        kind: Kind = "first" if stored["from"] is None else "promotion"
        return cls(at=at, old=stored["from"], new=stored["to"], **{"kind": kind, **rest})


def shown_time(at: str) -> str:
    """A time of `TIME_FORMAT` for a reader; "" is a time that nobody knows."""
    if not at:
        return "unknown time"
    return datetime.strptime(at, TIME_FORMAT).strftime("%Y-%m-%d %H:%M:%S UTC")


def write_move(client: MlflowClient, name: str, move: Move) -> None:
    client.set_registered_model_tag(name, PREFIX + move.at, json.dumps(move.to_json()))


def read_moves(tags: Mapping[str, str]) -> list[Move]:
    """The moves among the tags of a registered model, oldest first, as they were written."""
    return [
        Move.from_json(key.removeprefix(PREFIX), json.loads(tags[key]))
        for key in sorted(tags)
        if key.startswith(PREFIX)
    ]


def history(tags: Mapping[str, str], champion: int | None) -> list[Move]:
    """All moves until the version that is `champion` now, oldest first: those that were done, and
    between them those that were made by hand.
    """
    told: list[Move] = []
    for move in _all_moves(tags, champion):
        if not move.is_done:
            continue
        told += _by_hand(told, move.old)
        told.append(move)
    return told + _by_hand(told, champion)


def before_champion(told: Sequence[Move]) -> int | None:
    """The version that a rollback returns to: the champion before the present one. A rollback, and
    a move by hand to an earlier champion, have taken back all that came after that. None where
    there was none.
    """
    champions: list[int] = []
    for move in told:
        if move.new is None:
            continue
        if move.kind in ("rollback", "by hand") and move.new in champions:
            del champions[champions.index(move.new) + 1 :]
            continue
        if not champions and move.old is not None:
            champions.append(move.old)
        # Where the alias was deleted, the same version may have it again.
        if champions[-1:] != [move.new]:
            champions.append(move.new)
    return champions[-2] if len(champions) > 1 else None


def _all_moves(tags: Mapping[str, str], champion: int | None) -> list[Move]:
    """Those that were written, also the ones that were cut off before the alias moved."""
    return [_settled(each, after, champion) for each, after in _with_next(read_moves(tags))]


def _with_next(moves: Sequence[Move]) -> Iterator[tuple[Move, Move | None]]:
    return zip(moves, [*moves, None][1:], strict=True)


def _settled(move: Move, after: Move | None, champion: int | None) -> Move:
    """A move that was cut off counts as done where the next one, or now, starts at its end."""
    reached = champion if after is None else after.old
    return move if move.is_done else replace(move, is_done=reached == move.new)


def _by_hand(told: Sequence[Move], found: int | None) -> list[Move]:
    """The move by hand after the moves in `told`, if the champion `found` is not the last of
    them.
    """
    last = told[-1].new if told else None
    if found == last:
        return []
    reason = (
        "the alias or its version was deleted"
        if found is None
        else "the alias was moved without promote or rollback"
    )
    return [Move("", "", "by hand", last, found, reason)]


def strays(tags: Mapping[str, str], aliases: Mapping[str, int], newest: int | None) -> list[str]:
    """What to say of the aliases beside the champion that are not where promote, rollback and
    register left them. `tags` are those of the registered model, `newest` is the newest version of
    `register`; None: none is known.
    """
    moves = [move for move in _all_moves(tags, aliases.get(CHAMPION)) if move.old is not None]
    before = [move.old for move in moves if move.is_done]
    # A move that was cut off may have set this alias.
    possible = {*before[-1:], *(move.old for move in moves if not move.is_done)}
    lines = []
    if aliases.get(PREVIOUS) not in (possible or {None}):
        lines.append(_stray(PREVIOUS, aliases, before[-1] if before else None))
    if newest is not None and aliases.get(CHALLENGER) != newest:
        lines.append(_stray(CHALLENGER, aliases, newest))
    return lines


def _stray(alias: str, aliases: Mapping[str, int], expected: int | None) -> str:
    before = f"; it was version {expected}" if expected is not None else ""
    if alias in aliases:
        return f"{alias} was moved to version {aliases[alias]} by hand{before}"
    return f"{alias} or its version was deleted by hand{before}"
