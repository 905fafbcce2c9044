"""Label statistics of a shard set as JSON, and those of several sets as a picture."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cluster.reports import histograms
from cluster.reports.html import Histogram
from cluster.shards.index import ShardSet
from cluster.shards.statistics import read
from detector.palette import COLOURS
from detector.plot_names import write_name

MOST_BOXES = 5_000_000
"""Boxes that are read; of a larger set every nth shard is. They take about 0.3 GB of memory."""
MOST_CLASSES = 20
"""Classes that get a bar, the most frequent ones."""


@dataclass(frozen=True)
class LabelStatistics:
    """Objects are boxes that are no crowds."""

    uri: str
    images: int
    """That were read."""
    images_in_set: int
    images_without_objects: int
    crowds: int
    objects_of_class: Mapping[str, int]
    """By class name, the most frequent first."""
    object_sizes: Histogram
    """Of the square root of the area, px of the image."""
    objects_per_image: Histogram

    @property
    def objects(self) -> int:
        return sum(self.objects_of_class.values())

    def to_json(self) -> dict[str, Any]:
        return {
            "uri": self.uri,
            "images": self.images,
            "images_in_set": self.images_in_set,
            "images_without_objects": self.images_without_objects,
            "objects": self.objects,
            "crowds": self.crowds,
            "objects_of_class": dict(self.objects_of_class),
            "object_sizes": _counts(self.object_sizes),
            "objects_per_image": _counts(self.objects_per_image),
        }


def _counts(histogram: Histogram) -> dict[str, int]:
    return {bar.label: bar.number for bar in histogram.bars}


def label_statistics(shard_set: ShardSet) -> LabelStatistics:
    """From the annotation columns; no picture is read. `DataError` for a damaged shard."""
    nth = max(1, -(-shard_set.counts.boxes // MOST_BOXES))
    index = replace(shard_set.index, shards=shard_set.shards[::nth])
    annotations = read(replace(shard_set, index=index))
    objects = annotations.objects()
    counts_K = np.bincount(objects.labels_N, minlength=len(shard_set.class_names))
    return LabelStatistics(
        uri=shard_set.uri,
        images=len(objects.heights_I),
        images_in_set=shard_set.num_rows,
        images_without_objects=len(objects.heights_I) - len(np.unique(objects.image_N)),
        crowds=int(annotations.crowd_N.sum()),
        objects_of_class={
            shard_set.class_names[k]: int(counts_K[k])
            for k in np.argsort(-counts_K, kind="stable").tolist()
        },
        object_sizes=histograms.object_sizes(objects),
        objects_per_image=histograms.objects_per_image(objects),
    )


def draw_label_statistics(sets: Mapping[str, LabelStatistics]) -> bytes:
    """A PNG with a row for each set, by the name of the set."""
    classes = max(
        (min(MOST_CLASSES, len(found.objects_of_class)) for found in sets.values()), default=1
    )
    tall = max(3.0, 1.0 + 0.19 * classes)
    figure = Figure(figsize=(15, tall * len(sets)), layout="constrained")
    rows = figure.subplots(len(sets), 3, squeeze=False)
    for (name, found), (of_classes, sizes, per_image) in zip(sets.items(), rows, strict=True):
        read_images = (
            f"{found.images:,} images"
            if found.images == found.images_in_set
            else f"{found.images:,} of {found.images_in_set:,} images"
        )
        _draw_classes(of_classes, found.objects_of_class)
        of_classes.set_title(f"{name}: {found.objects:,} objects in {read_images}", fontsize=10)
        _draw_bars(sizes, found.object_sizes, "square root of the area of an object, px")
        sizes.set_title("; ".join(words for _, words in found.object_sizes.legend), fontsize=8)
        _draw_bars(per_image, found.objects_per_image, "objects of an image", across="images")
        words = found.objects_per_image.legend[0][1]
        empty = found.images_without_objects
        per_image.set_title(f"{words}; {empty:,} images without objects", fontsize=8)
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=100)
    return sink.getvalue()


def _draw_classes(axes: Axes, counts: Mapping[str, int]) -> None:
    shown = list(counts.items())[:MOST_CLASSES]
    numbers = [number for _, number in shown]
    axes.barh(range(len(shown)), numbers, color=COLOURS[0])
    axes.set(ylim=(len(shown) - 0.5, -0.5), xlim=(0, 1.18 * max(1, *numbers, 1)), yticks=[])
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.tick_params(labelsize=8)
    axes.set_xlabel("objects")
    if more := len(counts) - len(shown):
        axes.set_xlabel(f"objects; {more:,} more classes are in labels.json")
    for place, (name, number) in enumerate(shown):
        # Tick labels cannot be names: matplotlib would read formulas in them.
        text = axes.text(
            -0.01, place, "", transform=axes.get_yaxis_transform(), ha="right", va="center"
        )
        text.set_fontsize(8)
        write_name(text, name, most=24)
        axes.text(number, place, f" {number:,}", va="center", fontsize=8)


def _draw_bars(axes: Axes, histogram: Histogram, along: str, *, across: str = "objects") -> None:
    numbers = [bar.number for bar in histogram.bars]
    axes.bar(np.arange(len(numbers)) + 0.5, numbers, width=0.9, color=COLOURS[0])
    axes.set(xlim=(0, len(numbers)), xlabel=along, ylabel=across)
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    ticks = histogram.visible_ticks
    axes.set_xticks([x * len(numbers) for x, _ in ticks], [text for _, text in ticks])
    axes.tick_params(labelsize=8)
