"""Plots of a sweep over its searched dimensions: parallel coordinates, and slices, AP against one
dimension.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from detector.plot_names import write_name
from tune import fields
from tune.dimensions import Choice, Dimension
from tune.plots import GIVEN, MOST_VECTORS, WIDTH, WINNER, Trials, figure, mark_trials
from tune.space import Sample, Space
from tune.trials import TrialRecord

ABSENT = -0.09
"""Where a line passes an axis that its trial does not have."""
TICKS = 5
LETTERS = 70
"""That fit beside each other along an axis."""
MOST_ROWS = 60
"""Values of a list that are drawn, those with the best trials."""


@dataclass(frozen=True)
class Scale:
    """Where the values of a dimension lie on an axis from 0 to 1."""

    dimension: Dimension

    def at(self, values: Mapping[str, Any]) -> float | None:
        """None where the values do not have the dimension."""
        if not set(self.dimension.fields) <= values.keys():
            return None
        own = self.dimension.values
        if isinstance(own, Choice):
            return (self.place(values) + 0.5) / len(own.values)
        low, high, value = own.low, own.high, float(values[self.dimension.name])
        if own.log:
            low, high, value = np.log([low, high, value]).tolist()
        return (value - low) / (high - low) if high > low else 0.5

    def place(self, values: Mapping[str, Any]) -> int:
        """The number of the choice."""
        choice = self.dimension.values
        assert isinstance(choice, Choice)
        return choice.values.index(
            choice.nearest(tuple(values[name] for name in self.dimension.fields))
        )

    def apart(self, values: Mapping[str, Any], number: int) -> float | None:
        """`at`, moved so that trials of other numbers with the same choice lie beside it."""
        x, own = self.at(values), self.dimension.values
        if x is None or not isinstance(own, Choice):
            return x
        return x + shift(number) * 0.6 / len(own.values)

    def ticks(self) -> list[tuple[float, str]]:
        points = self.dimension.points(TICKS)
        return [(self.at(point) or 0.0, shown(self.dimension, point)) for point in points]


def shift(number: int) -> float:
    """-0.5 to 0.5, for neighbours far apart: parts of the multiples of the golden ratio."""
    return (number * 0.618034) % 1 - 0.5


def shown(dimension: Dimension, values: Mapping[str, Any]) -> str:
    """The values of a dimension, to read."""
    return " / ".join(fields.shown(values[name]) for name in dimension.fields)


def parallel(trials: Trials, searched: Space) -> Figure:
    """A line for each trial through an axis for each dimension and one for AP, all lying; the
    higher its AP, the darker. A trial without an AP is dotted.
    """
    rows = len(searched.dimensions)
    made = Figure(figsize=(WIDTH, 0.72 * (rows + 1) + 0.3), layout="constrained")
    axes = made.subplots()
    axes.set(xlim=(-0.13, 1.03), ylim=(rows + 0.45, -0.5))
    axes.set_axis_off()
    scales = [Scale(dimension) for dimension in searched.dimensions]
    aps = [record.ap for record in trials.scored if record.ap is not None]
    low, high = min(aps), max(aps)
    dense = len(trials.records) > MOST_VECTORS
    absent = set[int]()
    for number, record in enumerate(reversed(trials.records)):
        values = searched.completed(record.sample)
        level = None
        if record.ap is not None:
            level = (record.ap - low) / (high - low) if high > low else 0.5
        xs = [*(scale.apart(values, number) for scale in scales), level]
        absent |= {row for row, x in enumerate(xs) if x is None}
        where = [ABSENT if x is None else x for x in xs]
        style = _line_style(trials, record, level)
        axes.plot(where, range(rows + 1), **style, rasterized=dense)
    for row, scale in enumerate(scales):
        title = scale.dimension.name
        _draw_axis(axes, row, title, scale.ticks(), absent="unused" if row in absent else "")
    ends = [(0.0, f"{low:.4f}"), (1.0, f"{high:.4f}")] if high > low else [(0.5, f"{low:.4f}")]
    _draw_axis(axes, rows, "AP", ends, absent="none" if rows in absent else "")
    return made


def _line_style(trials: Trials, record: TrialRecord, level: float | None) -> dict[str, Any]:
    """`level`: AP from the lowest, 0, to the highest, 1."""
    if record is trials.winner:
        return WINNER
    if record is trials.given:
        return GIVEN
    if level is None:
        return {"color": "0.75", "linewidth": 0.8, "linestyle": ":", "zorder": 1}
    # Most trials have an AP near the best one; the square tells them apart.
    return {"color": str(0.85 - 0.8 * level**2), "linewidth": 0.8, "zorder": 2 + level}


def _draw_axis(
    axes: Axes, row: int, name: str, ticks: list[tuple[float, str]], *, absent: str
) -> None:
    """`absent`: what the place beside the axis means, where lines pass it."""
    ground = {"facecolor": "white", "alpha": 0.8, "pad": 0.8, "linewidth": 0}
    axes.plot([0, 1], [row, row], color="black", linewidth=1, zorder=7)
    title = axes.text(0, row - 0.1, "", fontsize=8.5, fontweight="bold", va="bottom", bbox=ground)
    write_name(title, name, most=LETTERS)
    title.set_zorder(8)
    # As many labels as have room, with at least 16 letters of long ones.
    longest = min(16, max(len(label) for _, label in ticks))
    step = -(-len(ticks) // max(2, LETTERS // (longest + 2)))
    room = max(longest, LETTERS // len(ticks[::step]) - 2)
    for number, (x, label) in enumerate(ticks):
        axes.plot([x, x], [row - 0.05, row + 0.05], color="black", linewidth=1, zorder=7)
        if number % step == 0:
            text = axes.text(x, row + 0.1, "", fontsize=7.5, va="top", bbox=ground, zorder=8)
            text.set_horizontalalignment("left" if x < 0.03 else "right" if x > 0.97 else "center")
            write_name(text, label, most=room)
    if absent:
        axes.plot(ABSENT, row, marker="|", color="black", zorder=7)
        note = axes.text(ABSENT, row + 0.1, absent, fontsize=7.5, va="top", ha="center", zorder=8)
        note.set_bbox(ground)


def slices(trials: Trials, searched: Space) -> list[tuple[Dimension, Figure]]:
    """For each dimension AP against its values; the ranges first, which have the same height."""
    ordered = sorted(searched.dimensions, key=lambda one: isinstance(one.values, Choice))
    return [(dimension, _slice(trials, searched, dimension)) for dimension in ordered]


def _slice(trials: Trials, searched: Space, dimension: Dimension) -> Figure:
    having = [
        (record, values)
        for record in trials.scored
        if set(dimension.fields) <= (values := searched.completed(record.sample)).keys()
    ]
    if isinstance(dimension.values, Choice):
        return _slice_of_choices(trials, dimension, having)
    scale = Scale(dimension)
    made, axes = figure(2.8)
    mark_trials(axes, trials, [(one, scale.at(values), one.ap) for one, values in having])
    places, labels = zip(*scale.ticks(), strict=True)
    axes.set_xticks(places, labels)
    axes.margins(y=0.1)
    axes.set(xlim=(-0.04, 1.04), ylabel="AP")
    _write_title(axes, dimension)
    return made


def _slice_of_choices(
    trials: Trials, dimension: Dimension, having: list[tuple[TrialRecord, Sample]]
) -> Figure:
    """Values as rows, because lists are long texts."""
    scale, choice = Scale(dimension), dimension.values
    assert isinstance(choice, Choice)
    tried = list(dict.fromkeys(scale.place(values) for _, values in having))
    every = range(len(choice.values))
    rows = list(every) if len(every) <= MOST_ROWS else sorted(tried[:MOST_ROWS])
    made, axes = figure(0.9 + 0.3 * max(2, len(rows)))
    places = list[tuple[TrialRecord, Any, Any]]()
    for number, (record, values) in enumerate(having):
        if (place := scale.place(values)) in rows:
            places.append((record, record.ap, rows.index(place) + 0.6 * shift(number)))
    mark_trials(axes, trials, places)
    axes.set_yticks(range(len(rows)), [""] * len(rows))
    for row, place in enumerate(rows):
        text = axes.text(-0.02, row, "", fontsize=7.5, ha="right", va="center")
        text.set_transform(axes.get_yaxis_transform())
        write_name(text, shown(dimension, dimension.choice(choice.values[place])), most=34)
    axes.set(ylim=(len(rows) - 0.4, -0.6), xlabel="AP")
    axes.margins(x=0.08)
    _write_title(axes, dimension)
    return made


def _write_title(axes: Axes, dimension: Dimension) -> None:
    write_name(axes.title, dimension.name, most=LETTERS)
    axes.title.set_fontsize(9.5)
