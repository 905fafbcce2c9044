"""ONE training step: match, forward, loss, backward, finite check, clip, update. Shapes: B batch, A anchors, G slots."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from detector.anchors import match
from detector.batch import Batch
from detector.loss import FIRST_AVERAGE, LossSums, detection_loss, image_weights, moving_average


class NonFiniteLoss(ArithmeticError):
    """The loss or its gradient is NaN or infinite; the weights were not touched. The message names the images."""


@dataclass(frozen=True)
class StepReport:
    """What one step saw, over the global batch."""

    classification: float
    """Normalised, as it was differentiated."""
    box: float
    """Normalised, without its weight."""
    positives: float
    """Positive anchors in the global batch."""
    gradient_norm: float
    """Before clipping."""
    loss_normalizer: float = FIRST_AVERAGE
    """Moving average of the positives, to be handed to the next step; a baseline, whose losses are means of their own, leaves it at its start."""


def split(batch: Batch, parts: int) -> list[Batch]:
    """The batch in that many parts as even as whole images allow, in order, the larger first; views, not copies."""
    columns = [getattr(batch, name).tensor_split(parts) for name in batch.__dataclass_fields__]
    return [Batch(*fields) for fields in zip(*columns, strict=True)]


def forward_loss(network: nn.Module, batch: Batch, anchors_A4: Tensor, slot_BA: Tensor, *, amp_dtype: torch.dtype | None, **kinds: Any) -> LossSums:
    """The loss sums of each image for matched anchors; only the network runs under autocast. `kinds` are the keywords of `detection_loss`."""
    with torch.autocast(batch.images.device.type, dtype=amp_dtype, enabled=amp_dtype is not None):
        logits_BAK, deltas_BA4 = network(batch.images)
    return detection_loss(logits_BAK, deltas_BA4, anchors_A4, batch.boxes_BG4, batch.labels_BG, slot_BA, **kinds)


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
    classification: str = "focal",
    box: str = "smooth_l1",
    normalizer: str = "batch",
    loss_normalizer: float = FIRST_AVERAGE,
    accumulate: int = 1,
    sum_over_ranks: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    ranks: int = 1,
) -> StepReport:
    """One update. `network` may be wrapped in DDP, whose mean over ranks is undone, so that what divides the loss is that of the global batch.

    `accumulate` runs this rank's batch in that many even parts one after the other, for the memory of one: the same gradient, except where batch
    normalisation sees a part only. Kinds and `normalizer` are those of `detection_loss` and `image_weights`, `loss_normalizer` is the last report's.
    Raises `NonFiniteLoss` on every rank, before the update, when any rank's loss or gradient is not finite: the averaged gradient is the same
    everywhere.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    parts = split(batch, accumulate)
    slots = [match(anchors_A4, part.boxes_BG4, part.labels_BG) for part in parts]
    # Matching needs no network, so the divisor of the whole global batch is known before the first part runs.
    positives_B = (torch.cat(slots) >= 0).sum(dim=1).float()
    positives, images = sum_over_ranks(torch.stack([positives_B.sum(), (batch.image_ids >= 0).sum().float()])).unbind()
    average = moving_average(loss_normalizer, positives)
    weights_B = image_weights(positives_B, positives=positives, images=images, average=average, normalizer=normalizer)
    kinds = dict(classification=classification, gamma=gamma, alpha=alpha, box=box, beta=beta)
    optimizer.zero_grad(set_to_none=True)
    own = []
    for place, (part, slot_BA, weights) in enumerate(zip(parts, slots, weights_B.tensor_split(accumulate), strict=True), start=1):
        with contextlib.nullcontext() if place == accumulate else without_reduction(network):
            sums = forward_loss(network, part, anchors_A4, slot_BA, amp_dtype=amp_dtype, **kinds)
            (ranks * weights * (sums.classification_B + box_weight * sums.box_B)).sum().backward()
        own.append(torch.stack(sums).detach())
    own_2B = torch.cat(own, dim=1)
    totals = sum_over_ranks((own_2B * weights_B).sum(dim=1)).tolist()
    report = StepReport(
        classification=totals[0],
        box=totals[1],
        positives=float(positives),
        gradient_norm=float(nn.utils.clip_grad_norm_(network.parameters(), clip_norm)),
        loss_normalizer=float(average),
    )
    check_finite(report, own_2B, batch.image_ids)
    optimizer.step()
    return report


def without_reduction(network: nn.Module) -> contextlib.AbstractContextManager:
    """DDP sums gradients over the ranks in every backward pass; within this it only adds to this rank's."""
    return network.no_sync() if isinstance(network, nn.parallel.DistributedDataParallel) else contextlib.nullcontext()


def check_finite(report: StepReport, own_2B: Tensor, image_ids: Tensor) -> None:
    """Raise `NonFiniteLoss` where a number of the report is not finite, and say whether it came from this rank's images."""
    if all(math.isfinite(number) for number in (report.gradient_norm, report.classification, report.box)):
        return
    blame = "the gradient, or the loss of another rank" if own_2B.isfinite().all() else "this rank's own loss"
    raise NonFiniteLoss(
        f"{blame} is not finite (classification {report.classification}, box {report.box}, gradient norm {report.gradient_norm}); "
        f"images of this rank: {image_ids.tolist()}; the weights were not updated"
    )
