"""The anchor grid, and the assignment of anchors to ground-truth boxes. Shapes: B batch, A anchors,
G ground-truth slots, S anchors a position, N boxes, n those of a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypedDict, Unpack

import torch
from torch import Tensor

from detector.boxes import area, intersection, sides_and_centres
from detector.choices import AnchorConvention

BACKGROUND = -1
IGNORED = -2
"""Codes of anchors without an object, in the place of a slot or a class."""

_CHUNK_BOXES = 1 << 16
"""Boxes that `best_iou` compares at a time: about 15 MB of temporary values for nine anchors a
position.
"""

_CHUNK_PAIRS = 1 << 22
"""Pairs of an anchor and a slot that `match` compares at a time, 16 MiB for each of four tensors:
two images of 120,087 anchors (800x800) and 16 slots. All 16 images of a batch at once would take
470 MiB, with 64 slots 1.8 GiB. An image with more pairs is matched whole.
"""


class AnchorShapes(TypedDict):
    """What defines the anchor grid of a canvas; keywords of `anchor_grid`."""

    strides: Sequence[int]
    """Canvas px between the positions of each level."""
    base_sizes: Sequence[float]
    """Side of the square anchor of each level, canvas px."""
    scales: Sequence[float]
    """Factors of the base size."""
    ratios: Sequence[float]
    """Height / width."""
    convention: AnchorConvention


class PartialAnchorShapes(TypedDict, total=False):
    """What a weight file tells of its `AnchorShapes`."""

    strides: Sequence[int]
    base_sizes: Sequence[float]
    scales: Sequence[float]
    ratios: Sequence[float]
    convention: AnchorConvention


def level_shapes(
    height: int, width: int, *, strides: Sequence[int] = (8, 16, 32, 64, 128)
) -> list[tuple[int, int]]:
    """Rows and columns of the pyramid's levels on a canvas of `height` x `width` px: every stride-2
    convolution with padding 1 halves and rounds up.

    `ValueError` where a side is not a multiple of the coarsest stride up to 32: a level would not
    be half the size of the finer one, and could not be added to it.
    """
    coarsest = max(stride for stride in strides if stride <= 32)
    for name, side in (("height", height), ("width", width)):
        if side % coarsest:
            fits = -(-side // coarsest) * coarsest
            raise ValueError(
                f"canvas {name} {side}: must be a multiple of {coarsest}, the stride of the"
                f" coarsest feature; the next one is {fits}"
            )
    # Rounded up without negative numbers, which ONNX divides in another way than Python.
    return [((height + stride - 1) // stride, (width + stride - 1) // stride) for stride in strides]


class _Level(NamedTuple):
    """A level of the pyramid on a canvas. Position (row, column) is at (row * apart_y, column *
    apart_x) px.
    """

    rows: int
    columns: int
    apart_y: int
    apart_x: int
    shapes_S4: Tensor
    """The anchors of a position at the origin, float32, XYXY px; by ratio, then scale."""


def _anchor_levels(
    height: int,
    width: int,
    *,
    base_sizes: Sequence[float],
    scales: Sequence[float],
    ratios: Sequence[float],
    strides: Sequence[int] = (8, 16, 32, 64, 128),
    convention: AnchorConvention = "exact",
) -> list[_Level]:
    """Positions and shapes of the anchors of each level on the canvas of `height` x `width` px.

    An anchor of size s and ratio r (height / width) has area s^2, and positions are `stride` px
    apart. `convention` "exact" is that of the paper and detectron2. "torchvision" is the one its
    weights were trained with: sizes are truncated to whole px, shapes rounded around the position,
    and where a side is no multiple of the stride, positions are side // rows px apart (P7 on 800
    px: 114, not 128).
    """
    if convention not in ("exact", "torchvision"):
        raise ValueError(
            f"convention {convention!r}: must be exact (the paper) or torchvision; exact unless its"
            " weights are loaded"
        )
    whole_pixels = convention == "torchvision"
    root = torch.tensor(ratios, dtype=torch.float32).sqrt()
    levels = []
    for (rows, columns), stride, base in zip(
        level_shapes(height, width, strides=strides), strides, base_sizes, strict=True
    ):
        sizes = torch.tensor(
            [int(base * scale) if whole_pixels else base * scale for scale in scales],
            dtype=torch.float32,
        )
        widths = (1 / root[:, None] * sizes[None, :]).flatten()
        heights = (root[:, None] * sizes[None, :]).flatten()
        shapes = torch.stack([-widths, -heights, widths, heights], dim=1) / 2
        if whole_pixels:
            levels.append(_Level(rows, columns, height // rows, width // columns, shapes.round()))
        else:
            levels.append(_Level(rows, columns, stride, stride, shapes))
    return levels


def anchor_grid(height: int, width: int, **anchors: Unpack[AnchorShapes]) -> list[Tensor]:
    """Anchors of each level on the canvas of `height` x `width` px, float32 (rows * columns *
    anchors a position, 4), XYXY px; ordered by position, then ratio, then scale. `ValueError` as in
    `level_shapes`.
    """
    grids = []
    for level in _anchor_levels(height, width, **anchors):
        y, x = torch.meshgrid(
            torch.arange(level.rows) * level.apart_y,
            torch.arange(level.columns) * level.apart_x,
            indexing="ij",
        )
        positions = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4).float()
        grids.append((positions + level.shapes_S4[None]).reshape(-1, 4))
    return grids


def best_iou(boxes_N4: Tensor, height: int, width: int, **anchors: Unpack[AnchorShapes]) -> Tensor:
    """The highest IoU of each box (XYXY px on the canvas) with any anchor of the grid, float32
    (N,). The share of boxes above an IoU is the best recall that matching at this IoU can have
    without low-quality matches.

    Exact without building the grid: the overlap with an anchor of one shape is the product of two
    functions that fall with the distance of the centres in x and in y. So the position whose row
    and column are nearest to the box's centre is the best of its level, whatever the shape.

    Boxes are the last axis, and the two functions are computed from centres and sides: 0.16 CPU s
    for 860,000 boxes and 45 shapes, against 0.78 s for `iou` of corners.
    """
    levels = _anchor_levels(height, width, **anchors)
    result = []
    for boxes_n4 in boxes_N4.float().split(_CHUNK_BOXES):
        sides_n2, centres_n2 = sides_and_centres(boxes_n4)
        area_n = sides_n2.prod(dim=1)
        best_n = torch.zeros(len(boxes_n4))
        for level in levels:
            overlap_Sn = torch.ones(())
            for axis, apart, positions in (
                (0, level.apart_x, level.columns),
                (1, level.apart_y, level.rows),
            ):
                side_n, centre_n = sides_n2[:, axis], centres_n2[:, axis]
                nearest_n = (centre_n / apart).round().clamp(0, positions - 1) * apart
                side_S1 = 2 * level.shapes_S4[:, 2 + axis, None]
                # Two intervals share the shorter one, or what the distance of their centres leaves.
                reach_n = 0.5 * side_n - (centre_n - nearest_n).abs()
                shared_Sn = torch.minimum(reach_n + 0.5 * side_S1, side_n)
                overlap_Sn = overlap_Sn * torch.minimum(shared_Sn, side_S1).clamp_(min=0)
            # A box and an anchor without area have 0, not 0 / 0.
            anchor_S1 = area(level.shapes_S4)[:, None].clamp(min=torch.finfo(torch.float32).tiny)
            iou_Sn = overlap_Sn / (anchor_S1 + area_n - overlap_Sn)
            best_n = torch.maximum(best_n, iou_Sn.amax(dim=0))
        result.append(best_n)
    return torch.cat(result)


def match(anchors_A4: Tensor, boxes_BG4: Tensor, labels_BG: Tensor, **thresholds: float) -> Tensor:
    """`match_at_once`, for as many images at a time as `_CHUNK_PAIRS` allows."""
    images = max(1, _CHUNK_PAIRS // (len(anchors_A4) * labels_BG.shape[1]))
    chunks = zip(boxes_BG4.split(images), labels_BG.split(images), strict=True)
    return torch.cat([match_at_once(anchors_A4, *chunk, **thresholds) for chunk in chunks])


def match_at_once(
    anchors_A4: Tensor,
    boxes_BG4: Tensor,
    labels_BG: Tensor,
    *,
    high: float = 0.5,
    low: float = 0.4,
    ignore_overlap: float = 0.5,
) -> Tensor:
    """Assign anchors to objects (section 4, Anchors): IoU >= `high` is positive, < `low` is
    background, between them is ignored. Anchors and boxes are XYXY px on the canvas.

    The anchors with the highest IoU of an object are positive too, whatever that IoU is; each is
    assigned to the object that it overlaps most (torchvision's low-quality matches). A slot with
    label -1 is padding, or, if it has an area, an ignore region (a crowd): background anchors are
    ignored when it covers more than `ignore_overlap` of them.

    Returns the index of each anchor's slot, int64 (B, A); `BACKGROUND` (-1) or `IGNORED` (-2)
    without one.

    Four tensors of (B, G, A) exist at a time, unless it is compiled. Anchors are the last axis: the
    best slots are then maxima over whole rows, three to four times as fast on two CPU cores as
    maxima within each short row of slots.
    """
    valid_BG1 = labels_BG[..., None] >= 0
    anchor_area_A = area(anchors_A4)
    shared_BGA = intersection(boxes_BG4, anchors_A4)
    covered_BA = shared_BGA.masked_fill(valid_BG1, 0.0).amax(dim=1) / anchor_area_A > ignore_overlap
    union_BGA = area(boxes_BG4)[..., None] + anchor_area_A - shared_BGA
    iou_BGA = shared_BGA.div_(union_BGA).masked_fill_(~valid_BG1, 0.0)
    best_BA, slot_BA = iou_BGA.max(dim=1)
    best_BG1 = iou_BGA.amax(dim=2, keepdim=True)
    ties_BA = (iou_BGA == torch.where(best_BG1 > 0, best_BG1, 2.0)).any(dim=1)
    result_BA = torch.where(
        best_BA >= high, slot_BA, torch.where(best_BA < low, BACKGROUND, IGNORED)
    )
    result_BA = torch.where(ties_BA, slot_BA, result_BA)
    return torch.where((result_BA == BACKGROUND) & covered_BA, IGNORED, result_BA)
