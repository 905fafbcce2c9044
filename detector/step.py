"""ONE training step: forward, loss, backward, finite check, clip, update. Shapes: B batch, A anchors, G slots."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from detector.anchors import match
from detector.batch import Batch
from detector.loss import detection_loss


class NonFiniteLoss(ArithmeticError):
    """The loss or its gradient is NaN or infinite; the weights were not touched. The message names the images."""


@dataclass(frozen=True)
class StepReport:
    """What one step saw, over the global batch."""

    classification: float
    box: float
    positives: float
    """Positive anchors in the global batch."""
    gradient_norm: float
    """Before clipping."""


def forward_loss(
    network: nn.Module, batch: Batch, anchors_A4: Tensor, *, gamma: float, alpha: float, beta: float, amp_dtype: torch.dtype | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of the classification and the box loss and the positive anchors of this rank's batch, float32 scalars."""
    with torch.autocast(batch.images.device.type, dtype=amp_dtype, enabled=amp_dtype is not None):
        logits_BAK, deltas_BA4 = network(batch.images)
    matches = match(anchors_A4, batch.boxes_BG4, batch.labels_BG)
    sums = detection_loss(logits_BAK, deltas_BA4, anchors_A4, batch.boxes_BG4, batch.labels_BG, matches.slot_BA, gamma=gamma, alpha=alpha, beta=beta)
    return sums.classification, sums.box, matches.positives


def train_step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    anchors_A4: Tensor,
    *,
    learning_rate: float,
    clip_norm: float,
    box_weight: float,
    gamma: float,
    alpha: float,
    beta: float,
    amp_dtype: torch.dtype | None,
    sum_over_ranks: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    ranks: int = 1,
) -> StepReport:
    """One update. `network` may be wrapped in DDP, whose mean over ranks is undone, so that the loss is divided by the positives of the global batch.

    Raises `NonFiniteLoss` on every rank, before the update, when any rank's loss or gradient is not finite: the averaged gradient is the same
    everywhere.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    classification, box, positives = forward_loss(network, batch, anchors_A4, gamma=gamma, alpha=alpha, beta=beta, amp_dtype=amp_dtype)
    totals = sum_over_ranks(torch.stack([classification.detach(), box.detach(), positives]))
    normaliser = totals[2].clamp(min=1.0)
    loss = (classification + box_weight * box) * (ranks / normaliser)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    gradient_norm = float(nn.utils.clip_grad_norm_(network.parameters(), clip_norm))
    report = StepReport(
        classification=float(totals[0] / normaliser), box=float(totals[1] / normaliser), positives=float(totals[2]), gradient_norm=gradient_norm
    )
    if not (math.isfinite(gradient_norm) and math.isfinite(report.classification) and math.isfinite(report.box)):
        mine = not math.isfinite(float(classification.detach() + box.detach()))
        blame = "this rank's own loss" if mine else "the gradient, or the loss of another rank"
        raise NonFiniteLoss(
            f"{blame} is not finite (classification {report.classification}, box {report.box}, gradient norm {gradient_norm}); "
            f"images of this rank: {batch.image_ids.tolist()}; the weights were not updated"
        )
    optimizer.step()
    return report
