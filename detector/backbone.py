"""A backbone under a feature pyramid: images -> P2 or P3 to P7 (FPN, Lin et al. 2017; levels as in
RetinaNet, section 4). `BACKBONES` is the one list of backbones: each is a function that builds its
stages.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Self, get_args

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from detector.choices import BackboneName, Norm, P6From, StrideIn

DEEPEST_STRIDE = 32
"""Canvas px between neighbouring positions of C5; the pyramid makes its coarser levels with
convolutions of its own.
"""

NormLayer = Callable[[int], nn.Module]
"""The number of channels -> a normalisation layer."""


class FrozenBatchNorm(nn.Module):
    """Batch normalisation with fixed statistics: y = x * scale + bias, (B, C, H, W) in the dtype of
    x. Nothing in it is trained.

    `detector.weight_families.fold` computes the two buffers from a file's four vectors, once, so
    that no step computes them again.
    """

    scale: Tensor
    bias: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("scale", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        # Under bfloat16 autocast the vectors are rounded too: 0.40 % from float32 at ResNet-50's
        # C5, where float32 vectors are 0.36 % away.
        scale, bias = (vector.to(x.dtype).view(1, -1, 1, 1) for vector in (self.scale, self.bias))
        return torch.addcmul(bias, x, scale)


NORMS: dict[Norm, NormLayer] = {
    "batch": nn.BatchNorm2d,
    "sync": nn.SyncBatchNorm,
    "frozen": FrozenBatchNorm,
    "group": partial(nn.GroupNorm, 32),
}


class Stage(NamedTuple):
    """One part of a backbone: (B, C, H, W) of the stage before, or the images -> its features."""

    name: str
    """In the state dict: `backbone.<name>`."""
    module: nn.Module
    stride: int
    """Canvas px between neighbouring positions of its features."""
    channels: int
    """Of its features."""


@dataclass(frozen=True)
class ResidualNetwork:
    """The shape of a ResNet (He et al. 2016) or ResNeXt (Xie et al. 2017) of torchvision. Called
    with a normalisation it builds the stages, without the classifier.
    """

    blocks: tuple[int, int, int, int]
    """Residual blocks of layer1 to layer4."""
    bottleneck: bool = True
    """Blocks of 1x1, 3x3, 1x1 convolutions; else of two 3x3 ones."""
    groups: int = 1
    width_per_group: int = 64

    def __call__(self, norm: NormLayer) -> list[Stage]:
        network = ResNet(
            Bottleneck if self.bottleneck else BasicBlock,
            list(self.blocks),
            groups=self.groups,
            width_per_group=self.width_per_group,
            norm_layer=norm,
        )
        stem = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)
        deepest = network.fc.in_features
        return [
            Stage("stem", stem, 4, 64),
            Stage("layer1", network.layer1, 4, deepest // 8),
            Stage("layer2", network.layer2, 8, deepest // 4),
            Stage("layer3", network.layer3, 16, deepest // 2),
            Stage("layer4", network.layer4, 32, deepest),
        ]

    @property
    def second_convolution(self) -> tuple[int, int]:
        """Output channels, and input channels of one group, of `layer1.0.conv2`: they tell a weight
        file's network where the numbers of blocks are the same.
        """
        return self.groups * self.width_per_group, self.width_per_group


BACKBONES: dict[BackboneName, Callable[[NormLayer], list[Stage]]] = {
    "resnet18": ResidualNetwork((2, 2, 2, 2), bottleneck=False),
    "resnet34": ResidualNetwork((3, 4, 6, 3), bottleneck=False),
    "resnet50": ResidualNetwork((3, 4, 6, 3)),
    "resnet101": ResidualNetwork((3, 4, 23, 3)),
    "resnet152": ResidualNetwork((3, 8, 36, 3)),
    "resnext50_32x4d": ResidualNetwork((3, 4, 6, 3), groups=32, width_per_group=4),
    "resnext101_32x8d": ResidualNetwork((3, 4, 23, 3), groups=32, width_per_group=8),
    "resnext101_64x4d": ResidualNetwork((3, 4, 23, 3), groups=64, width_per_group=4),
}


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
    """`ValueError` for a value that is none of the choices. A package that another version wrote
    may name such a part; without this check another part would be built.
    """
    if value not in choices:
        raise ValueError(f"{name} {value!r}: must be one of {', '.join(choices)}")


class Backbone(nn.Module):
    """The stages of one of `BACKBONES`: (B, 3, H, W) -> the features of each of `strides`, finest
    first. A residual network has 4 (C2), 8 (C3), 16 (C4) and 32 (C5).

    `frozen_stages` 1 freezes the first stage (the stem), 2 also the second (layer1, C2) and so on
    to 5: their weights get no gradient, no graph is built for them, and their batch normalisation
    stays in evaluation mode. `stride_in` "1x1" lets the first convolution of a bottleneck halve the
    resolution, as in He et al. (2016) and detectron2's files; "3x3" the second, as in
    torchvision's.
    """

    def __init__(
        self,
        name: BackboneName,
        *,
        norm: Norm,
        frozen_stages: int = 0,
        stride_in: StrideIn = "3x3",
        strides: Sequence[int] = (8, 16, 32),
    ):
        super().__init__()
        check_choice("backbone", name, BACKBONES)
        check_choice("norm", norm, NORMS)
        check_choice("stride_in", stride_in, get_args(StrideIn))
        # A stage above the coarsest level wanted would have weights without a gradient, which
        # DistributedDataParallel refuses.
        stages = [s for s in BACKBONES[name](NORMS[norm]) if s.stride <= strides[-1]]
        for stage in stages:
            self.add_module(stage.name, stage.module)
        self._names = tuple(stage.name for stage in stages)
        # Of two stages with one stride, such as the stem and layer1, the later one gives the level.
        last = {stage.stride: stage for stage in stages}
        self._feature_names = {last[stride].name for stride in strides}
        self.channels = tuple(last[stride].channels for stride in strides)
        """Of the features of each stride."""
        if stride_in == "1x1":
            for block in self.modules():
                if isinstance(block, Bottleneck):
                    block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
        self._frozen_names = self._names[:frozen_stages]
        for stage_name in self._frozen_names:
            getattr(self, stage_name).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for name in self._frozen_names:
            getattr(self, name).eval()
        return self

    def forward(self, images_B3HW: Tensor) -> list[Tensor]:
        out, features = images_B3HW, []
        for name in self._names:
            out = getattr(self, name)(out)
            if name in self._feature_names:
                features.append(out)
        return features


class _AddCoarser(torch.autograd.Function):
    """A level (B, C, H, W) plus the next coarser level (B, C, H / 2, W / 2), of which each value is
    added to a square of 2 x 2 (nearest neighbours).

    It adds through axes of two. An interpolation would run in float32 under autocast, and a GPU
    would sum its gradient by atomics.
    """

    @staticmethod
    def forward(ctx: Any, fine: Tensor, coarse: Tensor) -> Tensor:
        squares = fine.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
        return (squares + coarse[:, :, :, None, :, None]).flatten(4, 5).flatten(2, 3)

    @staticmethod
    def backward(ctx: Any, *outers: Tensor) -> tuple[Tensor, Tensor]:
        (outer,) = outers
        return outer, nn.functional.avg_pool2d(outer, 2, divisor_override=1)


class Pyramid(nn.Module):
    """Features of the backbone, finest first -> one level a stride, (B, width, H / stride, W /
    stride); the paper's width is 256.

    Up to stride 32 a level is a lateral plus the next coarser level; P6 (64) is a stride-2
    convolution on C5 or P5, P7 (128) another one on relu(P6).
    """

    def __init__(
        self,
        channels: Sequence[int],
        *,
        strides: Sequence[int] = (8, 16, 32, 64, 128),
        width: int,
        p6_from: P6From,
    ):
        super().__init__()
        check_choice("p6_from", p6_from, get_args(P6From))
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
                assert convolution.bias is not None
                nn.init.kaiming_uniform_(convolution.weight, a=1)
                nn.init.zeros_(convolution.bias)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        inner = self.lateral[-1](features[-1])
        levels = [self.output[-1](inner)]
        for i in range(len(features) - 2, -1, -1):
            inner = _AddCoarser.apply(self.lateral[i](features[i]), inner)
            levels.insert(0, self.output[i](inner))
        if self.p6 is not None:
            levels.append(self.p6(features[-1] if self.p6_from == "c5" else levels[-1]))
        if self.p7 is not None:
            levels.append(self.p7(torch.relu(levels[-1])))
        return levels
