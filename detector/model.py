"""RetinaNet: images -> class logits and box offsets of every anchor. Shapes: B batch, A anchors (a
those of a level), K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detector.anchors import anchor_grid
from detector.backbone import DEEPEST_STRIDE, Backbone, Pyramid, check_choice
from detector.convolution import take_products
from detector.decode import Detections, decode_detections

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)
"""Mean and spread of ImageNet's RGB pixels, 0..255."""


ALIGNMENT = 8
"""Channels of bfloat16 that a tensor core takes at once: cuDNN pads others in every call."""


class Head(nn.Module):
    """Four 3x3 convolutions and an output convolution, shared by all levels (section 4): (B, width,
    h, w) -> (B, h * w * anchors a position, outputs).
    """

    def __init__(self, outputs: int, anchors_a_position: int, *, width: int, norm: str):
        super().__init__()
        check_choice("head_norm", norm, ("none", "group"))
        self.outputs = outputs
        layers: list[nn.Module] = []
        for _ in range(4):
            # A normalisation with a shift of its own takes the bias's place, as in torchvision's
            # second version.
            layers.append(nn.Conv2d(width, width, 3, padding=1, bias=norm == "none"))
            if norm == "group":
                layers.append(nn.GroupNorm(32, width))
            layers.append(nn.ReLU(inplace=True))
        self.tower = nn.Sequential(*layers)
        self.output = nn.Conv2d(width, anchors_a_position * outputs, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, feature: Tensor, *, aligned: bool = False) -> Tensor:
        """`aligned`: every anchor gets a multiple of `ALIGNMENT` channels, of which the first are
        returned, as a view.

        On an H200 the output convolution of 91 classes at 100x100, batch 16, then takes 3.0 instead
        of 3.7 ms forward and backward, and what follows reads rows that begin at whole words.
        """
        weight, bias, outputs = self.output.weight, self.output.bias, self.outputs
        if aligned:
            outputs += -outputs % ALIGNMENT
            weight, bias = (
                spread(parameter, self.outputs, outputs) for parameter in (weight, bias)
            )
            out = F.conv2d(self.tower(feature), weight, bias, padding=1)
        else:
            out = self.output(self.tower(feature))
        # (B, anchors * outputs, h, w) -> (B, h, w, anchors * outputs) -> (B, h * w * anchors,
        # outputs)
        return out.permute(0, 2, 3, 1).reshape(out.shape[0], -1, outputs)[..., : self.outputs]


def spread(parameter: Tensor, rows: int, places: int) -> Tensor:
    """Each `rows` of the first axis followed by as many zeros as make `places`."""
    return F.pad(
        parameter.unflatten(0, (-1, rows)), (0, 0) * (parameter.ndim - 1) + (0, places - rows)
    ).flatten(0, 1)


class RetinaNet(nn.Module):
    """The dense network. Anchors are not part of it: `anchors(height, width)` gives the grid its
    outputs belong to, level by level.
    """

    def __init__(
        self,
        *,
        classes: int,
        backbone: str = "resnet50",
        norm: str = "batch",
        frozen_stages: int = 0,
        stride_in: str = "3x3",
        head_norm: str = "none",
        width: int = 256,
        p6_from: str = "c5",
        prior: float = 0.01,
        strides: Sequence[int] = (8, 16, 32, 64, 128),
        base_sizes: Sequence[float] = (32, 64, 128, 256, 512),
        scales: Sequence[float] = (1, 2 ** (1 / 3), 2 ** (2 / 3)),
        ratios: Sequence[float] = (0.5, 1, 2),
        convention: str = "exact",
    ):
        super().__init__()
        if classes < 1:
            raise ValueError(
                f"classes {classes}: must be at least 1; does the data set have categories?"
            )
        self.classes = classes
        if len(base_sizes) != len(strides):
            raise ValueError(
                f"base_sizes {tuple(base_sizes)}: {len(strides)} levels have strides"
                f" {tuple(strides)}; give one size a stride"
            )
        self.parts = dict(
            backbone=backbone,
            norm=norm,
            stride_in=stride_in,
            head_norm=head_norm,
            width=width,
            p6_from=p6_from,
        )
        # Built from a JSON description too, where a tuple is a list.
        self.anchor_shapes = dict(
            strides=tuple(strides),
            base_sizes=tuple(base_sizes),
            scales=tuple(scales),
            ratios=tuple(ratios),
            convention=convention,
        )
        laterals = [stride for stride in strides if stride <= DEEPEST_STRIDE]
        self.backbone = Backbone(
            backbone, norm=norm, frozen_stages=frozen_stages, stride_in=stride_in, strides=laterals
        )
        self.pyramid = Pyramid(
            self.backbone.channels, strides=strides, width=width, p6_from=p6_from
        )
        anchors_a_position = len(scales) * len(ratios)
        self.class_head = Head(classes, anchors_a_position, width=width, norm=head_norm)
        self.box_head = Head(4, anchors_a_position, width=width, norm=head_norm)
        nn.init.constant_(self.class_head.output.bias, -math.log((1 - prior) / prior))
        take_products(self)
        self.grids: dict[tuple[int, int, torch.device], list[Tensor]] = {}
        self.register_buffer(
            "pixel_mean", torch.tensor(PIXEL_MEAN).view(1, 3, 1, 1), persistent=False
        )
        self.register_buffer(
            "pixel_std", torch.tensor(PIXEL_STD).view(1, 3, 1, 1), persistent=False
        )

    def forward(
        self, images_B3HW: Tensor, *, by_level: bool = False
    ) -> tuple[Tensor, Tensor] | tuple[list[Tensor], list[Tensor]]:
        """RGB pixels 0..255 (uint8 or float), H and W multiples of 32 -> logits (B, A, K), offsets
        (B, A, 4), anchors in the order of `anchors`.

        `by_level`: lists of (B, a, K) and (B, a, 4), not joined. A loss needs no more, and joining
        takes a pass over the logits, and of a compiled network one at a fifteenth of the bandwidth
        (1.6 ms of 16 x 800x800 with 91 classes on an H200).
        """
        images = ((images_B3HW - self.pixel_mean) / self.pixel_std).contiguous(
            memory_format=torch.channels_last
        )
        levels = self.pyramid(self.backbone(images))
        # Measured and worth it for bfloat16 outputs; the gradient of float32 ones is large, and
        # padded it is there once more.
        aligned = by_level and images.is_cuda and torch.is_autocast_enabled("cuda")
        logits, offsets = (
            [head(level, aligned=aligned) for level in levels]
            for head in (self.class_head, self.box_head)
        )
        return (
            (logits, offsets) if by_level else (torch.cat(logits, dim=1), torch.cat(offsets, dim=1))
        )

    def anchors(self, height: int, width: int) -> list[Tensor]:
        """XYXY px anchors of each level, (A_level, 4), on the model's device. `ValueError` where
        the canvas does not fit the strides.
        """
        return [
            grid.to(self.pixel_mean.device)
            for grid in anchor_grid(height, width, **self.anchor_shapes)
        ]

    @torch.no_grad()
    def detect(self, images_B3HW: Tensor, sizes_B2: Tensor, **decode: Any) -> list[Detections]:
        """Detections of each image in the frame of the canvas, cut to the picture's (height, width)
        on it; `decode`: keywords of `decode_detections`.

        The network must be in evaluation mode.
        """
        assert not self.training
        height, width = images_B3HW.shape[2:]
        place = (height, width, images_B3HW.device)
        if place not in self.grids:
            self.grids[place] = self.anchors(height, width)
        return decode_detections(*self(images_B3HW), self.grids[place], sizes_B2, **decode)
