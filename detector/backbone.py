"""ResNet or ResNeXt under a feature pyramid: images -> P2 or P3 to P7 (FPN, Lin et al. 2017; levels
as in RetinaNet, section 4).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

NETWORKS = (
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d",
)  # fmt: skip
DEEPEST_STRIDE = 32
"""Canvas pixels between neighbouring positions of C5; the pyramid's coarser levels are made by
convolutions of its own.
"""


class FrozenBatchNorm(nn.Module):
    """Batch normalisation with fixed statistics, folded into y = x * scale + bias, (B, C, H, W) in
    the dtype of x. Nothing in it is trained.

    The two buffers are what `detector.weights.fold` makes of a file's four vectors, once, so that
    no step computes them again.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("scale", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        # Under bfloat16 autocast the vectors are rounded too: 0.40 % from float32 at ResNet-50's
        # C5, where float32 vectors are 0.36 % away.
        scale, bias = (vector.to(x.dtype).view(1, -1, 1, 1) for vector in (self.scale, self.bias))
        return torch.addcmul(bias, x, scale)


NORMS = {
    "batch": nn.BatchNorm2d,
    "sync": nn.SyncBatchNorm,
    "frozen": FrozenBatchNorm,
    "group": partial(nn.GroupNorm, 32),
}


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
    """`ValueError` for what is none of the choices: a package that another version wrote may name
    such a part, and another one would be built.
    """
    if value not in choices:
        raise ValueError(f"{name} {value!r}: must be one of {', '.join(choices)}")


class Backbone(nn.Module):
    """torchvision's residual network without its classifier: (B, 3, H, W) -> those of C2..C5 that
    have one of `strides`, finest first.

    `frozen_stages` 1 fixes the stem, 2 also layer1 (C2) and so on to 5: their weights get no
    gradient, no graph is built for them, and their batch normalisation stays in evaluation mode.
    `stride_in` "1x1" lets the first convolution of a bottleneck halve the resolution, as in the
    residual networks of He et al. (2016) and detectron2's files; "3x3" the second, as in
    torchvision's.
    """

    def __init__(
        self,
        name: str,
        *,
        norm: str,
        frozen_stages: int = 0,
        stride_in: str = "3x3",
        strides: Sequence[int] = (8, 16, 32),
    ):
        super().__init__()
        for part, value, choices in (
            ("backbone", name, NETWORKS),
            ("norm", norm, NORMS),
            ("stride_in", stride_in, ("3x3", "1x1")),
        ):
            check_choice(part, value, choices)
        network = getattr(torchvision.models, name)(weights=None, norm_layer=NORMS[norm])
        self.stem = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)
        self.strides = tuple(strides)
        layers = {4: network.layer1, 8: network.layer2, 16: network.layer3, 32: network.layer4}
        # What lies above the last level wanted would be weights without a gradient, which
        # DistributedDataParallel refuses.
        kept = {stride: layer for stride, layer in layers.items() if stride <= self.strides[-1]}
        for number, layer in enumerate(kept.values(), start=1):
            setattr(self, f"layer{number}", layer)
        self.channels = tuple(
            network.fc.in_features * stride // DEEPEST_STRIDE for stride in self.strides
        )
        if stride_in == "1x1":
            for block in self.modules():
                if isinstance(block, Bottleneck):
                    block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
        self.fixed = [self.stem, *kept.values()][:frozen_stages]
        for stage in self.fixed:
            stage.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode)
        for stage in self.fixed:
            stage.eval()
        return self

    def forward(self, images_B3HW: Tensor) -> list[Tensor]:
        out, features = self.stem(images_B3HW), []
        for number in range(1, self.strides[-1].bit_length() - 1):
            out = getattr(self, f"layer{number}")(out)
            if 2 ** (number + 1) in self.strides:
                features.append(out)
        return features


class AddCoarser(torch.autograd.Function):
    """A level (B, C, H, W) plus the next coarser one (B, C, H / 2, W / 2), each value of which is
    added to a square of 2 x 2: nearest neighbours.

    Added through axes of two and not by an interpolation, which autocast would do in float32 and
    whose gradient a GPU sums by atomics.
    """

    @staticmethod
    def forward(ctx: Any, fine: Tensor, coarse: Tensor) -> Tensor:
        squares = fine.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
        return (squares + coarse[:, :, :, None, :, None]).flatten(4, 5).flatten(2, 3)

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, Tensor]:
        return outer, nn.functional.avg_pool2d(outer, 2, divisor_override=1)


class Pyramid(nn.Module):
    """Features of the backbone -> one level a stride, all of `width` channels (the paper: 256).

    Up to stride 32 a level is a lateral with the coarser one added; P6 (64) is a stride-2
    convolution on C5 or P5, P7 (128) another on relu(P6).
    """

    def __init__(
        self,
        channels: Sequence[int],
        *,
        strides: Sequence[int] = (8, 16, 32, 64, 128),
        width: int,
        p6_from: str,
    ):
        super().__init__()
        check_choice("p6_from", p6_from, ("c5", "p5"))
        self.p6_from = p6_from
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.output = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in channels)
        self.p6 = (
            nn.Conv2d(channels[-1] if p6_from == "c5" else width, width, 3, stride=2, padding=1)
            if 64 in strides
            else None
        )
        self.p7 = nn.Conv2d(width, width, 3, stride=2, padding=1) if 128 in strides else None
        for convolution in self.modules():
            if isinstance(convolution, nn.Conv2d):
                nn.init.kaiming_uniform_(convolution.weight, a=1)
                nn.init.zeros_(convolution.bias)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        inner = self.lateral[-1](features[-1])
        levels = [self.output[-1](inner)]
        for i in range(len(features) - 2, -1, -1):
            inner = AddCoarser.apply(self.lateral[i](features[i]), inner)
            levels.insert(0, self.output[i](inner))
        if self.p6 is not None:
            levels.append(self.p6(features[-1] if self.p6_from == "c5" else levels[-1]))
        if self.p7 is not None:
            levels.append(self.p7(torch.relu(levels[-1])))
        return levels
