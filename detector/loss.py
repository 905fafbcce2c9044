"""Focal loss and box loss, as sums over the batch; the caller divides by the positives. Shapes: B batch, A anchors, K classes, G slots."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from detector.anchors import IGNORED
from detector.boxes import encode


class LossSums(NamedTuple):
    classification: Tensor
    """Sum of the focal loss over all anchors that are not ignored, float32 scalar."""
    box: Tensor
    """Sum of smooth L1 over the positive anchors and the four offsets, float32 scalar."""


def focal_term(logits: Tensor, *, positive: bool, gamma: float, alpha: float) -> Tensor:
    """FL(p_t) = -alpha_t (1 - p_t)^gamma log(p_t) (section 3.2), elementwise, for entries that are all positive or all negative.

    (1 - p_t)^gamma is taken as exp(gamma * log(1 - p_t)): finite in value and gradient for every finite logit, also for gamma below 1.
    """
    signed = logits if positive else -logits
    weight = alpha if positive else 1 - alpha
    return weight * torch.exp(-gamma * F.softplus(signed)) * F.softplus(-signed)


def detection_loss(
    logits_BAK: Tensor,
    deltas_BA4: Tensor,
    anchors_A4: Tensor,
    boxes_BG4: Tensor,
    labels_BG: Tensor,
    slot_BA: Tensor,
    *,
    gamma: float,
    alpha: float,
    beta: float,
) -> LossSums:
    """The two sums of L = L_cls + lambda L_box for matched anchors, computed in float32 whatever the network's dtype.

    No one-hot target is built: every entry counts as negative first, then the (few) positive entries are corrected.
    """
    logits_BAK = logits_BAK.float()
    kept_BA = slot_BA != IGNORED
    negatives = (focal_term(logits_BAK, positive=False, gamma=gamma, alpha=alpha) * kept_BA[..., None]).sum()
    image_P, anchor_P = torch.nonzero(slot_BA >= 0, as_tuple=True)
    slot_P = slot_BA[image_P, anchor_P]
    logits_P = logits_BAK[image_P, anchor_P, labels_BG[image_P, slot_P]]
    correction = focal_term(logits_P, positive=True, gamma=gamma, alpha=alpha) - focal_term(logits_P, positive=False, gamma=gamma, alpha=alpha)
    target_P4 = encode(boxes_BG4[image_P, slot_P], anchors_A4[anchor_P])
    box = F.smooth_l1_loss(deltas_BA4[image_P, anchor_P].float(), target_P4, beta=beta, reduction="sum")
    return LossSums(classification=negatives + correction.sum(), box=box)
