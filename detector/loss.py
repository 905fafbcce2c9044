"""Focal loss and box loss as sums an image, and what divides them. Shapes: B batch, A anchors (a
those of a level), K classes, G slots.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from detector.boxes import area, decode, encode, sides_and_centres
from detector.focal import focal_sums

FIRST_AVERAGE, AVERAGE_MOMENTUM = 100.0, 0.9
"""Where the moving average of the positives starts and what it keeps a step (detectron2's values)."""


class LossSums(NamedTuple):
    """Float32, or float64 where the network computes in it."""

    classification_B: Tensor
    """Sum of the classification loss over the image's anchors that are not ignored."""
    box_B: Tensor
    """Sum of the box loss over the image's positive anchors (and, of smooth L1 and L1, over the
    four offsets).
    """


def overlap_loss(boxes_A4: Tensor, targets_A4: Tensor, *, kind: str) -> Tensor:
    """1 - IoU of each pair of XYXY px boxes plus the penalty of its kind, (..., A): "iou" none;
    "giou" the share of the hull that neither box covers (Rezatofighi et al. 2019); "diou" the
    squared distance of the centres over that of the hull's corners; "ciou" that and the difference
    of the aspect ratios, whose weight carries no gradient (Zheng et al. 2020).

    Targets have an area, as all matched ones do; boxes may have none, or lie anywhere up to 1e9 px
    away.
    """
    sides, centres = sides_and_centres(boxes_A4)
    target_sides, target_centres = sides_and_centres(targets_A4)
    shared = (
        torch.minimum(boxes_A4[..., 2:], targets_A4[..., 2:])
        - torch.maximum(boxes_A4[..., :2], targets_A4[..., :2])
    ).clamp(min=0)
    overlap = shared[..., 0] * shared[..., 1]
    union = area(boxes_A4) + area(targets_A4) - overlap
    loss = 1 - overlap / union
    if kind == "iou":
        return loss
    hull = torch.maximum(boxes_A4[..., 2:], targets_A4[..., 2:]) - torch.minimum(
        boxes_A4[..., :2], targets_A4[..., :2]
    )
    if kind == "giou":
        return loss + 1 - union / (hull[..., 0] * hull[..., 1])
    far = loss + (centres - target_centres).square().sum(dim=-1) / hull.square().sum(dim=-1)
    if kind == "diou":
        return far
    # A collapsed box has no aspect ratio: without the bounds its gradient would be 0 / 0.
    angle, target_angle = (
        torch.atan(s[..., 0] / s[..., 1].clamp(min=1e-6)) for s in (sides, target_sides)
    )
    aspect = 4 / math.pi**2 * (target_angle - angle).square()
    with torch.no_grad():
        weight = aspect / (loss.clamp(min=0) + aspect).clamp(min=1e-12)
    return far + weight * aspect


def box_term(
    deltas_A4: Tensor, anchors_A4: Tensor, targets_A4: Tensor, *, kind: str, beta: float
) -> Tensor:
    """The box loss of each anchor, (..., A): "smooth_l1" and "l1" on the offsets against
    `encode(targets)`, summed over the four; the others on the decoded boxes.
    """
    if kind == "smooth_l1":
        return F.smooth_l1_loss(
            deltas_A4, encode(targets_A4, anchors_A4), beta=beta, reduction="none"
        ).sum(dim=-1)
    if kind == "l1":
        return F.l1_loss(deltas_A4, encode(targets_A4, anchors_A4), reduction="none").sum(dim=-1)
    return overlap_loss(decode(deltas_A4, anchors_A4), targets_A4, kind=kind)


def detection_loss(
    logits: Sequence[Tensor],
    deltas: Sequence[Tensor],
    anchors_A4: Tensor,
    boxes_BG4: Tensor,
    labels_BG: Tensor,
    slot_BA: Tensor,
    *,
    dense: Callable[..., LossSums] | None = None,
    **kinds: Any,
) -> LossSums:
    """The sums of L_cls and L_box of every image for matched anchors. `kinds` are the keywords of
    `level_loss`; `dense` is `dense_loss`, compiled.
    """
    class_BA, target_BA4 = targets(anchors_A4, boxes_BG4, labels_BG, slot_BA)
    return (dense or dense_loss)(logits, deltas, anchors_A4, class_BA, target_BA4, **kinds)


def targets(
    anchors_A4: Tensor, boxes_BG4: Tensor, labels_BG: Tensor, slot_BA: Tensor
) -> tuple[Tensor, Tensor]:
    """What every anchor is to predict: its class, int64 (B, A), `BACKGROUND` or `IGNORED` where it
    has none, and its box, (B, A, 4), the anchor itself there.
    """
    positive_BA = slot_BA >= 0
    place_BA = torch.where(positive_BA, slot_BA, 0)
    class_BA = torch.where(positive_BA, labels_BG.gather(1, place_BA), slot_BA)
    boxes_BA4 = boxes_BG4.gather(1, place_BA[..., None].expand(-1, -1, 4))
    return class_BA, torch.where(positive_BA[..., None], boxes_BA4, anchors_A4)


def dense_loss(
    logits: Sequence[Tensor],
    deltas: Sequence[Tensor],
    anchors_A4: Tensor,
    class_BA: Tensor,
    target_BA4: Tensor,
    **kinds: Any,
) -> LossSums:
    """`level_loss` summed over the levels: logits (B, a, K) and offsets (B, a, 4) of each, in the
    order of the anchors.
    """
    sizes = [level.shape[1] for level in logits]
    columns = (
        logits,
        deltas,
        anchors_A4.split(sizes),
        class_BA.split(sizes, dim=1),
        target_BA4.split(sizes, dim=1),
    )
    sums = [level_loss(*level, **kinds) for level in zip(*columns, strict=True)]
    return LossSums(*(torch.stack(column).sum(dim=0) for column in zip(*sums, strict=True)))


def level_loss(
    logits_BAK: Tensor,
    deltas_BA4: Tensor,
    anchors_A4: Tensor,
    class_BA: Tensor,
    target_BA4: Tensor,
    *,
    classification: str = "focal",
    gamma: float,
    alpha: float,
    box: str = "smooth_l1",
    beta: float,
) -> LossSums:
    """The sums of L_cls and L_box of every image for the `targets` of its anchors, computed in
    float32 where the network's dtype is smaller.

    `classification` is "focal", "balanced_cross_entropy" (gamma counts as 0) or "cross_entropy"
    (and both classes weigh 1); `box` a kind of `box_term`. All shapes are those of the canvas,
    whatever is on it: one program serves every batch, and no device is asked how many are positive.
    """
    gamma = gamma if classification == "focal" else 0.0
    weighed = None if classification == "cross_entropy" else alpha
    classification_B = focal_sums(logits_BAK, class_BA, gamma=gamma, alpha=weighed)
    precise = torch.promote_types(deltas_BA4.dtype, torch.float32)
    positive_BA = class_BA >= 0
    # An anchor without an object predicts itself: whatever the network says there, value and
    # gradient are 0.
    deltas_BA4 = torch.where(positive_BA[..., None], deltas_BA4, 0.0).to(precise)
    box_BA = box_term(
        deltas_BA4, anchors_A4.to(precise), target_BA4.to(precise), kind=box, beta=beta
    )
    return LossSums(
        classification_B=classification_B, box_B=torch.where(positive_BA, box_BA, 0.0).sum(dim=1)
    )


def moving_average(average: float | Tensor, positives: Tensor) -> Tensor:
    """The average after a step that saw these positives in the global batch (at least 1 counts),
    float32 scalar.
    """
    return AVERAGE_MOMENTUM * average + (1 - AVERAGE_MOMENTUM) * positives.clamp(min=1)


def image_weights(
    positives_B: Tensor, *, positives: Tensor, images: Tensor, average: Tensor, normalizer: str
) -> Tensor:
    """What each image's sums are multiplied by, (B,), from its own positives and those, and the
    images without fillers, of the global batch.

    "batch" divides by the positives of the global batch (section 4.1); "moving_average" by
    `average`; "image" each image by its own positives, then by the images (torchvision's way: a
    crowded picture weighs no more than any other). What would be divided by 0 is divided by 1.
    """
    if normalizer == "image":
        return 1 / (positives_B.clamp(min=1) * images.clamp(min=1))
    divisor = average if normalizer == "moving_average" else positives.clamp(min=1)
    return (1 / divisor).expand_as(positives_B)
