"""A shard set looked over: whether its bytes are those of the index, what its annotations say,
which pictures show it.

Shapes: I images, N boxes; in the choice of pictures C cells, P pairs of an image and a cell in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.shards.format import first_rows
from cluster.shards.index import ShardSet
from cluster.shards.read import read_columns, read_row_group

COCO_SIDES = (32, 96)
"""px, the square roots of the areas between small, medium and large objects in COCO's evaluation."""
SIZES = ("small", "medium", "large")
SAMPLE_GROUPS = 4
"""Row groups that sample pictures are taken from: each is read whole, and four of them hold most
classes of most sets.
"""


@dataclass(frozen=True)
class Annotations:
    """All boxes of a set in stored order; of K classes, labels are 0..K-1."""

    heights_I: np.ndarray
    widths_I: np.ndarray
    image_N: np.ndarray
    """Which image of 0..I-1 the box lies in."""
    boxes_N4: np.ndarray
    """float32 XYXY px of the picture."""
    labels_N: np.ndarray
    crowd_N: np.ndarray
    area_N: np.ndarray
    """px^2 as annotated, which the evaluation goes by; that of the box where the source gave none."""

    @property
    def size_N(self) -> np.ndarray:
        """0 small, 1 medium, 2 large, by `area_N`."""
        return np.digitize(self.area_N, np.square(COCO_SIDES))

    def objects(self) -> Annotations:
        """The same without crowds."""
        kept_N = ~self.crowd_N
        of_boxes = [
            getattr(self, name)[kept_N]
            for name in ("image_N", "boxes_N4", "labels_N", "crowd_N", "area_N")
        ]
        return Annotations(self.heights_I, self.widths_I, *of_boxes)


def read(shard_set: ShardSet) -> Annotations:
    """The annotations of all images; no pixel is read, and nothing is done box by box. `DataError`
    for a shard that is damaged.
    """
    table = read_columns(shard_set, ["height", "width", "boxes", "labels", "crowd", "area"])

    def flat(name: str) -> pa.Array:
        return pc.list_flatten(table[name]).combine_chunks()

    counts_I = pc.list_value_length(table["boxes"]).to_numpy()
    return Annotations(
        heights_I=table["height"].to_numpy(),
        widths_I=table["width"].to_numpy(),
        image_N=np.repeat(np.arange(len(counts_I)), counts_I),
        boxes_N4=flat("boxes").flatten().to_numpy().reshape(-1, 4),
        labels_N=flat("labels").to_numpy(),
        crowd_N=flat("crowd").to_numpy(zero_copy_only=False),
        area_N=flat("area").to_numpy(),
    )


def canvas_factors(
    heights_I: np.ndarray, widths_I: np.ndarray, *, canvas: tuple[int, int]
) -> np.ndarray:
    """The (y, x) factors from each picture to the canvas (height, width), float64 (I, 2): those of
    `augment.place` at the scale that fits.
    """
    sides_I2 = np.stack([heights_I, widths_I], axis=1)
    scale_I1 = (np.array(canvas) / sides_I2).min(axis=1, keepdims=True)
    return np.maximum(1, np.rint(sides_I2 * scale_I1)) / sides_I2


def boxes_on_canvas(annotations: Annotations, *, canvas: tuple[int, int]) -> np.ndarray:
    """The boxes as the network sees them in evaluation: float32 (N, 4), XYXY px on the canvas
    (height, width).
    """
    factors_I2 = canvas_factors(annotations.heights_I, annotations.widths_I, canvas=canvas)
    # (y, x) -> (x, y, x, y)
    return (annotations.boxes_N4 * factors_I2[annotations.image_N][:, [1, 0, 1, 0]]).astype(
        np.float32
    )


def choose_samples(
    annotations: Annotations, rows_per_group: Sequence[int], *, count: int
) -> list[int]:
    """Numbers of up to `count` images, ascending, that show many classes and sizes and lie in few
    row groups.

    A cell is a class at a size. First the row groups with most cells not seen in those before, then
    the images in them whose cells were shown least, by the square root of their boxes: a picture
    that is all boxes shows little.
    """
    group_I = np.repeat(np.arange(len(rows_per_group)), rows_per_group)
    cell_N = annotations.labels_N.astype(np.int64) * len(SIZES) + annotations.size_N
    cells, cell_N = np.unique(cell_N, return_inverse=True)
    # Each cell once an image: two columns, image and cell.
    image_P, cell_P = np.divmod(
        np.unique(annotations.image_N * max(1, len(cells)) + cell_N), max(1, len(cells))
    )

    held_P, held_cell_P = np.divmod(
        np.unique(group_I[image_P] * max(1, len(cells)) + cell_P), max(1, len(cells))
    )
    chosen: list[int] = []
    seen_C = np.zeros(len(cells), bool)
    while len(chosen) < len(rows_per_group) and (
        len(chosen) < SAMPLE_GROUPS or sum(rows_per_group[group] for group in chosen) < count
    ):
        gain = np.bincount(held_P, weights=~seen_C[held_cell_P], minlength=len(rows_per_group))
        gain[chosen] = -1
        chosen.append(int(gain.argmax()))
        seen_C[held_cell_P[held_P == chosen[-1]]] = True

    candidates = np.flatnonzero(np.isin(group_I, chosen))
    inside_P = np.isin(image_P, candidates)
    place_P, cell_P = np.searchsorted(candidates, image_P[inside_P]), cell_P[inside_P]
    crowded = np.sqrt(
        np.maximum(1, np.bincount(annotations.image_N, minlength=len(group_I))[candidates])
    )
    picked: list[int] = []
    shown_C = np.zeros(len(cells))
    while len(picked) < min(count, len(candidates)):
        # A cell that was shown once counts a quarter.
        gain = (
            np.bincount(place_P, weights=0.25 ** shown_C[cell_P], minlength=len(candidates))
            / crowded
        )
        gain[picked] = -1
        picked.append(int(gain.argmax()))
        shown_C[cell_P[place_P == picked[-1]]] += 1
    return sorted(candidates[picked].tolist())


def read_samples(
    shard_set: ShardSet, annotations: Annotations, *, count: int
) -> Iterator[dict[str, Any]]:
    """The rows that `choose_samples` names, as in the shards, one row group in memory at a time.
    `DataError` for a shard that is damaged.
    """
    chosen = np.array(choose_samples(annotations, shard_set.rows_per_group, count=count), np.int64)
    starts = first_rows(shard_set.rows_per_group)
    groups = np.searchsorted(starts, chosen, side="right") - 1
    for group in np.unique(groups).tolist():
        table = read_row_group(shard_set.locate_group(group))
        yield from table.take(pa.array(chosen[groups == group] - starts[group])).to_pylist()
