"""A RetinaNet of 0.6 M parameters with the layers of a real one: residual blocks, normalisation,
pyramid, heads. The laws of a step, a checkpoint or a folded network hold for it as for a ResNet.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial
from unittest import mock

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from detector.backbone import BACKBONES, NormLayer, Stage
from detector.model import RetinaNet

CHANNELS = 32
"""Of the backbone: as few as group normalisation with its 32 groups takes."""
WIDTH = 64
"""Of pyramid and heads: with 32, a group of the single cell of P7 would have a single value, which
group normalisation refuses in training.
"""


def _stages(block: type[BasicBlock] | type[Bottleneck], norm: NormLayer) -> list[Stage]:
    """A stem and four layers of one residual block each, at the strides of a ResNet."""

    def layer(stride: int) -> nn.Sequential:
        shortcut = nn.Sequential(
            nn.Conv2d(CHANNELS, CHANNELS, 1, stride=stride, bias=False), norm(CHANNELS)
        )
        inner = CHANNELS if block is BasicBlock else CHANNELS // Bottleneck.expansion
        width = {} if block is BasicBlock else {"base_width": 64 * CHANNELS // inner}
        return nn.Sequential(
            block(
                CHANNELS, inner, stride, shortcut if stride > 1 else None, norm_layer=norm, **width
            )
        )

    stem = nn.Sequential(
        nn.Conv2d(3, CHANNELS, 7, stride=2, padding=3, bias=False),
        norm(CHANNELS),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2, padding=1),
    )
    layers = [layer(stride) for stride in (1, 2, 2, 2)]
    return [
        Stage("stem", stem, 4, CHANNELS),
        *(
            Stage(f"layer{i}", module, 2 ** (i + 1), CHANNELS)
            for i, module in enumerate(layers, start=1)
        ),
    ]


def toy_backbones() -> AbstractContextManager[object]:
    """Within it the backbones "toy" (basic blocks) and "toy_bottleneck" exist."""
    return mock.patch.dict(
        BACKBONES,
        {"toy": partial(_stages, BasicBlock), "toy_bottleneck": partial(_stages, Bottleneck)},
    )


TOY = {
    "classes": 2,
    "backbone": "toy",
    "width": WIDTH,
    "base_sizes": [8, 16, 32, 64, 128],
}
"""Keywords of `RetinaNet`; small anchors, so that the objects of a 64x96 canvas have some."""


def toy_retinanet(**changed: object) -> RetinaNet:
    """`changed`: keywords of `RetinaNet`."""
    torch.manual_seed(3)
    with toy_backbones():
        return RetinaNet(**(TOY | {"head_norm": "group", "norm": "frozen"} | changed))
