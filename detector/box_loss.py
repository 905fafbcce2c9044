"""The box loss of every anchor. `BOX_LOSSES` is the one list of them: on the encoded offsets, or on
the decoded boxes. Shapes: A anchors; leading axes are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from detector.boxes import area, decode, encode, sides_and_centres
from detector.choices import BoxLoss, LossSettings

BoxLossFunction = Callable[[Tensor, Tensor, Tensor, LossSettings], Tensor]
"""Predicted offsets, anchors and target boxes (XYXY px), each (..., A, 4), -> the loss of each
anchor, (..., A). Targets have an area.
"""


def _smooth_l1(
    deltas_A4: Tensor, anchors_A4: Tensor, targets_A4: Tensor, settings: LossSettings
) -> Tensor:
    """Smooth L1 against `encode(targets)`, summed over the four offsets."""
    expected_A4 = encode(targets_A4, anchors_A4)
    return F.smooth_l1_loss(deltas_A4, expected_A4, beta=settings.beta, reduction="none").sum(-1)


def _l1(
    deltas_A4: Tensor, anchors_A4: Tensor, targets_A4: Tensor, settings: LossSettings
) -> Tensor:
    """Absolute difference from `encode(targets)`, summed over the four offsets."""
    return F.l1_loss(deltas_A4, encode(targets_A4, anchors_A4), reduction="none").sum(-1)


def _decoded(loss: Callable[[Tensor, Tensor], Tensor]) -> BoxLossFunction:
    """A loss between boxes as one of offsets."""

    def on_offsets(
        deltas_A4: Tensor, anchors_A4: Tensor, targets_A4: Tensor, settings: LossSettings
    ) -> Tensor:
        return loss(decode(deltas_A4, anchors_A4), targets_A4)

    return on_offsets


# The losses below take pairs of XYXY px boxes, (..., A, 4). Targets have an area; predicted
# boxes may have none, and may lie up to 1e9 px away.


def iou_loss(boxes_A4: Tensor, targets_A4: Tensor) -> Tensor:
    """1 - IoU, (..., A)."""
    return _iou_loss_and_union(boxes_A4, targets_A4)[0]


def giou_loss(boxes_A4: Tensor, targets_A4: Tensor) -> Tensor:
    """1 - IoU plus the share of the hull that neither box covers (Rezatofighi et al. 2019)."""
    loss_A, union_A = _iou_loss_and_union(boxes_A4, targets_A4)
    hull_A2 = _hull_sides(boxes_A4, targets_A4)
    return loss_A + 1 - union_A / (hull_A2[..., 0] * hull_A2[..., 1])


def diou_loss(boxes_A4: Tensor, targets_A4: Tensor) -> Tensor:
    """1 - IoU plus the squared distance of the centres over the squared diagonal of the hull (Zheng
    et al. 2020).
    """
    return iou_loss(boxes_A4, targets_A4) + _centre_penalty(boxes_A4, targets_A4)


def ciou_loss(boxes_A4: Tensor, targets_A4: Tensor) -> Tensor:
    """The DIoU loss plus a term of the difference between the aspect ratios, whose weight carries
    no gradient (Zheng et al. 2020).
    """
    loss_A = iou_loss(boxes_A4, targets_A4)
    # A collapsed box has no aspect ratio: without the bound its gradient would be 0 / 0.
    angle_A, target_angle_A = (
        torch.atan(sides[..., 0] / sides[..., 1].clamp(min=1e-6))
        for sides in (sides_and_centres(boxes_A4)[0], sides_and_centres(targets_A4)[0])
    )
    aspect_A = 4 / math.pi**2 * (target_angle_A - angle_A).square()
    with torch.no_grad():
        weight_A = aspect_A / (loss_A.clamp(min=0) + aspect_A).clamp(min=1e-12)
    return loss_A + _centre_penalty(boxes_A4, targets_A4) + weight_A * aspect_A


def _iou_loss_and_union(boxes_A4: Tensor, targets_A4: Tensor) -> tuple[Tensor, Tensor]:
    """1 - IoU and the area of the union in px^2, each (..., A)."""
    shared_A2 = (
        torch.minimum(boxes_A4[..., 2:], targets_A4[..., 2:])
        - torch.maximum(boxes_A4[..., :2], targets_A4[..., :2])
    ).clamp(min=0)
    overlap_A = shared_A2[..., 0] * shared_A2[..., 1]
    union_A = area(boxes_A4) + area(targets_A4) - overlap_A
    return 1 - overlap_A / union_A, union_A


def _hull_sides(boxes_A4: Tensor, targets_A4: Tensor) -> Tensor:
    """Width and height in px of the smallest box around each pair, (..., A, 2)."""
    return torch.maximum(boxes_A4[..., 2:], targets_A4[..., 2:]) - torch.minimum(
        boxes_A4[..., :2], targets_A4[..., :2]
    )


def _centre_penalty(boxes_A4: Tensor, targets_A4: Tensor) -> Tensor:
    centres_A2, target_centres_A2 = (
        sides_and_centres(boxes)[1] for boxes in (boxes_A4, targets_A4)
    )
    distance_A = (centres_A2 - target_centres_A2).square().sum(dim=-1)
    return distance_A / _hull_sides(boxes_A4, targets_A4).square().sum(dim=-1)


BOX_LOSSES: dict[BoxLoss, BoxLossFunction] = {
    "smooth_l1": _smooth_l1,
    "l1": _l1,
    "iou": _decoded(iou_loss),
    "giou": _decoded(giou_loss),
    "diou": _decoded(diou_loss),
    "ciou": _decoded(ciou_loss),
}
