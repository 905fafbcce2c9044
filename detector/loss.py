"""Focal loss and box loss as sums an image, and what divides them. Shapes: B batch, A anchors, K classes, G slots, P positives."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from detector.anchors import IGNORED
from detector.boxes import area, decode, encode, sides_and_centres

FIRST_AVERAGE, AVERAGE_MOMENTUM = 100.0, 0.9
"""Where the moving average of the positives starts and what it keeps a step (detectron2's values)."""


class LossSums(NamedTuple):
    """Float32, or float64 where the network computes in it."""

    classification_B: Tensor
    """Sum of the classification loss over the image's anchors that are not ignored."""
    box_B: Tensor
    """Sum of the box loss over the image's positive anchors (and, of smooth L1 and L1, over the four offsets)."""


def focal_term(logits: Tensor, *, positive: bool, gamma: float, alpha: float | None) -> Tensor:
    """FL(p_t) = -alpha_t (1 - p_t)^gamma log(p_t) (section 3.2), elementwise, for entries that are all positive or all negative.

    `alpha` weighs positives, 1 - alpha negatives; None weighs both 1. (1 - p_t)^gamma is taken as exp(gamma * log(1 - p_t)): finite in value and
    gradient for every finite logit, also for gamma below 1.
    """
    signed = logits if positive else -logits
    weight = 1.0 if alpha is None else alpha if positive else 1 - alpha
    entropy = weight * F.softplus(-signed)
    return entropy if gamma == 0 else torch.exp(-gamma * F.softplus(signed)) * entropy


def overlap_loss(boxes_P4: Tensor, targets_P4: Tensor, *, kind: str) -> Tensor:
    """1 - IoU of each pair of XYXY px boxes plus the penalty of its kind, (P,): "iou" none; "giou" the share of the hull that neither box covers
    (Rezatofighi et al. 2019); "diou" the squared distance of the centres over that of the hull's corners; "ciou" that and the difference of the
    aspect ratios, whose weight carries no gradient (Zheng et al. 2020).

    Targets have an area, as all matched ones do; boxes may have none, or lie anywhere up to 1e9 px away.
    """
    sides, centres = sides_and_centres(boxes_P4)
    target_sides, target_centres = sides_and_centres(targets_P4)
    shared = (torch.minimum(boxes_P4[:, 2:], targets_P4[:, 2:]) - torch.maximum(boxes_P4[:, :2], targets_P4[:, :2])).clamp(min=0)
    overlap = shared[:, 0] * shared[:, 1]
    union = area(boxes_P4) + area(targets_P4) - overlap
    loss = 1 - overlap / union
    if kind == "iou":
        return loss
    hull = torch.maximum(boxes_P4[:, 2:], targets_P4[:, 2:]) - torch.minimum(boxes_P4[:, :2], targets_P4[:, :2])
    if kind == "giou":
        return loss + 1 - union / (hull[:, 0] * hull[:, 1])
    far = loss + (centres - target_centres).square().sum(dim=1) / hull.square().sum(dim=1)
    if kind == "diou":
        return far
    # A collapsed box has no aspect ratio: without the bounds its gradient would be 0 / 0.
    angle, target_angle = (torch.atan(s[:, 0] / s[:, 1].clamp(min=1e-6)) for s in (sides, target_sides))
    aspect = 4 / math.pi**2 * (target_angle - angle).square()
    with torch.no_grad():
        weight = aspect / (loss.clamp(min=0) + aspect).clamp(min=1e-12)
    return far + weight * aspect


def box_term(deltas_P4: Tensor, anchors_P4: Tensor, targets_P4: Tensor, *, kind: str, beta: float) -> Tensor:
    """The box loss of each positive anchor, (P,): "smooth_l1" and "l1" on the offsets against `encode(targets)`, summed over the four; the others on
    the decoded boxes.
    """
    if kind == "smooth_l1":
        return F.smooth_l1_loss(deltas_P4, encode(targets_P4, anchors_P4), beta=beta, reduction="none").sum(dim=1)
    if kind == "l1":
        return F.l1_loss(deltas_P4, encode(targets_P4, anchors_P4), reduction="none").sum(dim=1)
    return overlap_loss(decode(deltas_P4, anchors_P4), targets_P4, kind=kind)


def detection_loss(
    logits_BAK: Tensor,
    deltas_BA4: Tensor,
    anchors_A4: Tensor,
    boxes_BG4: Tensor,
    labels_BG: Tensor,
    slot_BA: Tensor,
    *,
    classification: str = "focal",
    gamma: float,
    alpha: float,
    box: str = "smooth_l1",
    beta: float,
) -> LossSums:
    """The sums of L_cls and L_box of every image for matched anchors, computed in float32 where the network's dtype is smaller.

    `classification` is "focal", "balanced_cross_entropy" (gamma counts as 0) or "cross_entropy" (and both classes weigh 1); `box` a kind of
    `box_term`. No one-hot target is built: every entry counts as negative first, then the (few) positive entries are corrected.
    """
    precise = torch.promote_types(logits_BAK.dtype, torch.float32)
    logits_BAK = logits_BAK.to(precise)
    focus = dict(gamma=gamma if classification == "focal" else 0.0, alpha=None if classification == "cross_entropy" else alpha)
    # Classes are summed before the mask: it is then A and not A * K numbers long (on one CPU core 4 % less time at 80 classes).
    negatives_B = (focal_term(logits_BAK, positive=False, **focus).sum(dim=2) * (slot_BA != IGNORED)).sum(dim=1)
    image_P, anchor_P = torch.nonzero(slot_BA >= 0, as_tuple=True)
    slot_P = slot_BA[image_P, anchor_P]
    logits_P = logits_BAK[image_P, anchor_P, labels_BG[image_P, slot_P]]
    correction_P = focal_term(logits_P, positive=True, **focus) - focal_term(logits_P, positive=False, **focus)
    targets_P4, anchors_P4 = boxes_BG4[image_P, slot_P].to(precise), anchors_A4[anchor_P].to(precise)
    box_P = box_term(deltas_BA4[image_P, anchor_P].to(precise), anchors_P4, targets_P4, kind=box, beta=beta)
    return LossSums(
        classification_B=negatives_B.index_add(0, image_P, correction_P), box_B=torch.zeros_like(negatives_B).index_add(0, image_P, box_P)
    )


def moving_average(average: float, positives: Tensor) -> Tensor:
    """The average after a step that saw these positives in the global batch (at least 1 counts), float32 scalar."""
    return AVERAGE_MOMENTUM * average + (1 - AVERAGE_MOMENTUM) * positives.clamp(min=1)


def image_weights(positives_B: Tensor, *, positives: Tensor, images: Tensor, average: Tensor, normalizer: str) -> Tensor:
    """What each image's sums are multiplied by, (B,), from its own positives and those, and the images without fillers, of the global batch.

    "batch" divides by the positives of the global batch (section 4.1); "moving_average" by `average`; "image" each image by its own positives, then
    by the images (torchvision's way: a crowded picture weighs no more than any other). What would be divided by 0 is divided by 1.
    """
    if normalizer == "image":
        return 1 / (positives_B.clamp(min=1) * images.clamp(min=1))
    divisor = average if normalizer == "moving_average" else positives.clamp(min=1)
    return (1 / divisor).expand_as(positives_B)
