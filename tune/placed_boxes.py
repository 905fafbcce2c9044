"""The boxes of a set where training puts them on the canvas, without pixels: all of them or a
sample, and how well anchors fit them.

Shapes: I images, N boxes, Z sizes (small, medium and large, as COCO's evaluation has them).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cluster.reports.anchor_fit import best_iou_on_canvas
from cluster.shards.statistics import SIZES, Annotations, place_images
from detector.augment import cut_boxes
from detector.image_config import CanvasConfig
from detector.model_config import AnchorConfig

STRATA_PER_OCTAVE = 8
"""Strata of a sample within a doubling of the side, and of the ratio. Standard deviation of a
recall on 3,000 of 60,000 boxes, and of the difference of two recalls (anchors a fifth smaller):
0.0015 and 0.0013; with 2 strata an octave 0.0028 and 0.0027, without strata 0.0068 and 0.0034.
"""


@dataclass(frozen=True)
class PlacedBoxes:
    """Boxes that training learns. Sizes are 0 small, 1 medium, 2 large, in px^2 of the image."""

    canvases: tuple[tuple[int, int], ...]
    """(height, width), px."""
    boxes_N4: np.ndarray
    """float32 XYXY px on the canvas."""
    canvas_N: np.ndarray
    """The number of each box's canvas."""
    size_N: np.ndarray

    def __len__(self) -> int:
        return len(self.boxes_N4)

    def where(self, chosen: np.ndarray | slice) -> PlacedBoxes:
        """The boxes that indices, a mask or a slice choose."""
        return PlacedBoxes(
            self.canvases, self.boxes_N4[chosen], self.canvas_N[chosen], self.size_N[chosen]
        )

    def split(self, most: int) -> list[PlacedBoxes]:
        """Parts of at most so many boxes."""
        return [self.where(slice(start, start + most)) for start in range(0, len(self), most)]


def place_boxes(
    objects: Annotations,
    *,
    canvas: CanvasConfig,
    scale_range: tuple[float, float] = (1.0, 1.0),
    short_sides: tuple[int, int] | None = None,
    min_visible: float = 0.25,
    generator: np.random.Generator,
) -> PlacedBoxes:
    """The boxes after one scaling and one crop of each image, drawn as `detector.augment` draws
    them: a factor within `scale_range`, uniform in its logarithm, or the shorter side within
    `short_sides` px. Objects that training drops or ignores are left out.
    """
    placement = place_images(
        objects.heights_I, objects.widths_I, canvases=canvas.canvases, long_side=canvas.long_side
    )
    sides_I2 = np.stack([objects.heights_I, objects.widths_I], axis=1)
    count = len(sides_I2)
    if short_sides is None:
        low, high = np.log(scale_range).tolist()
        jitter_I = np.exp(generator.uniform(low, high, count))
    else:
        short_I = generator.integers(short_sides[0], short_sides[1] + 1, count)
        jitter_I = np.minimum(1, short_I / (sides_I2 * placement.factors_I2).min(axis=1))
    scaled_I2 = np.maximum(1, np.rint(sides_I2 * placement.factors_I2 * jitter_I[:, None]))
    spare_I2 = np.maximum(0, scaled_I2 - np.array(canvas.canvases)[placement.canvas_I])
    offset_I2 = np.floor(generator.random((count, 2)) * (spare_I2 + 1))
    # (y, x) -> (x, y, x, y)
    factors_I4, offset_I4 = ((scaled_I2 / sides_I2)[:, [1, 0] * 2], offset_I2[:, [1, 0] * 2])
    image_N = objects.image_N
    moved_N4 = (objects.boxes_N4 * factors_I4[image_N] - offset_I4[image_N]).astype(np.float32)
    cut, kept = [np.zeros((0, 4), np.float32)], [np.zeros(0, np.int64)]
    canvas_N = placement.canvas_I[image_N]
    for number, (height, width) in enumerate(canvas.canvases):
        on = np.flatnonzero(canvas_N == number)
        # The number of a box takes the place of its label, so -1 marks those that are ignored.
        boxes, index = cut_boxes(
            moved_N4[on], on, window=(0, 0, width, height), min_visible=min_visible
        )
        cut.append(boxes[index >= 0])
        kept.append(index[index >= 0])
    index = np.concatenate(kept)
    return PlacedBoxes(canvas.canvases, np.concatenate(cut), canvas_N[index], objects.size_N[index])


