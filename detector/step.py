"""One training step: match, forward, loss, backward, clip, finite check, update. Shapes: B batch, A
anchors, G slots.

A step does not wait for a number from the device, so the host runs ahead of it. `StepReport.read`
waits.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypedDict

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from detector.anchors import match, match_at_once
from detector.batch import Batch
from detector.choices import LossSettings
from detector.loss import (
    FIRST_AVERAGE,
    LossSums,
    dense_loss,
    detection_loss,
    image_weights,
    moving_average,
)

EAGER_ARITHMETIC = {"emulate_precision_casts": True, "eager_numerics.division_rounding": True}
"""Options of compiled matching: no fused multiply-add, division rounded to nearest. Without them
two kernels may compute two values of one overlap; an object, whose best anchors are found by
equality, then gets none. On an H200 the box loss of a small network was 1 % off
(`tests/gpu/test_detector.py`).
"""


class NonFiniteLoss(ArithmeticError):
    """The loss or its gradient is NaN or infinite, and the update was skipped. The message names
    the step, the rank and the images.
    """


@dataclass(frozen=True)
class StepNumbers:
    """The numbers of one step, over the global batch."""

    classification: float
    """The classification loss, divided by its normalizer: the value that was differentiated."""
    box: float
    """The box loss, divided by its normalizer, without `box_weight`."""
    positives: float
    """Positive anchors in the global batch."""
    gradient_norm: float
    """Before clipping."""
    loss_normalizer: float = FIRST_AVERAGE
    """Moving average of the positives. A baseline leaves it at its first value, because its losses
    are means already.
    """

    @property
    def finite(self) -> bool:
        """Whether the loss and the gradient norm of the global batch are finite, so that the update
        was made.
        """
        return all(
            math.isfinite(number) for number in (self.classification, self.box, self.gradient_norm)
        )


class StepReport:
    """The numbers of a step on their way to the host: the same on every rank, except for the
    images.
    """

    def __init__(self, values_5: Tensor, own_finite_B: Tensor, image_ids: Tensor):
        self.loss_normalizer = values_5[4]
        """Scalar on the device, an argument of the next step."""
        self.image_ids = image_ids
        self._own_finite_B = own_finite_B
        self._values_5 = values_5.to("cpu", non_blocking=True)
        self._copied = (
            torch.cuda.current_stream(values_5.device).record_event() if values_5.is_cuda else None
        )

    def read(self) -> StepNumbers:
        """The numbers; waits until the device has finished the step."""
        if self._copied is not None:
            self._copied.synchronize()
        return StepNumbers(*self._values_5.tolist())

    def blamed(self) -> list[int]:
        """Ids of this rank's images whose own loss is not finite."""
        return self.image_ids[~self._own_finite_B].tolist()


def nonfinite_loss(report: StepReport, *, step: int, rank: int) -> NonFiniteLoss:
    """The error of this rank for a report with numbers that are not finite."""
    numbers, blamed = report.read(), report.blamed()
    if blamed:
        cause = f"the loss of images {blamed} is not finite"
    else:
        cause = (
            "the gradient or the loss of another rank is not finite, the loss of images"
            f" {report.image_ids.tolist()} is finite"
        )
    return NonFiniteLoss(
        f"step {step}, rank {rank}: {cause} (classification {numbers.classification:g}, box"
        f" {numbers.box:g}, gradient norm {numbers.gradient_norm:g}); its update was skipped"
    )


def split(batch: Batch, parts: int) -> list[Batch]:
    """The batch in that many parts, as even as whole images allow, in order, the larger parts
    first; views, not copies.
    """
    columns = [getattr(batch, name).tensor_split(parts) for name in batch.__dataclass_fields__]
    return [Batch(*fields) for fields in zip(*columns, strict=True)]


def forward_loss(
    network: nn.Module,
    batch: Batch,
    anchors_A4: Tensor,
    slot_BA: Tensor,
    *,
    loss: LossSettings,
    amp_dtype: torch.dtype | None,
    dense: Callable[..., LossSums] | None = None,
) -> LossSums:
    """The loss sums of each image for matched anchors. Only the network runs under autocast."""
    with torch.autocast(batch.images.device.type, dtype=amp_dtype, enabled=amp_dtype is not None):
        logits, deltas = network(batch.images, by_level=True)
    return detection_loss(
        logits,
        deltas,
        anchors_A4,
        batch.boxes_BG4,
        batch.labels_BG,
        slot_BA,
        settings=loss,
        dense=dense,
    )


