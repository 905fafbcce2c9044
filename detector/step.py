"""ONE training step: match, forward, loss, backward, clip, finite check, update. Shapes: B batch, A
anchors, G slots.

Nothing in a step asks the device for a number: the host runs ahead of it, and what a step saw is
read when `StepReport.read` is called.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from detector.anchors import match, match_at_once
from detector.batch import Batch
from detector.loss import (
    FIRST_AVERAGE,
    LossSums,
    dense_loss,
    detection_loss,
    image_weights,
    moving_average,
)

EAGER_ARITHMETIC = {"emulate_precision_casts": True, "eager_numerics.division_rounding": True}
"""Of compiled matching: no fused multiply-add, division rounded to nearest. Else two kernels get
two values of one overlap, and an object whose best anchors are found by equality gets none: on an
H200 the box loss of a small network was 1 % off (`tests/gpu/test_detector.py`)."""


class NonFiniteLoss(ArithmeticError):
    """The loss or its gradient is NaN or infinite; the update was left out. The message names the
    step, the rank and the images.
    """


@dataclass(frozen=True)
class StepNumbers:
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
    """Moving average of the positives; a baseline, whose losses are means of their own, leaves it
    at its start.
    """

    @property
    def finite(self) -> bool:
        """Whether the update was made: the loss and the gradient norm of the global batch are
        finite.
        """
        return all(
            math.isfinite(number) for number in (self.classification, self.box, self.gradient_norm)
        )


class StepReport:
    """The numbers of a step on their way to the host. The same on every rank, but for the images."""

    def __init__(self, values_5: Tensor, own_finite_B: Tensor, image_ids: Tensor):
        self.loss_normalizer = values_5[4]
        """Scalar on the device, to be handed to the next step."""
        self.own_finite_B, self.image_ids = own_finite_B, image_ids
        self.values_5 = values_5.to("cpu", non_blocking=True)
        self.copied = (
            torch.cuda.current_stream(values_5.device).record_event() if values_5.is_cuda else None
        )

    def read(self) -> StepNumbers:
        """Waits until the device has made the step."""
        if self.copied is not None:
            self.copied.synchronize()
        return StepNumbers(*self.values_5.tolist())

    def blamed(self) -> list[int]:
        """Ids of this rank's images whose own loss is not finite."""
        return self.image_ids[~self.own_finite_B].tolist()


def nonfinite_loss(report: StepReport, *, step: int, rank: int) -> NonFiniteLoss:
    """The error that a report whose numbers are not finite is on this rank."""
    numbers, blamed = report.read(), report.blamed()
    what = f"the loss of images {blamed} is not finite"
    if not blamed:
        what = (
            "the gradient or the loss of another rank is not finite, the loss of images"
            f" {report.image_ids.tolist()} is"
        )
    found = (
        f"classification {numbers.classification:g}, box {numbers.box:g}, gradient norm"
        f" {numbers.gradient_norm:g}"
    )
    return NonFiniteLoss(f"step {step}, rank {rank}: {what} ({found}); its update was left out")


def split(batch: Batch, parts: int) -> list[Batch]:
    """The batch in that many parts as even as whole images allow, in order, the larger first;
    views, not copies.
    """
    columns = [getattr(batch, name).tensor_split(parts) for name in batch.__dataclass_fields__]
    return [Batch(*fields) for fields in zip(*columns, strict=True)]


