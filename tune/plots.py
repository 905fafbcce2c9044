"""Plots of a sweep: learning curves, AP against time, and the anchors over the objects. What tells
trials apart is a shape, a dash or a shade of grey; colour only repeats it.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from detector.model_config import AnchorConfig
from tune.anchor_report import draw_anchors
from tune.trials import TrialRecord

WIDTH = 5.0
"""Inches. On a telephone of 390 px the font of 9 pt is then as large as one of 9 px."""
MOST_VECTORS = 300
"""More lines or marks than this are drawn as pixels: 1,000 curves of 30 points as vectors have
2 MB.
"""
WINNER: dict[str, Any] = {"color": "#0b4f9e", "linewidth": 2.4, "zorder": 5}
GIVEN: dict[str, Any] = {"color": "#b34700", "linewidth": 1.8, "linestyle": "--", "zorder": 4}
OTHER: dict[str, Any] = {"color": "0.62", "linewidth": 0.8, "zorder": 2}
MARKS = {"stopped early": "x", "failed": "v"}
"""At the end of a trial that did not reach its last epoch."""


@dataclass(frozen=True)
class Trials:
    """The trials of a sweep as its plots show them."""

    records: tuple[TrialRecord, ...]
    """Best first; the first one has an AP."""
    given: TrialRecord | None
    """The trial of the given setting, if there is one."""

    @property
    def winner(self) -> TrialRecord:
        return self.records[0]

    @property
    def scored(self) -> list[TrialRecord]:
        return [record for record in self.records if record.ap is not None]

    def style(self, record: TrialRecord) -> dict[str, Any]:
        """Of a trial's line."""
        if record is self.winner:
            return WINNER
        return GIVEN if record is self.given else OTHER


def figure(height: float) -> tuple[Figure, Axes]:
    """A figure of the report, `height` in inches, with one plot."""
    made = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = made.subplots()
    axes.grid(alpha=0.3)
    axes.tick_params(labelsize=8)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_fontsize(9)
    return made, axes


def data_uri(made: Figure) -> str:
    """The figure as an SVG that an `img` shows: there the page's styles do not reach it. The same
    figure gives the same text.
    """
    content = io.BytesIO()
    # Letters as paths look the same wherever the page is opened.
    with matplotlib.rc_context({"svg.hashsalt": "sweep", "svg.fonttype": "path"}):
        made.savefig(content, format="svg", dpi=150, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(content.getvalue()).decode()


def learning_curves(trials: Trials) -> Figure:
    """AP against images seen."""
    made, axes = figure(3.6)
    dense = len(trials.records) > MOST_VECTORS
    for record in reversed(trials.records):
        seen = [point.images_seen for point in record.curve if point.ap is not None]
        aps = [point.ap for point in record.curve if point.ap is not None]
        style = trials.style(record)
        # A curve of one point has no line.
        dot = {"marker": ".", "markersize": 4} if len(aps) == 1 else {}
        axes.plot(seen, aps, **style, **dot, rasterized=dense and style is OTHER)
        if aps and (mark := MARKS.get(record.status)):
            end = {"marker": mark, "markersize": 5, "linestyle": "none", "zorder": 6}
            axes.plot(seen[-1], aps[-1], **end, color=style["color"], rasterized=dense)
    for name, style in _named(trials):
        axes.plot([], [], **style, label=name)
    for status, mark in MARKS.items():
        if any(record.status == status for record in trials.scored):
            axes.plot([], [], marker=mark, linestyle="none", color="0.4", label=status)
    axes.set(xlabel="images seen", ylabel="AP")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    made.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return made


def _named(trials: Trials) -> list[tuple[str, dict[str, Any]]]:
    """What the legend names."""
    if trials.given is trials.winner:
        named = [("best, the given setting", WINNER)]
    else:
        named = [("best", WINNER), *([("given setting", GIVEN)] if trials.given else [])]
    others = len(trials.records) - len(named)
    return [*named, *([("others", OTHER)] if others else [])]


def mark_trials(axes: Axes, trials: Trials, places: Sequence[tuple[TrialRecord, Any, Any]]) -> None:
    """A mark at each (trial, x, y): a ring, a cross where it was stopped early or failed, and
    around the best and the given one a star and a square.
    """
    dense = len(places) > MOST_VECTORS
    for marker, chosen in (
        ("o", [place for place in places if place[0].status not in MARKS]),
        ("x", [place for place in places if place[0].status in MARKS]),
    ):
        axes.plot(
            [x for _, x, _ in chosen],
            [y for _, _, y in chosen],
            linestyle="none",
            marker=marker,
            markersize=4,
            markerfacecolor="none",
            color="0.35",
            rasterized=dense,
        )
    for record, x, y in places:
        if record is trials.winner:
            axes.plot(x, y, marker="*", markersize=13, color=WINNER["color"], zorder=5)
        if record is trials.given:
            square = {"marker": "s", "markersize": 11, "markerfacecolor": "none"}
            axes.plot(x, y, **square, markeredgewidth=1.6, color=GIVEN["color"], zorder=6)


def front(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Those that no other one beats in AP and in time for an image, the fastest first."""
    timed = [one for one in records if one.ap is not None and one.ms_per_image is not None]
    best, found = -np.inf, list[TrialRecord]()
    for record in sorted(timed, key=lambda one: (one.ms_per_image or 0.0, -(one.ap or 0.0))):
        if (record.ap or 0.0) > best:
            best = record.ap or 0.0
            found.append(record)
    return found


def pareto(trials: Trials) -> Figure | None:
    """AP against ms an image with the Pareto front; None where no time was measured."""
    best = front(trials.records)
    if not best:
        return None
    made, axes = figure(3.4)
    timed = [record for record in trials.scored if record.ms_per_image is not None]
    mark_trials(axes, trials, [(record, record.ms_per_image, record.ap) for record in timed])
    times = [record.ms_per_image or 0.0 for record in best]
    aps = [record.ap or 0.0 for record in best]
    axes.plot(times, aps, drawstyle="steps-post", color="black", linewidth=1.4, zorder=3)
    axes.plot(times, aps, linestyle="none", marker="o", markersize=4.5, color="black", zorder=4)
    for place, record in enumerate(best):
        rank = trials.records.index(record) + 1
        # Above and below in turn, for neighbours lie close.
        shift, align = ((4, 5), "bottom") if place % 2 == 0 else ((4, -5), "top")
        axes.annotate(
            f"no. {rank}", (times[place], aps[place]), shift, textcoords="offset points"
        ).set(fontsize=8, verticalalignment=align)
    axes.margins(0.1, 0.12)
    axes.set(xlabel="ms an image", ylabel="AP")
    return made


def anchors(boxes_N4: np.ndarray, given: AnchorConfig, best: AnchorConfig) -> Figure:
    """The anchors of the given setting and of the best one over the objects, see `draw_anchors`."""
    made, axes = figure(4.8)
    draw_anchors(axes, boxes_N4, given, best, names=("objects", "given anchors", "best anchors"))
    return made
