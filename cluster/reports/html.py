"""HTML pages from the templates of this folder: one file, no script, nothing to fetch. Whatever
comes from the data is escaped.

A `colour` is a class of the style sheet in templates/page.html.j2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import jinja2

from detector.palette import COLOURS


@dataclass(frozen=True)
class Bar:
    """A bar of a histogram. `label` says which values it counts."""

    label: str
    number: int
    colour: str


@dataclass(frozen=True)
class Histogram:
    """`ticks` are (fraction of the width, text); `legend` are (colour, words)."""

    bars: Sequence[Bar]
    ticks: Sequence[tuple[float, str]]
    legend: Sequence[tuple[str, str]]

    @property
    def top(self) -> int:
        """The number at the upper edge."""
        return round_up(max((bar.number for bar in self.bars), default=0))

    @property
    def visible_ticks(self) -> list[tuple[float, str]]:
        return [(x, text) for x, text in self.ticks if -1e-6 <= x <= 1 + 1e-6]


@dataclass(frozen=True)
class BarRow:
    """A line with a name, a horizontal bar of `share` (0 to 1) of its room, and numbers."""

    name: str
    share: float
    numbers: str
    colour: str


def render(template: str, **values: object) -> str:
    """The page of a template. The templates say which values they need; a missing one is an
    error.
    """
    return _environment().get_template(template).render(values)


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cluster.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        lstrip_blocks=True,
    )
    environment.globals["palette"] = COLOURS
    environment.filters["commas"] = lambda number: f"{number:,}"
    environment.filters["clip"] = clip
    return environment


def round_up(number: int) -> int:
    """The next of 2, 4, 6, 8, 10, 12, 16, 20, 24, 30, 40, 50, 60, 80, 100, 120, ...: its half is a
    whole number.
    """
    if number <= 10:
        return next(top for top in (2, 4, 6, 8, 10) if top >= number)
    step = 10 ** (len(str(number - 1)) - 2)
    tops = (12, 16, 20, 24, 30, 40, 50, 60, 80, 100)
    return next(top * step for top in tops if top * step >= number)


def clip(text: str, length: int = 120) -> str:
    """At most `length` characters; an ellipsis says that there were more."""
    return text if len(text) <= length else text[: length - 1] + "…"
