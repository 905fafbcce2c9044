"""One training step of a baseline: forward with losses, backward, clip, finite check, update.
Shapes: B batch, P parts of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from detector.batch import Batch
from detector.loss import FIRST_AVERAGE
from detector.step import Statistics, StepReport, split, update, without_reduction


def baseline_step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    *,
    learning_rate: float,
    clip_norm: float,
    box_weight: float,
    amp_dtype: torch.dtype | None,
    accumulate: int = 1,
    sum_over_ranks: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    ranks: int = 1,
) -> StepReport:
    """`train_step` for a `Baseline`, which may be wrapped in DDP: the weight of each part of the
    batch is its number of images, without fillers.

    The positives of the report are the objects of the global batch. Non-finite updates are skipped
    as in `train_step`; the images of a part are blamed together. Unlike `train_step` it waits for
    numbers from the device, as torchvision's detectors do.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    real_B = batch.image_ids >= 0
    counts = torch.stack([real_B.sum(), (batch.labels_BG >= 0).sum()]).float()
    images, objects = sum_over_ranks(counts).tolist()
    statistics = Statistics(network)
    optimizer.zero_grad(set_to_none=True)
    own, finite, shares = [], [], []
    for number, part in enumerate(split(batch, accumulate), start=1):
        used_B = part.image_ids >= 0
        # Every rank makes the same number of passes. A rank with fillers alone makes its passes
        # with weight 0.
        shares.append(float(used_B.sum()) / max(images, 1.0))
        if not shares[-1]:
            used_B = torch.ones_like(used_B)
        with contextlib.nullcontext() if number == accumulate else without_reduction(network):
            with torch.autocast(
                batch.images.device.type, dtype=amp_dtype, enabled=amp_dtype is not None
            ):
                losses_2 = network(
                    *(
                        column[used_B]
                        for column in (part.images, part.sizes_B2, part.boxes_BG4, part.labels_BG)
                    )
                )
            (ranks * shares[-1] * (losses_2[0] + box_weight * losses_2[1])).backward()
        own.append(losses_2.detach())
        finite.append(losses_2.detach().isfinite().all().expand(len(part.images)))
    own_2P = torch.stack(own, dim=1)
    losses_2 = sum_over_ranks(own_2P @ own_2P.new_tensor(shares))
    norm, _ = update(network, optimizer, statistics, losses_2, clip_norm=clip_norm)
    values_5 = torch.stack(
        [*losses_2, losses_2.new_tensor(objects), norm, losses_2.new_tensor(FIRST_AVERAGE)]
    )
    return StepReport(values_5, torch.cat(finite), batch.image_ids)
