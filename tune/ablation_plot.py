"""The paper's ablations as a picture: AP along the rows of each table, ours and the paper's."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tune.ablation import TITLES, Row, Table

PANELS = (("5.1", "1a"), ("1b",), ("1c",))
"""The tables that share a panel. Cross entropy stands beside its balanced form."""
OURS: dict[str, Any] = {"color": "black", "marker": "o", "linestyle": "-", "capsize": 4}
PAPER: dict[str, Any] = {
    "color": "#d95f02",
    "marker": "s",
    "linestyle": "--",
    "mfc": "white",
    "ms": 8,
}
"""Told apart by line and marker, so that colour is not needed."""


def figure(found: Sequence[Table]) -> Figure:
    """A panel for each table. The left axis is ours, the right one the paper's; both are scaled so
    that the best AP of either is at the same height, because the data and lengths differ.
    """
    by_number = {table.number: table for table in found}
    panels = [[by_number[one] for one in panel if one in by_number] for panel in PANELS]
    panels = [panel for panel in panels if panel]
    result = Figure(figsize=(9, 0.6 + 3.6 * len(panels)), layout="constrained")
    if not panels:
        return result
    for axes, panel in zip(result.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
        _panel(axes, panel)
    result.suptitle(
        "Ablations of the focal loss paper: ours (left axis, 95 % intervals) beside the paper's"
        " (right axis)\nThe axes are scaled so that the best AP of both is at the same height;"
        " below each row: positives to anchors",
        fontsize=10,
    )
    return result


def _panel(axes: Axes, panel: Sequence[Table]) -> None:
    rows = [row for table in panel for row in table.rows]
    numbers = [table.number for table in panel for _ in table.rows]
    ours, paper = _best([row.ap for row in rows]), _best([row.paper_ap for row in rows])
    factor = ours / paper if ours and paper else 1.0
    labels = {"ours": "ours", "paper": "the paper"}
    # A line connects the rows of one table and, in Table 1c, of as many ratios.
    lines = [(numbers[x], row.setting.get("model.anchors.ratios")) for x, row in enumerate(rows)]
    for _, piece in groupby(range(len(rows)), key=lines.__getitem__):
        numbered = [(x, rows[x]) for x in piece]
        known = [(x, row.paper_ap) for x, row in numbered if row.paper_ap is not None]
        if known:
            places, values = zip(*known, strict=True)
            scaled = [factor * value for value in values]
            axes.plot(places, scaled, label=labels.pop("paper", None), **PAPER)
        scored = [(x, row.ap, row.margin or 0.0) for x, row in numbered if row.ap is not None]
        if scored:
            places, values, margins = zip(*scored, strict=True)
            axes.errorbar(places, values, yerr=margins, label=labels.pop("ours", None), **OURS)
    axes.set_xticks(range(len(rows)), [_tick(row) for row in rows], fontsize=8)
    axes.set_xlim(-0.5, len(rows) - 0.5)
    axes.set_ylabel("AP, ours, %")
    axes.set_title("; ".join(TITLES[table.number] for table in panel), fontsize=9)
    axes.grid(axis="y", alpha=0.3)
    scales = (lambda ap: ap / factor, lambda ap: ap * factor)
    axes.secondary_yaxis("right", functions=scales).set_ylabel("AP, the paper, %")
    axes.legend(fontsize=8, loc="best")


def _best(aps: Sequence[float | None]) -> float:
    return max((ap for ap in aps if ap is not None), default=0.0)


def _tick(row: Row) -> str:
    """The label and, below it, the positives among the anchors."""
    imbalance = row.imbalance.anchors_a_positive
    ratio = "" if imbalance is None else f"\n1 : {imbalance:,.0f}"
    return row.label.replace(", ", "\n") + ratio
