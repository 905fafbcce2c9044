"""The annotations of a whole shard set as arrays, and the choice of sample images from it.

Shapes: I images, N boxes, C canvases; in the choice of samples C cells, P pairs of an image and a
cell in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

# pyarrow makes these functions when it is imported.
from pyarrow.compute import (
    list_flatten,  # pyright: ignore[reportAttributeAccessIssue]
    list_value_length,  # pyright: ignore[reportAttributeAccessIssue]
)

from cluster.errors import DataError
from cluster.shards.format import first_rows
from cluster.shards.index import ShardSet
from cluster.shards.read import read_columns, read_row_group

COCO_SIDES = (32, 96)
"""px; their squares are the limits between small, medium and large objects in COCO's evaluation."""
SIZES = ("small", "medium", "large")
SAMPLE_GROUPS = 4
"""Row groups that sample images come from. Each is read whole; four contain most classes of most
sets.
"""


@dataclass(frozen=True)
class Annotations:
    """All boxes of a set in stored order. Labels are 0..K-1 for K classes."""

    heights_I: np.ndarray
    widths_I: np.ndarray
    image_N: np.ndarray
    """The image of each box, 0..I-1."""
    boxes_N4: np.ndarray
    """float32 XYXY px of the image."""
    labels_N: np.ndarray
    crowd_N: np.ndarray
    area_N: np.ndarray
    """px^2 as annotated, which the evaluation uses; that of the box where the source has none."""

    @property
    def size_N(self) -> np.ndarray:
        """0 small, 1 medium, 2 large, by `area_N`."""
        return np.digitize(self.area_N, np.square(COCO_SIDES))

    def objects(self) -> Annotations:
        """The annotations without crowds."""
        return self.where(~self.crowd_N)

    def every(self, nth: int) -> Annotations:
        """Every `nth` box."""
        return self.where(slice(None, None, nth))

    def where(self, chosen: np.ndarray | slice) -> Annotations:
        """The boxes that a mask or a slice chooses."""
        return replace(
            self,
            image_N=self.image_N[chosen],
            boxes_N4=self.boxes_N4[chosen],
            labels_N=self.labels_N[chosen],
            crowd_N=self.crowd_N[chosen],
            area_N=self.area_N[chosen],
        )


def read(shard_set: ShardSet) -> Annotations:
    """The annotations of all images, without pixels and without a loop over boxes. `DataError` for
    a damaged shard.
    """
    table = read_columns(shard_set, ["height", "width", "boxes", "labels", "crowd", "area"])

    def flat(name: str) -> pa.Array:
        return list_flatten(table[name]).combine_chunks()

    counts_I = list_value_length(table["boxes"]).to_numpy()
    return Annotations(
        heights_I=table["height"].to_numpy(),
        widths_I=table["width"].to_numpy(),
        image_N=np.repeat(np.arange(len(counts_I)), counts_I),
        boxes_N4=flat("boxes").flatten().to_numpy().reshape(-1, 4),
        labels_N=flat("labels").to_numpy(),
        crowd_N=flat("crowd").to_numpy(zero_copy_only=False),
        area_N=flat("area").to_numpy(),
    )


def read_objects(shard_set: ShardSet, *, subject: str) -> Annotations:
    """The annotations without crowds. `DataError`, which names the `subject`, where there is
    none.
    """
    objects = read(shard_set).objects()
    if not len(objects.labels_N):
        raise DataError(
            f"{subject}: none of its {shard_set.num_rows} images has an object (crowds do not"
            " count), so there is nothing to learn or score; prepare it from other annotations"
        )
    return objects


@dataclass(frozen=True)
class Placement:
    """Where evaluation puts each image: the number of its canvas, and the (y, x) factors from the
    image to it. They are those of `placement.place_picture`.
    """

    canvas_I: np.ndarray
    factors_I2: np.ndarray

    def boxes(self, annotations: Annotations) -> np.ndarray:
        """float32 (N, 4): the boxes as the network sees them, XYXY px on the canvas of their
        image.
        """
        # (y, x) -> (x, y, x, y)
        factors_N4 = self.factors_I2[annotations.image_N][:, [1, 0, 1, 0]]
        return (annotations.boxes_N4 * factors_N4).astype(np.float32)


