"""Boxes are XYXY in absolute pixels, half-open, x to the right and y down. Shape legend: B batch, A
anchors, G ground-truth slots, N and M any.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAX_LOG_SCALE = math.log(1000 / 16)
"""Largest predicted log size ratio, so that exp() of an untrained network's output does not
overflow (the bound of Detectron and torchvision).
"""


def area(boxes_N4: Tensor) -> Tensor:
    """Area of XYXY px boxes in px^2, (...,)."""
    return (boxes_N4[..., 2] - boxes_N4[..., 0]) * (boxes_N4[..., 3] - boxes_N4[..., 1])


def clip(boxes_N4: Tensor, height: Tensor | float, width: Tensor | float) -> Tensor:
    """XYXY px boxes clipped to [0, width] x [0, height]; sizes are numbers, or tensors that
    broadcast against (...,).
    """
    x1, y1, x2, y2 = boxes_N4.unbind(-1)
    width, height = torch.as_tensor(width).to(x1), torch.as_tensor(height).to(x1)
    zero = torch.zeros((), dtype=x1.dtype, device=x1.device)
    return torch.stack(
        [
            x1.clamp(zero, width),
            y1.clamp(zero, height),
            x2.clamp(zero, width),
            y2.clamp(zero, height),
        ],
        dim=-1,
    )


def intersection(boxes_N4: Tensor, boxes_M4: Tensor) -> Tensor:
    """Pairwise overlap in px^2: (..., N, 4) and (..., M, 4) -> (..., N, M)."""
    low_x, low_y, high_x, high_y = (boxes_N4[..., i, None] for i in range(4))
    left, top, right, bottom = (boxes_M4[..., None, :, i] for i in range(4))
    # One axis after the other: no tensor of (..., N, M, 2) is built.
    across = (torch.minimum(high_x, right) - torch.maximum(low_x, left)).clamp_(min=0)
    return across.mul_((torch.minimum(high_y, bottom) - torch.maximum(low_y, top)).clamp_(min=0))


def iou(boxes_N4: Tensor, boxes_M4: Tensor) -> Tensor:
    """Pairwise intersection over union in [0, 1]: (..., N, 4) and (..., M, 4) -> (..., N, M). Two
    boxes without area have 0.
    """
    overlap = intersection(boxes_N4, boxes_M4)
    union = area(boxes_N4)[..., :, None] + area(boxes_M4)[..., None, :] - overlap
    return torch.where(overlap > 0, overlap / union, torch.zeros_like(overlap))


def encode(boxes_A4: Tensor, anchors_A4: Tensor) -> Tensor:
    """Offsets of XYXY px boxes from anchors, (..., 4) as (dx, dy, log dw, log dh): centre shift in
    anchor sides, log size ratio (R-CNN, appendix C).
    """
    anchor_sides, anchor_centres = sides_and_centres(anchors_A4)
    box_sides, box_centres = sides_and_centres(boxes_A4)
    return torch.cat(
        [(box_centres - anchor_centres) / anchor_sides, torch.log(box_sides / anchor_sides)], dim=-1
    )


def decode(deltas_A4: Tensor, anchors_A4: Tensor) -> Tensor:
    """The inverse of `encode`: offsets -> XYXY px boxes. Log size ratios are limited to
    `MAX_LOG_SCALE`.
    """
    anchor_sides, anchor_centres = sides_and_centres(anchors_A4)
    centres = deltas_A4[..., :2] * anchor_sides + anchor_centres
    half = torch.exp(deltas_A4[..., 2:].clamp(max=MAX_LOG_SCALE)) * anchor_sides * 0.5
    return torch.cat([centres - half, centres + half], dim=-1)


def sides_and_centres(boxes_N4: Tensor) -> tuple[Tensor, Tensor]:
    """(width, height) and the centre (x, y) of XYXY px boxes, each (..., 2)."""
    sides = boxes_N4[..., 2:] - boxes_N4[..., :2]
    return sides, boxes_N4[..., :2] + 0.5 * sides
