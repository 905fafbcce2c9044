"""What one dimension of a search space is: fields that are varied together, their values, and when
they have an effect. All values are JSON, as `tune.fields.typed` makes them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included and of four significant digits."""

    low: float
    high: float
    log: bool = False
    """Sampled evenly in the logarithm; `low` is above 0."""
    integer: bool = False

    def holds(self, value: Any) -> bool:
        if not _is_number(value) or not self.low <= value <= self.high:
            return False
        return not self.integer or value == int(value)

    def nearest(self, value: Any) -> float:
        """The number of the range that is nearest to a value; `low` for what is no number."""
        inside = min(max(value, self.low), self.high) if _is_number(value) else self.low
        return round(inside) if self.integer else float(inside)

    def points(self, count: int) -> list[float]:
        """At most `count` different numbers from end to end, evenly or evenly in the logarithm;
        a single one is the middle.
        """
        shares = [i / (count - 1) for i in range(count)] if count > 1 else [0.5]
        return list(dict.fromkeys(self._at(share) for share in shares))

    def _at(self, share: float) -> float:
        if self.log:
            value = math.exp((1 - share) * math.log(self.low) + share * math.log(self.high))
        else:
            value = (1 - share) * self.low + share * self.high
        # exp(log(high)) may be a little above high.
        return self.nearest(four_digits(value))

    def __str__(self) -> str:
        words = "log " * self.log + "int " * self.integer
        return f"{words}{_text(self.low)}..{_text(self.high)}"


@dataclass(frozen=True)
class Choice:
    """One of a few values. Each is a tuple with a value for each field of the dimension."""

    values: tuple[tuple[Any, ...], ...]

    def holds(self, values: tuple[Any, ...]) -> bool:
        return any(same(values, one) for one in self.values)

    def nearest(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        """The choice with the smallest sum of differences, where other things than numbers differ
        by 1; the first one of equals.
        """
        return min(self.values, key=lambda one: sum(map(_difference, values, one)))

    def __str__(self) -> str:
        single = all(len(one) == 1 for one in self.values)
        return _text([one[0] if single else list(one) for one in self.values])


@dataclass(frozen=True)
class Dimension:
    """Fields that are varied together. Of a `Range` there is one field."""

    fields: tuple[str, ...]
    values: Range | Choice
    when: Mapping[str, tuple[Any, ...]]
    """The dimension is searched only where each of these fields has one of its values."""

    @property
    def name(self) -> str:
        return "+".join(self.fields)

    def applies(self, values: Mapping[str, Any]) -> bool:
        """Whether the conditions hold, where the fields have these values."""
        return all(
            any(same(values[field], one) for one in allowed) for field, allowed in self.when.items()
        )

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Whether the values of the fields are inside."""
        own = tuple(values[field] for field in self.fields)
        return self.values.holds(own[0] if isinstance(self.values, Range) else own)

    def nearest(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values inside that are nearest to those of the fields."""
        own = tuple(values[field] for field in self.fields)
        if isinstance(self.values, Range):
            return {self.fields[0]: self.values.nearest(own[0])}
        return self.choice(self.values.nearest(own))

    def points(self, count: int) -> list[dict[str, Any]]:
        """Every choice, or `count` numbers of a range."""
        if isinstance(self.values, Range):
            return [{self.fields[0]: value} for value in self.values.points(count)]
        return [self.choice(values) for values in self.values.values]

    def choice(self, values: tuple[Any, ...]) -> dict[str, Any]:
        return dict(zip(self.fields, values, strict=True))

    def __str__(self) -> str:
        """The entry that gives this dimension, without its name."""
        conditions = [
            f"{field}={'|'.join(map(_text, allowed))}" for field, allowed in self.when.items()
        ]
        return f"{self.values}{' when ' * bool(conditions)}{' and '.join(conditions)}"


def four_digits(value: Any) -> Any:
    """A float with four significant digits, so that one can read and type what is trained;
    everything else as it is.
    """
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def same(one: Any, other: Any) -> bool:
    """Equal to four digits: 1/9 is configured, 0.1111 is a choice."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    # True is no 1 here.
    return _is_number(one) == _is_number(other) and four_digits(one) == four_digits(other)


def _difference(one: Any, other: Any) -> float:
    if same(one, other):
        return 0.0
    return abs(one - other) if _is_number(one) and _is_number(other) else 1.0


def _text(value: Any) -> str:
    """As YAML reads it again; text without quotes where it is a plain word."""
    if isinstance(value, str) and value.isidentifier() and value.lower() not in _NOT_TEXT:
        return value
    if isinstance(value, float):
        return f"{value:.15g}"
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    return json.dumps(value)


_NOT_TEXT = ("null", "true", "false", "yes", "no", "on", "off", "y", "n")
"""Plain words that YAML takes for something else."""
