"""A convolution that computes its weight gradient by matrix products, where oneDNN's own kernel is
slow. Shapes: B batch, C and O channels in and out.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SLOW_WEIGHT_GRADIENT = torch.backends.cpu.get_cpu_capability() == "AVX2"
"""On a CPU with AVX2 and without AVX-512, oneDNN computes the weight gradient of channels-last
float32 at most half as fast as its forward pass; matrix products reach two thirds and more
(docs/benchmarks.md). Other CPUs were not measured and use oneDNN.
"""


class Convolution(nn.Conv2d):
    """`nn.Conv2d` that computes the same weight gradient in another way; see `use_products`."""

    def forward(self, input: Tensor) -> Tensor:
        plain = (
            torch.is_autocast_enabled("cpu")
            or torch.compiler.is_compiling()
            or not (torch.is_grad_enabled() and self.weight.requires_grad)
        )
        if plain or input.device.type != "cpu" or input.dtype != torch.float32:
            return super().forward(input)
        return _ProductGradient.apply(input, self.weight, self.bias)


def use_products(network: nn.Module) -> None:
    """On CPUs where it is faster, let every convolution of stride 1 that keeps the size of the
    picture compute its weight gradient by matrix products.
    """
    for module in network.modules():
        if (
            SLOW_WEIGHT_GRADIENT
            and type(module) is nn.Conv2d
            and (module.stride, module.groups, module.dilation) == ((1, 1), 1, (1, 1))
        ):
            rows, columns = module.kernel_size
            if rows == columns and module.padding == (rows // 2, rows // 2) and rows % 2:
                # The same parameters, names and settings: torchvision builds most of these.
                module.__class__ = Convolution


class _ProductGradient(torch.autograd.Function):
    """A convolution of stride 1 with an odd square kernel, and padding that keeps the size."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, padding=weight.shape[2] // 2)

    @staticmethod
    @once_differentiable
    # torch gives once_differentiable no types, so the signature is not seen through it.
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *outers: Tensor
    ) -> tuple[Tensor | None, Tensor, Tensor | None]:
        (outer,) = outers
        x, weight = ctx.saved_tensors
        x_gradient, pad = None, weight.shape[2] // 2
        if ctx.needs_input_grad[0]:
            one, edge, mask = [1, 1], [pad, pad], [True, False, False]
            x_gradient = torch.ops.aten.convolution_backward(
                outer, x, weight, None, one, edge, one, False, [0, 0], 1, mask
            )[0]
        bias_gradient = outer.sum(dim=(0, 2, 3)) if ctx.needs_input_grad[2] else None
        return x_gradient, _weight_gradient(x, outer, weight.shape[2]), bias_gradient


def _weight_gradient(x: Tensor, outer: Tensor, kernel: int) -> Tensor:
    """Sum over pictures and positions of outer(y, x) * input(y + i, x + j): (B, C, H, W) and (B, O,
    H, W) -> (O, C, kernel, kernel), channels-last.

    Both become rows of positions with the same border. A shift by (i, j) is then a shift by i *
    width + j rows, and the sum is a matrix product.
    """
    border, width = kernel - 1, x.shape[3] + kernel - 1
    # (B, H, W, C) -> (B * (H + border) * width, C); the picture in the middle, its gradient at the
    # top left
    x_rows = F.pad(
        x.permute(0, 2, 3, 1), (0, 0, border // 2, border // 2, border // 2, border // 2)
    ).reshape(-1, x.shape[1])
    outer_rows = F.pad(outer.permute(0, 2, 3, 1), (0, 0, 0, border, 0, border)).reshape(
        -1, outer.shape[1]
    )
    length = len(x_rows) - border * (width + 1)
    outer_columns = outer_rows[:length].t()
    gradient = x.new_empty(outer.shape[1], kernel, kernel, x.shape[1])
    for i in range(kernel):
        for j in range(kernel):
            shift = i * width + j
            torch.mm(outer_columns, x_rows[shift : shift + length], out=gradient[:, i, j])
    return gradient.permute(0, 3, 1, 2)
