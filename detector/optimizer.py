"""Parameter groups, the learning rate as a pure function of images seen, and the moving average of
the weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from detector.choices import OptimizerName, Schedule

_FUSED_DEVICES = frozenset({"cpu", "cuda", "mps", "xpu"})
"""Devices for which torch (2.11 and later) has one kernel for the whole update; on others the
option is an error.
"""


def build_optimizer(
    model: nn.Module,
    *,
    name: OptimizerName,
    learning_rate: float,
    weight_decay: float,
    momentum: float,
) -> torch.optim.Optimizer:
    """SGD with momentum, or AdamW, over all parameters that are not frozen, in two groups: matrices
    and filters have weight decay, vectors (norms, biases) have none.

    `momentum` is AdamW's first beta. Kernels are fused where the device supports it. `ValueError`
    when every parameter is frozen.

    SGD's momentum exists from the start, as zeros: torch would allocate it in the first update, and
    if that update is skipped, nothing would have been written to it.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise ValueError(
            f"{type(model).__name__}: all {sum(1 for _ in model.parameters())} parameters are"
            " frozen; at least one must be trained"
        )
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    fused = (
        True
        if all(p.device.type in _FUSED_DEVICES and p.is_floating_point() for p in trained)
        else None
    )
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate, betas=(momentum, 0.999), fused=fused)
    optimizer = torch.optim.SGD(groups, lr=learning_rate, momentum=momentum, fused=fused)
    if momentum:
        for parameter in trained:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def learning_rate_factor(
    images_seen: float,
    images_total: float,
    *,
    schedule: Schedule,
    warmup: float,
    milestones: Sequence[float],
) -> float:
    """The factor of the peak learning rate after `images_seen` of `images_total` images: a linear
    warm-up from 1/1000 over the first `warmup` (a share of all images), then the schedule.

    "cosine" falls to 1/100, "steps" to a tenth at each milestone (a share of all images),
    "constant" stays at 1.
    """
    progress = min(images_seen / images_total, 1.0)
    rise = 1.0 if progress >= warmup else 0.001 + 0.999 * progress / warmup
    if schedule == "steps":
        return rise * 0.1 ** sum(progress >= m for m in milestones)
    if schedule == "constant":
        return rise
    falling = max(0.0, (progress - warmup) / (1 - warmup))
    return rise * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * falling)))


def batch_factor(batch: int, configured: int, *, name: OptimizerName) -> float:
    """The factor of the learning rate where a step sees `batch` images instead of the `configured`
    ones: their ratio for "sgd" (Goyal et al. 2017, section 2.1), its square root for "adamw"
    (Malladi et al. 2022, section 4).
    """
    ratio = batch / configured
    return math.sqrt(ratio) if name == "adamw" else ratio


class MovingAverage:
    """Exponential moving average of all weights and running statistics. Its time constant is in
    images, so it means the same at any batch size.
    """

    def __init__(self, model: nn.Module, *, images: float):
        self.images = images
        self.seen = 0.0
        self.state = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, batch_images: int) -> None:
        """Move towards the model after `batch_images` more images. A young average follows
        faster: its time constant is at most a fifth of the images seen.
        """
        self.seen += batch_images
        keep = math.exp(-batch_images / min(self.images, max(self.seen / 5, 1.0)))
        now = model.state_dict()
        floating = [k for k, v in self.state.items() if v.is_floating_point()]
        # torch has no public name for this kernel.
        torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
            [self.state[k] for k in floating], [now[k].detach() for k in floating], 1 - keep
        )
        for k, v in self.state.items():
            if not v.is_floating_point():
                v.copy_(now[k])