def place_images(
    heights_I: np.ndarray,
    widths_I: np.ndarray,
    *,
    canvases: Sequence[tuple[int, int]],
    long_side: int | None = None,
) -> Placement:
    """Images on the canvases (height, width), as `placement.preferred_canvas` and
    `placement.fit_scale` place them.
    """
    sides_I2 = np.stack([heights_I, widths_I], axis=1)
    # From the smallest canvas on: of several on which an image becomes equally large, the first is
    # taken.
    order = sorted(range(len(canvases)), key=lambda i: canvases[i][0] * canvases[i][1])
    scale_CI = np.stack([(np.array(canvases[i]) / sides_I2).min(axis=1) for i in order])
    if long_side is not None:
        scale_CI = np.minimum(scale_CI, long_side / sides_I2.max(axis=1))
    factors_I2 = np.maximum(1, np.rint(sides_I2 * scale_CI.max(axis=0)[:, None])) / sides_I2
    return Placement(np.array(order)[scale_CI.argmax(axis=0)], factors_I2)


def choose_samples(
    annotations: Annotations, rows_per_group: Sequence[int], *, count: int
) -> list[int]:
    """Numbers of up to `count` images, ascending, that show many classes and sizes and are in few
    row groups.

    A cell is a class at a size. First choose row groups, each time the one with most cells that no
    chosen group has. Then choose images in them, each time the one whose cells were shown least,
    divided by the square root of its number of boxes: an image full of boxes shows little.
    """
    group_I = np.repeat(np.arange(len(rows_per_group)), rows_per_group)
    cell_N = annotations.labels_N.astype(np.int64) * len(SIZES) + annotations.size_N
    cells, cell_N = np.unique(cell_N, return_inverse=True)
    # Each cell once per image.
    image_P, cell_P = np.divmod(
        np.unique(annotations.image_N * max(1, len(cells)) + cell_N), max(1, len(cells))
    )

    group_P, group_cell_P = np.divmod(
        np.unique(group_I[image_P] * max(1, len(cells)) + cell_P), max(1, len(cells))
    )
    chosen: list[int] = []
    seen_C = np.zeros(len(cells), bool)
    while len(chosen) < len(rows_per_group) and (
        len(chosen) < SAMPLE_GROUPS or sum(rows_per_group[group] for group in chosen) < count
    ):
        gain = np.bincount(group_P, weights=~seen_C[group_cell_P], minlength=len(rows_per_group))
        gain[chosen] = -1
        chosen.append(int(gain.argmax()))
        seen_C[group_cell_P[group_P == chosen[-1]]] = True

    candidates = np.flatnonzero(np.isin(group_I, chosen))
    inside_P = np.isin(image_P, candidates)
    candidate_P, cell_P = np.searchsorted(candidates, image_P[inside_P]), cell_P[inside_P]
    crowded = np.sqrt(
        np.maximum(1, np.bincount(annotations.image_N, minlength=len(group_I))[candidates])
    )
    picked: list[int] = []
    shown_C = np.zeros(len(cells))
    while len(picked) < min(count, len(candidates)):
        # A cell that was already shown n times counts 0.25^n.
        gain = (
            np.bincount(candidate_P, weights=0.25 ** shown_C[cell_P], minlength=len(candidates))
            / crowded
        )
        gain[picked] = -1
        picked.append(int(gain.argmax()))
        shown_C[cell_P[candidate_P == picked[-1]]] += 1
    return sorted(candidates[picked].tolist())


def read_samples(
    shard_set: ShardSet, annotations: Annotations, *, count: int
) -> Iterator[dict[str, Any]]:
    """The rows of `choose_samples` with all columns, one row group in memory at a time. `DataError`
    for a damaged shard.
    """
    chosen = np.array(choose_samples(annotations, shard_set.rows_per_group, count=count), np.int64)
    starts = first_rows(shard_set.rows_per_group)
    groups = np.searchsorted(starts, chosen, side="right") - 1
    for group in np.unique(groups).tolist():
        table = read_row_group(shard_set.locate_group(group))
        yield from table.take(pa.array(chosen[groups == group] - starts[group])).to_pylist()