def sample_boxes(boxes: PlacedBoxes, count: int, generator: np.random.Generator) -> PlacedBoxes:
    """`count` boxes, of each stratum of side and ratio its share: the boxes in the order of their
    strata, and of these every n-th. All boxes where they are not more.
    """
    if len(boxes) <= count:
        return boxes
    sides_N2 = np.log2(np.maximum(1, boxes.boxes_N4[:, 2:] - boxes.boxes_N4[:, :2]))
    side_N = np.floor(STRATA_PER_OCTAVE * sides_N2.mean(axis=1))
    ratio_N = np.floor(STRATA_PER_OCTAVE * (sides_N2[:, 1] - sides_N2[:, 0]))
    order = np.lexsort((generator.random(len(boxes)), ratio_N, side_N))
    step = len(boxes) / count
    chosen = np.floor(step * (np.arange(count) + generator.random())).astype(np.int64)
    return boxes.where(order[np.minimum(chosen, len(boxes) - 1)])


@dataclass(frozen=True)
class Fit:
    """How anchors fit boxes, in sums by size, so that the parts of a set can be added."""

    objects: tuple[int, ...]
    recalled: tuple[int, ...]
    """Objects with an anchor whose IoU is at least the foreground threshold."""
    iou: tuple[float, ...]
    """Sum of the highest IoU of each object."""
    worth: tuple[float, ...]
    """Sum of the same IoU as far as the object is learnt: see `fit_of`."""

    def __add__(self, other: Fit) -> Fit:
        def add(mine: Sequence[float], others: Sequence[float]) -> tuple[float, ...]:
            return tuple(a + b for a, b in zip(mine, others, strict=True))

        return Fit(
            tuple(int(number) for number in add(self.objects, other.objects)),
            tuple(int(number) for number in add(self.recalled, other.recalled)),
            add(self.iou, other.iou),
            add(self.worth, other.worth),
        )

    @property
    def recall(self) -> float:
        """Share of objects with a positive anchor, 0..1."""
        return sum(self.recalled) / max(1, sum(self.objects))

    @property
    def mean_iou(self) -> float:
        return sum(self.iou) / max(1, sum(self.objects))

    @property
    def mean_worth(self) -> float:
        return sum(self.worth) / max(1, sum(self.objects))

    @property
    def recall_by_size(self) -> dict[str, float | None]:
        """By the names of COCO's sizes; None where no object has the size."""
        return {
            name: recalled / objects if objects else None
            for name, recalled, objects in zip(SIZES, self.recalled, self.objects, strict=True)
        }


def fit_of(
    boxes: PlacedBoxes, anchors: AnchorConfig, *, foreground: float, background: float
) -> Fit:
    """The fit by RetinaNet's own rule (Lin et al. 2017, section 4, Anchors): over all positions of
    all levels, IoU >= `foreground` is positive and < `background` hardly learnt.

    The worth of an object is its highest IoU times its share of the way from background to
    foreground: 0 below the one, the IoU itself from the other on.
    """
    iou_N = best_iou_on_canvas(
        boxes.boxes_N4, boxes.canvas_N, canvases=boxes.canvases, anchors=anchors
    )
    if foreground > background:
        learnt_N = np.clip((iou_N - background) / (foreground - background), 0, 1)
    else:
        learnt_N = iou_N >= foreground

    def by_size(values_N: np.ndarray) -> list[float]:
        return np.bincount(boxes.size_N, weights=values_N, minlength=len(SIZES)).tolist()

    return Fit(
        tuple(np.bincount(boxes.size_N, minlength=len(SIZES)).tolist()),
        tuple(int(number) for number in by_size(iou_N >= foreground)),
        tuple(by_size(iou_N)),
        tuple(by_size(iou_N * learnt_N)),
    )
