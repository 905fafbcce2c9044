"""Batch normalisation with fixed statistics folded into the convolutions before it: a network that only detects needs none."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from detector.backbone import FrozenBatchNorm


def scale_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """What the normalisation does to each channel in evaluation mode, y = x * scale + shift, float64 (C,)."""
    if isinstance(norm, FrozenBatchNorm):
        return norm.scale.double(), norm.bias.double()
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return scale, norm.bias.double() - norm.running_mean.double() * scale


@torch.no_grad()
def fold_batch_norm(network: nn.Module) -> nn.Module:
    """Fold each batch normalisation that follows a convolution in its module into that one, in place and in float64. Returns the network.

    Same outputs in evaluation mode, up to rounding; other names in its state, and no training after it. Group normalisation, whose statistics are of
    each picture, stays.
    """
    for module in list(network.modules()):
        for (_, convolution), (name, norm) in pairwise(list(module.named_children())):
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, _BatchNorm | FrozenBatchNorm):
                scale, shift = scale_and_shift(norm)
                weight = convolution.weight * scale.view(-1, 1, 1, 1)
                if convolution.bias is not None:
                    shift = shift + convolution.bias * scale
                convolution.weight.copy_(weight)
                convolution.bias = nn.Parameter(shift.to(convolution.weight.dtype), requires_grad=False)
                setattr(module, name, nn.Identity())
    return network