def train_step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    anchors_A4: Tensor,
    *,
    loss: LossSettings,
    learning_rate: float,
    clip_norm: float,
    amp_dtype: torch.dtype | None,
    loss_normalizer: float | Tensor = FIRST_AVERAGE,
    accumulate: int = 1,
    sum_over_ranks: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    ranks: int = 1,
    assign: Callable[..., Tensor] | None = None,
    dense: Callable[..., LossSums] | None = None,
) -> StepReport:
    """One update. `network` may be wrapped in DDP; its mean over ranks is undone, so that the
    divisor of the loss is that of the global batch.

    `accumulate` runs this rank's batch in that many even parts one after the other, in the memory
    of one part: the same gradient, except where batch normalisation sees a part only.
    `loss_normalizer` is that of the last report; `assign` and `dense` may be those of
    `compiled_parts`. Where the loss or gradient of any rank is not finite, no rank makes the
    update, see `update`.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    statistics = Statistics(network)
    parts = split(batch, accumulate)
    assign = assign or partial(match, **_thresholds(loss))
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
        positives_B, positives=positives, images=images, average=average, normalizer=loss.normalizer
    )
    optimizer.zero_grad(set_to_none=True)
    own = []
    for number, (part, slot_BA, weights) in enumerate(
        zip(parts, slots, weights_B.tensor_split(accumulate), strict=True), start=1
    ):
        with contextlib.nullcontext() if number == accumulate else without_reduction(network):
            sums = forward_loss(
                network, part, anchors_A4, slot_BA, loss=loss, amp_dtype=amp_dtype, dense=dense
            )
            total_B = sums.classification_B + loss.box_weight * sums.box_B
            (ranks * weights * total_B).sum().backward()
        own.append(torch.stack(sums).detach())
    own_2B = torch.cat(own, dim=1)
    losses_2 = sum_over_ranks((own_2B * weights_B).sum(dim=1))
    norm, finite = update(network, optimizer, statistics, losses_2, clip_norm=clip_norm)
    values_5 = torch.stack(
        [*losses_2, positives, norm, torch.where(finite, average, loss_normalizer)]
    )
    return StepReport(values_5, own_2B.isfinite().all(dim=0), batch.image_ids)


class CompiledParts(TypedDict):
    """Keywords of `train_step`."""

    assign: Callable[..., Tensor] | None
    dense: Callable[..., LossSums] | None


def _thresholds(loss: LossSettings) -> dict[str, float]:
    return {"high": loss.positive_iou, "low": loss.negative_iou}


def compiled_parts(loss: LossSettings) -> CompiledParts:
    """Matching and loss as compiled programs, for `train_step`; the network is compiled apart. The
    loss has the shapes of the canvas and no others. Matching serves any number of slots, because
    their padding follows the fullest picture of a batch.
    """
    matching = partial(match_at_once, **_thresholds(loss))
    assign = torch.compile(matching, dynamic=True, options=dict(EAGER_ARITHMETIC))
    return {"assign": assign, "dense": torch.compile(dense_loss, dynamic=False)}


class Statistics:
    """The running statistics of batch normalisation from before a step. They lie side by side in
    one tensor a dtype: a network has more than a hundred of them, and one kernel launch each would
    take longer than the copies.
    """

    def __init__(self, network: nn.Module):
        layers = [
            m
            for m in network.modules()
            if isinstance(m, _BatchNorm) and m.training and m.track_running_stats
        ]
        buffers = [buffer for layer in layers for buffer in layer.buffers(recurse=False)]
        self._groups = [
            [b for b in buffers if b.dtype == dtype] for dtype in {b.dtype for b in buffers}
        ]
        self._before = [_side_by_side(group) for group in self._groups]

    def restore_unless(self, finite: Tensor) -> None:
        """Put them back unless `finite`, a bool scalar on the device."""
        for group, before in zip(self._groups, self._before, strict=True):
            values = torch.where(finite, _side_by_side(group), before).split(
                [buffer.numel() for buffer in group]
            )
            # torch has no public name for this kernel.
            torch._foreach_copy_(  # pyright: ignore[reportPrivateImportUsage]
                group, [part.view_as(buffer) for part, buffer in zip(values, group, strict=True)]
            )


def _side_by_side(buffers: list[Tensor]) -> Tensor:
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
    """Clip the gradient and update, unless the gradient norm or one of the `losses` of the global
    batch is not finite. Weights, optimizer state and running statistics are then those from before
    the step. Returns the norm before clipping and whether all were finite, scalars on the device.

    The averaged gradient and the summed losses are the same on every rank, so all ranks decide
    alike.
    """
    norm = nn.utils.clip_grad_norm_(network.parameters(), clip_norm)
    finite = norm.isfinite() & losses.isfinite().all()
    statistics.restore_unless(finite)
    if all(group.get("fused") for group in optimizer.param_groups):
        # A gradient scaler sets this attribute too: with 1 a fused kernel changes nothing, and the
        # host does not wait for the answer. The type stubs do not know it.
        optimizer.found_inf = (~finite).float()  # pyright: ignore[reportAttributeAccessIssue]
        optimizer.step()
    elif finite:
        optimizer.step()
    return norm, finite


def without_reduction(network: nn.Module) -> contextlib.AbstractContextManager:
    """A context without the sum over ranks that DDP makes in every backward pass: gradients are
    only added to this rank's.
    """
    # A compiled network holds the original one.
    network = getattr(network, "_orig_mod", network)
    return (
        network.no_sync()
        if isinstance(network, nn.parallel.DistributedDataParallel)
        else contextlib.nullcontext()
    )