def forward_loss(
    network: nn.Module,
    batch: Batch,
    anchors_A4: Tensor,
    slot_BA: Tensor,
    *,
    amp_dtype: torch.dtype | None,
    **kinds: Any,
) -> LossSums:
    """The loss sums of each image for matched anchors; only the network runs under autocast.
    `kinds` are the keywords of `detection_loss`.
    """
    with torch.autocast(batch.images.device.type, dtype=amp_dtype, enabled=amp_dtype is not None):
        logits, deltas = network(batch.images, by_level=True)
    return detection_loss(
        logits, deltas, anchors_A4, batch.boxes_BG4, batch.labels_BG, slot_BA, **kinds
    )


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
    loss_normalizer: float | Tensor = FIRST_AVERAGE,
    accumulate: int = 1,
    sum_over_ranks: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    ranks: int = 1,
    assign: Callable[..., Tensor] = match,
    dense: Callable[..., LossSums] | None = None,
) -> StepReport:
    """One update. `network` may be wrapped in DDP, whose mean over ranks is undone, so that what
    divides the loss is that of the global batch.

    `accumulate` runs this rank's batch in that many even parts one after the other, for the memory
    of one: the same gradient, except where batch normalisation sees a part only. Kinds and
    `normalizer` are those of `detection_loss` and `image_weights`, `loss_normalizer` is the last
    report's, `assign` and `dense` may be those of `compiled_parts`. Where any rank's loss or
    gradient is not finite no rank makes the update, see `update`.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    statistics = Statistics(network)
    parts = split(batch, accumulate)
    slots = [assign(anchors_A4, part.boxes_BG4, part.labels_BG) for part in parts]
    # Matching needs no network, so the divisor of the whole global batch is known before the first
    # part runs.
    positives_B = (torch.cat(slots) >= 0).sum(dim=1).float()
    positives, images = sum_over_ranks(
        torch.stack([positives_B.sum(), (batch.image_ids >= 0).sum().float()])
    ).unbind()
    if not isinstance(loss_normalizer, Tensor):
        loss_normalizer = positives.new_full((), loss_normalizer)
    average = moving_average(loss_normalizer, positives)
    weights_B = image_weights(
        positives_B, positives=positives, images=images, average=average, normalizer=normalizer
    )
    kinds = dict(
        classification=classification, gamma=gamma, alpha=alpha, box=box, beta=beta, dense=dense
    )
    optimizer.zero_grad(set_to_none=True)
    own = []
    for place, (part, slot_BA, weights) in enumerate(
        zip(parts, slots, weights_B.tensor_split(accumulate), strict=True), start=1
    ):
        with contextlib.nullcontext() if place == accumulate else without_reduction(network):
            sums = forward_loss(network, part, anchors_A4, slot_BA, amp_dtype=amp_dtype, **kinds)
            (ranks * weights * (sums.classification_B + box_weight * sums.box_B)).sum().backward()
        own.append(torch.stack(sums).detach())
    own_2B = torch.cat(own, dim=1)
    losses_2 = sum_over_ranks((own_2B * weights_B).sum(dim=1))
    norm, finite = update(network, optimizer, statistics, losses_2, clip_norm=clip_norm)
    values_5 = torch.stack(
        [*losses_2, positives, norm, torch.where(finite, average, loss_normalizer)]
    )
    return StepReport(values_5, own_2B.isfinite().all(dim=0), batch.image_ids)


def compiled_parts() -> dict[str, Callable[..., Any]]:
    """Matching and loss as programs, for `train_step`; the network is another one. The loss has the
    shapes of the canvas and nothing else; matching serves any number of slots, whose padding
    follows the fullest picture of a batch.
    """
    assign = torch.compile(match_at_once, dynamic=True, options=dict(EAGER_ARITHMETIC))
    return {"assign": assign, "dense": torch.compile(dense_loss, dynamic=False)}


class Statistics:
    """The running statistics of batch normalisation as they were before a step: side by side in one
    tensor a dtype, because a network has a hundred and more of them and a launch each would take
    longer than they do.
    """

    def __init__(self, network: nn.Module):
        layers = [
            m
            for m in network.modules()
            if isinstance(m, _BatchNorm) and m.training and m.track_running_stats
        ]
        buffers = [buffer for layer in layers for buffer in layer.buffers(recurse=False)]
        self.groups = [
            [b for b in buffers if b.dtype == dtype] for dtype in {b.dtype for b in buffers}
        ]
        self.before = [side_by_side(group) for group in self.groups]

    def keep_if(self, finite: Tensor) -> None:
        """Go back to them unless `finite`, a bool scalar on the device."""
        for group, before in zip(self.groups, self.before, strict=True):
            kept = torch.where(finite, side_by_side(group), before).split(
                [buffer.numel() for buffer in group]
            )
            torch._foreach_copy_(
                group, [part.view_as(buffer) for part, buffer in zip(kept, group, strict=True)]
            )


def side_by_side(buffers: list[Tensor]) -> Tensor:
    return torch.cat([buffer.reshape(-1) for buffer in buffers])


@torch.no_grad()
def update(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    statistics: Statistics,
    losses: Tensor,
    *,
    clip_norm: float,
) -> tuple[Tensor, Tensor]:
    """Clip the gradient and update, unless its norm or one of the `losses` of the global batch is
    not finite: weights, optimiser state and running statistics are then those from before the step.
    Returns the norm before clipping and whether all were finite, scalars on the device.

    The averaged gradient and the summed losses are the same on every rank, so all decide alike.
    """
    norm = nn.utils.clip_grad_norm_(network.parameters(), clip_norm)
    finite = norm.isfinite() & losses.isfinite().all()
    statistics.keep_if(finite)
    if all(group.get("fused") for group in optimizer.param_groups):
        # What a gradient scaler says to a fused kernel, which then changes nothing; no host needs
        # to know.
        optimizer.found_inf = (~finite).float()
        optimizer.step()
    elif finite:
        optimizer.step()
    return norm, finite


def without_reduction(network: nn.Module) -> contextlib.AbstractContextManager:
    """DDP sums gradients over the ranks in every backward pass; within this it only adds to this
    rank's.
    """
    # A compiled network holds the one that it was made of.
    network = getattr(network, "_orig_mod", network)
    return (
        network.no_sync()
        if isinstance(network, nn.parallel.DistributedDataParallel)
        else contextlib.nullcontext()
    )
