"""The result of an anchor search for people: a table, a picture, and the part of a recipe."""

from __future__ import annotations

import io

import numpy as np
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cluster.shards.statistics import SIZES
from detector.model_config import AnchorConfig
from tune.anchors import AnchorSearch, Candidate

MOST_POINTS = 3000
"""Boxes in the picture."""


def table(search: AnchorSearch) -> str:
    """Before and after in lines of text: recall by size, mean IoU, anchors at a position. All boxes
    are counted; recalls on the sample stand in brackets.
    """
    both = (search.given, search.best)
    rows = {"": ["before", "after"]}
    for name in ("all", *SIZES):
        rows[f"recall {name}"] = [_recalls(one, name) for one in both]
    rows["mean IoU"] = [f"{one.whole.mean_iou:.3f}" for one in both]
    rows["anchors"] = [str(one.per_position) for one in both]
    return "\n".join(f"{name:<14}{old:>16}{new:>16}" for name, (old, new) in rows.items())


def _recalls(candidate: Candidate, name: str) -> str:
    whole, sample = _recall(candidate, name), _recall(candidate, name, sample=True)
    if whole is None:
        return "-"
    return f"{whole:.3f} ({'-' if sample is None else f'{sample:.3f}'})"


def _recall(candidate: Candidate, name: str, *, sample: bool = False) -> float | None:
    fit = candidate.sample if sample else candidate.whole
    return fit.recall if name == "all" else fit.recall_by_size[name]


def recipe(search: AnchorSearch, *, data: str) -> str:
    """YAML for `train --config`, with what it brings as a comment. `data` names the set."""
    before, after = search.given, search.best
    canvases = ", ".join(f"{width} x {height}" for height, width in search.sample.canvases)
    head = (
        f"# Anchors for {data} on {canvases} px: recall at IoU {search.foreground:g}"
        f" {before.whole.recall:.3f} -> {after.whole.recall:.3f}, mean IoU"
        f" {before.whole.mean_iou:.3f} -> {after.whole.mean_iou:.3f}, anchors at a position"
        f" {before.per_position} -> {after.per_position}.\n"
    )
    content = {"model": {"anchors": after.anchors.model_dump(mode="json")}}
    return head + yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=1000)


def picture(search: AnchorSearch) -> bytes:
    """A PNG: the anchors before and after over the cloud of boxes on the canvas, and the recall by
    size.
    """
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    cloud, bars = figure.subplots(1, 2, width_ratios=[3, 2])
    given, best = search.given.anchors, search.best.anchors
    names = ("objects (sample)", "anchors before", "anchors after")
    draw_anchors(cloud, search.sample.boxes_N4, given, best, names=names)
    cloud.set_title("Anchors over the objects", fontsize=11)
    _draw_recalls(bars, search)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    return content.getvalue()


def draw_anchors(
    axes: Axes,
    boxes_N4: np.ndarray,
    given: AnchorConfig,
    best: AnchorConfig,
    *,
    names: tuple[str, str, str],
) -> None:
    """The sides of all anchors of a position over those of the boxes (XYXY px on the canvas).
    `names` of boxes, given and best anchors, for the legend.
    """
    corners_N4 = boxes_N4[:: -(-len(boxes_N4) // MOST_POINTS) or 1]
    sides_N2 = corners_N4[:, 2:] - corners_N4[:, :2]
    # So many marks would be most of an SVG.
    axes.scatter(*sides_N2.T, s=5, color="0.75", linewidths=0, label=names[0], rasterized=True)
    # Shape and fill tell them apart without colour.
    ring = {"facecolors": "none", "edgecolors": "#b34700"}
    axes.scatter(*_sides(given).T, s=44, marker="s", **ring, label=names[1])
    filled = {"facecolors": "#003f7f", "edgecolors": "white"}
    axes.scatter(*_sides(best).T, s=34, marker="^", **filled, label=names[2])
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set(xlabel="width on the canvas, px", ylabel="height on the canvas, px", aspect="equal")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", fontsize=8)


def _sides(anchors: AnchorConfig) -> np.ndarray:
    """(A, 2): width and height of all anchors of a position on all levels, px."""
    sides = np.outer(anchors.base_sizes, anchors.scales).reshape(-1, 1)
    root = np.sqrt(anchors.ratios)
    return np.stack([sides / root, sides * root], axis=-1).reshape(-1, 2)


def _draw_recalls(axes: Axes, search: AnchorSearch) -> None:
    names = ("all", *SIZES)
    counts = (sum(search.given.whole.objects), *search.given.whole.objects)
    kinds = (
        ("before", search.given, -0.2, "white", "///"),
        ("after", search.best, 0.2, "#003f7f", ""),
    )
    for kind, candidate, shift, fill, hatch in kinds:
        recalls = [_recall(candidate, name) for name in names]
        places = np.arange(len(names)) + shift
        heights = [100 * (recall or 0.0) for recall in recalls]
        label = f"{kind}: {candidate.per_position} anchors at a position"
        axes.bar(
            places,
            heights,
            0.38,
            label=label,
            facecolor=fill,
            hatch=hatch,
            edgecolor="#003f7f",
        )
        for place, height, recall in zip(places, heights, recalls, strict=True):
            text = "-" if recall is None else f"{height:.1f}"
            axes.text(place, height + 1, text, ha="center", fontsize=8)
    labels = [f"{name}\n{count:,}" for name, count in zip(names, counts, strict=True)]
    axes.set_xticks(range(len(names)), labels)
    axes.set(
        ylim=(0, 125),
        xlabel="size in COCO's evaluation, number of objects",
        ylabel=f"objects with an anchor of IoU {search.foreground:g}, %",
    )
    axes.set_yticks(range(0, 101, 20))
    axes.set_title("Recall by object size", fontsize=11)
    axes.legend(loc="upper right", fontsize=8)
