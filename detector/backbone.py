"""ResNet or ResNeXt under a feature pyramid: images -> P3..P7 (FPN, Lin et al. 2017; levels as in RetinaNet, section 4)."""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor, nn


class Backbone(nn.Module):
    """torchvision's residual network without its classifier: (B, 3, H, W) -> C3, C4, C5 at strides 8, 16, 32."""

    def __init__(self, name: str, *, norm: str):
        super().__init__()
        norm_layer = {"batch": nn.BatchNorm2d, "frozen": torchvision.ops.FrozenBatchNorm2d}[norm]
        network = getattr(torchvision.models, name)(weights=None, norm_layer=norm_layer)
        self.stem = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)
        self.layer1, self.layer2, self.layer3, self.layer4 = network.layer1, network.layer2, network.layer3, network.layer4
        wide = network.fc.in_features
        self.channels = (wide // 4, wide // 2, wide)

    def forward(self, images_B3HW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        c3 = self.layer2(self.layer1(self.stem(images_B3HW)))
        c4 = self.layer3(c3)
        return c3, c4, self.layer4(c4)


class Pyramid(nn.Module):
    """C3, C4, C5 -> P3..P7, all of `width` channels (the paper: 256); P6 by a stride-2 convolution on C5 or P5, P7 by another on relu(P6)."""

    def __init__(self, channels: tuple[int, int, int], *, width: int, p6_from: str):
        super().__init__()
        self.p6_from = p6_from
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.output = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in channels)
        self.p6 = nn.Conv2d(channels[-1] if p6_from == "c5" else width, width, 3, stride=2, padding=1)
        self.p7 = nn.Conv2d(width, width, 3, stride=2, padding=1)
        for convolution in (*self.lateral, *self.output, self.p6, self.p7):
            nn.init.kaiming_uniform_(convolution.weight, a=1)
            nn.init.zeros_(convolution.bias)

    def forward(self, c3: Tensor, c4: Tensor, c5: Tensor) -> list[Tensor]:
        inner5 = self.lateral[2](c5)
        inner4 = self.lateral[1](c4) + nn.functional.interpolate(inner5, scale_factor=2.0, mode="nearest")
        inner3 = self.lateral[0](c3) + nn.functional.interpolate(inner4, scale_factor=2.0, mode="nearest")
        p3, p4, p5 = (convolution(inner) for convolution, inner in zip(self.output, (inner3, inner4, inner5), strict=True))
        p6 = self.p6(c5 if self.p6_from == "c5" else p5)
        return [p3, p4, p5, p6, self.p7(torch.relu(p6))]
