"""The floating point operations of a network's convolutions, by arithmetic: of a forward pass and
of a training step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Flops:
    """Operations for one image; a multiplication and an addition are two. Convolutions only."""

    forward: int
    train: int
    """Forward, the gradient of every trained weight and of every convolution's input that leads to
    one.
    """


def convolution_flops(model: nn.Module, height: int, width: int) -> Flops:
    """Count one image of (height, width) px. `model` must lie on the meta device, so nothing is
    computed and no memory is taken.

    A gradient is one more convolution with as many operations as the forward one. Grouped
    convolutions are counted by their own, smaller number of channels, which
    `torch.utils.flop_counter` gets wrong in the backward.
    """
    device = next(model.parameters()).device
    if device.type != "meta":
        raise ValueError(
            f"model on {device}: operations are counted on the meta device; build it under"
            " torch.device('meta') or copy it .to('meta')"
        )
    counted = {"forward": 0, "train": 0}

    def count(convolution: nn.Conv2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        # A weight is (out, in / groups, rows, columns); each output value sums over all but its
        # first axis.
        operations = 2 * output.numel() * convolution.weight[0].numel()
        passes = 1 + int(convolution.weight.requires_grad) + int(inputs[0].requires_grad)
        counted["forward"] += operations
        counted["train"] += passes * operations

    hooks = [
        module.register_forward_hook(count)
        for module in model.modules()
        if isinstance(module, nn.Conv2d)
    ]
    try:
        with torch.enable_grad():
            model(torch.empty(1, 3, height, width, device="meta"))
    finally:
        for hook in hooks:
            hook.remove()
    return Flops(**counted)
