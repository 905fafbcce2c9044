"""Line charts as SVG that read without colour: each line has a pattern of its own and its name in
the legend.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

WIDTH, HEIGHT = 320, 210
LEFT, RIGHT, TOP, BOTTOM = 36, 10, 10, 34
"""px of the margins; the axes go from 0 to 1."""
MOST_POINTS = 200


@dataclass(frozen=True)
class Line:
    """`pattern` is a class of the style sheet: solid, dashed, dotted, thin."""

    name: str
    path: str
    pattern: str
    points: Sequence[tuple[float, float]] = ()
    """Places of rings, px."""


@dataclass(frozen=True)
class LineChart:
    title: str
    lines: Sequence[Line]
    across: str
    """What the horizontal axis is."""
    note: str = ""
    marked: float | None = None
    """Place of a vertical mark, px."""

    @property
    def ticks_across(self) -> list[tuple[float, str]]:
        return [(across(value), f"{value:g}") for value in (0, 0.25, 0.5, 0.75, 1)]

    @property
    def ticks_up(self) -> list[tuple[float, str]]:
        return [(up(value), f"{value:g}") for value in (0, 0.25, 0.5, 0.75, 1)]


def across(value: float) -> float:
    return round(LEFT + (WIDTH - LEFT - RIGHT) * value, 1)


def up(value: float) -> float:
    return round(TOP + (HEIGHT - TOP - BOTTOM) * (1 - value), 1)


def line(
    name: str, x_N: np.ndarray, y_N: np.ndarray, pattern: str = "solid", *, rings: bool = False
) -> Line:
    """A line through the points (0..1), in this order; of many points, `MOST_POINTS` are drawn."""
    chosen = np.unique(np.linspace(0, len(x_N) - 1, min(len(x_N), MOST_POINTS)).astype(int))
    places = [(across(x), up(y)) for x, y in zip(x_N[chosen], y_N[chosen], strict=True)]
    path = "M" + "L".join(f"{x:g} {y:g}" for x, y in places) if places else ""
    return Line(name, path, pattern, places if rings else ())
