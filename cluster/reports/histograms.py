"""Histograms and tables of the data report, from the annotations of a set.

Suffixes: I images, N boxes, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cluster.reports.html import Bar, BarRow, Histogram
from cluster.shards.statistics import COCO_SIDES, SIZES, Annotations, Placement

MOST_SIZES = 9
"""Image sizes that get a bar of their own."""


def object_sizes(objects: Annotations) -> Histogram:
    # From 1 px on; at least 6 to 790 px.
    side_N = np.sqrt(np.maximum(objects.area_N, 1, dtype=np.float64))
    # Four bars from 32 to 96 px, the limits being edges to the last bit, and as many more at the
    # same ratio as the data needs.
    small, large = COCO_SIDES
    least, most = side_N.min(initial=6.2), side_N.max(initial=700)
    ratio_log = np.log(large / small)
    first, last = np.floor(4 * np.log([least / small, most / small]) / ratio_log).astype(int)
    edges = small * (large / small) ** (np.arange(first, last + 2) / 4)
    counts = np.histogram(np.clip(side_N, edges[0], edges[-1]), edges)[0]
    bars = [
        Bar(
            f"{low:.{int(low < 10)}f} to {high:.{int(high < 10)}f} px",
            int(count),
            SIZES[np.digitize(low * 1.01, COCO_SIDES)],
        )
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]
    marks = [1, 2, 4, 8, 16, 32, 64, 96, 256, 512, 1024, 2048, 4096, 8192]
    ticks = [
        ((4 * np.log(mark / small) / ratio_log - first) / len(bars), str(mark)) for mark in marks
    ]
    numbers = np.bincount(objects.size_N, minlength=3)
    limits = (f"below {small} px", f"{small} to {large} px", f"from {large} px")
    total = max(1, len(side_N))
    legend = [
        (size, f"{size}, {limit}: {n:,} ({n / total:.0%})")
        for size, limit, n in zip(SIZES, limits, numbers, strict=True)
    ]
    return Histogram(bars, ticks, legend)


def shapes(objects: Annotations) -> Histogram:
    width_N, height_N = (objects.boxes_N4[:, 2:] - objects.boxes_N4[:, :2]).T
    # Four bars an octave, squares in the middle of one; the outermost hold all longer boxes.
    quarter_N = np.rint(4 * np.log2(height_N / width_N)).astype(int)
    counts = np.bincount(np.clip(quarter_N, -14, 14) + 14, minlength=29)
    middles = 2 ** (np.arange(-14, 15) / 4)
    labels = [f"height / width about {ratio:.2g}" for ratio in middles]
    labels[0], labels[-1] = "height / width up to 0.1", "height / width from 10"
    bars = [Bar(label, int(count), "large") for label, count in zip(labels, counts, strict=True)]
    octaves = ("1:8", "1:4", "1:2", "1", "2", "4", "8")
    ticks = [
        ((4 * octave + 14.5) / 29, text) for octave, text in zip(range(-3, 4), octaves, strict=True)
    ]
    within = (np.abs(quarter_N) <= 4).mean() if len(quarter_N) else 0.0
    return Histogram(bars, ticks, [("large", f"{within:.0%} within 1:2 and 2")])


def objects_per_image(objects: Annotations) -> Histogram:
    counts_I = np.bincount(objects.image_N, minlength=len(objects.heights_I))
    # All but the most crowded images decide how wide a bar is; the last bar counts those.
    usual = int(np.percentile(counts_I, 99.5)) if len(counts_I) else 0
    wide = usual // 32 + 1
    last = max(7, usual // wide)
    numbers = np.bincount(np.minimum(counts_I // wide, last), minlength=last + 1)
    labels = [
        f"{i * wide} objects" if wide == 1 else f"{i * wide} to {i * wide + wide - 1} objects"
        for i in range(last + 1)
    ]
    labels[-1] = f"{last * wide} objects or more"
    bars = [Bar(label, int(number), "large") for label, number in zip(labels, numbers, strict=True)]
    every = -(-len(bars) // 10)
    labelled = [*range(0, last - every + 1, every), last]
    ticks = [((i + 0.5) / len(bars), str(i * wide) + ("+" if i == last else "")) for i in labelled]
    words = "no image"
    if len(counts_I):
        words = (
            f"mean {counts_I.mean():.1f}, median {np.median(counts_I):.0f}, most {counts_I.max():,}"
        )
    return Histogram(bars, ticks, [("large", words)])


@dataclass(frozen=True)
class ImageSizes:
    """`scaling` says how the images are scaled to the canvas; no rows where there is no image."""

    rows: Sequence[BarRow]
    scaling: str


def image_sizes(annotations: Annotations, placement: Placement) -> ImageSizes:
    images = len(annotations.heights_I)
    if not images:
        return ImageSizes([], "")
    sides = np.stack([annotations.widths_I, annotations.heights_I], axis=1)
    sizes, counts = np.unique(sides, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:MOST_SIZES].tolist()
    rows = [
        BarRow(f"{sizes[i][0]} x {sizes[i][1]}", int(counts[i]) / images, f"{counts[i]:,}", "large")
        for i in order
    ]
    if others := len(counts) - len(order):
        rest = int(counts.sum() - counts[order].sum())
        rows.append(BarRow(f"{others:,} other sizes", rest / images, f"{rest:,}", "medium"))
    low, middle, high = np.quantile(placement.factors_I2.mean(axis=1), (0, 0.5, 1))
    return ImageSizes(
        rows,
        f"Scaled by {middle:.2f} to fit the canvas (median; {low:.2f} to {high:.2f}).",
    )


@dataclass(frozen=True)
class CoverageRow:
    """How well the anchors cover the objects of one size."""

    name: str
    objects: int
    recall: str
    mean_iou: str


@dataclass(frozen=True)
class Coverage:
    rows: Sequence[CoverageRow]
    histogram: Histogram


def coverage(objects: Annotations, best_iou_N: np.ndarray) -> Coverage:
    """`best_iou_N` is the highest IoU of each object with any anchor."""
    rows = [_coverage_row("all", best_iou_N)]
    for i, size in enumerate(SIZES):
        rows.append(_coverage_row(size, best_iou_N[objects.size_N == i]))
    counts = np.histogram(best_iou_N, bins=20, range=(0, 1))[0]
    colours = ["none"] * 8 + ["between"] * 2 + ["large"] * 10
    bars = [
        Bar(f"best IoU {i / 20:.2f} to {(i + 1) / 20:.2f}", int(count), colour)
        for i, (count, colour) in enumerate(zip(counts, colours, strict=True))
    ]
    legend = [
        ("large", "from 0.5: positive anchors"),
        ("between", "0.4 to 0.5"),
        ("none", "below 0.4: matched only by its best anchors"),
    ]
    ticks = [(i / 10, f"{i / 10:g}") for i in range(0, 11, 2)]
    return Coverage(rows, Histogram(bars, ticks, legend))


def _coverage_row(name: str, best_iou_N: np.ndarray) -> CoverageRow:
    if not len(best_iou_N):
        return CoverageRow(name, 0, "-", "-")
    recall = f"{(best_iou_N >= 0.5).mean():.1%}"
    return CoverageRow(name, len(best_iou_N), recall, f"{best_iou_N.mean():.3f}")
