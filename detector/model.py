"""RetinaNet: images -> class logits and box offsets of every anchor. Shapes: B batch, A anchors (a
those of a level), K classes, H W the canvas.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypedDict, Unpack, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detector.anchors import AnchorShapes, anchor_grid
from detector.backbone import DEEPEST_STRIDE, Backbone, Pyramid, check_choice
from detector.choices import AnchorConvention, BackboneName, HeadNorm, Norm, P6From, StrideIn
from detector.convolution import use_products
from detector.decode import DecodeSettings, Detections, decode_detections

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)
"""Mean and standard deviation of ImageNet's RGB pixels, 0..255."""

_ALIGNMENT = 8
"""A tensor core takes so many bfloat16 channels at once; cuDNN pads other numbers in every call."""


class PixelNetwork(nn.Module):
    """A network whose input is RGB pixels 0..255."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, values in (("pixel_mean", PIXEL_MEAN), ("pixel_std", PIXEL_STD)):
            vector = torch.tensor(values).view(1, 3, 1, 1)
            self.register_buffer(name, vector, persistent=False)

    def normalised(self, images_B3HW: Tensor) -> Tensor:
        """Pixels 0..255 (uint8 or float) -> float, about zero mean and unit variance,
        channels-last.
        """
        return ((images_B3HW - self.pixel_mean) / self.pixel_std).contiguous(
            memory_format=torch.channels_last
        )


class Head(nn.Module):
    """Four 3x3 convolutions and an output convolution, shared by all levels (section 4): (B, width,
    h, w) -> (B, h * w * anchors a position, outputs).
    """

    def __init__(self, outputs: int, anchors_a_position: int, *, width: int, norm: HeadNorm):
        super().__init__()
        check_choice("head_norm", norm, get_args(HeadNorm))
        self.outputs = outputs
        layers: list[nn.Module] = []
        for _ in range(4):
            # A normalisation has a shift of its own, which replaces the bias, as in torchvision's
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
        """`aligned`: every anchor gets a multiple of `_ALIGNMENT` channels; a view of the first
        `outputs` is returned.

        On an H200 the output convolution of 91 classes at 100x100, batch 16, then takes 3.0 instead
        of 3.7 ms forward and backward, and later kernels read rows that begin at whole words.
        """
        outputs = self.outputs
        if aligned:
            assert self.output.bias is not None
            outputs += -outputs % _ALIGNMENT
            weight, bias = (
                _with_zero_rows(parameter, self.outputs, outputs)
                for parameter in (self.output.weight, self.output.bias)
            )
            out = F.conv2d(self.tower(feature), weight, bias, padding=1)
        else:
            out = self.output(self.tower(feature))
        # (B, anchors * outputs, h, w) -> (B, h, w, anchors * outputs) -> (B, h * w * anchors,
        # outputs)
        return out.permute(0, 2, 3, 1).reshape(out.shape[0], -1, outputs)[..., : self.outputs]


def _with_zero_rows(parameter: Tensor, rows: int, padded: int) -> Tensor:
    """Every `rows` rows of the first axis, followed by zeros up to `padded` rows."""
    return F.pad(
        parameter.unflatten(0, (-1, rows)), (0, 0) * (parameter.ndim - 1) + (0, padded - rows)
    ).flatten(0, 1)


class ModelParts(TypedDict):
    """The settings that decide which weight files fit a network, beside its anchors."""

    backbone: BackboneName
    norm: Norm
    stride_in: StrideIn
    head_norm: HeadNorm
    width: int
    p6_from: P6From


class RetinaNet(PixelNetwork):
    """The dense network. Anchors are not part of it: `anchors(height, width)` are the boxes that
    its outputs belong to, level by level.
    """

    def __init__(
        self,
        *,
        classes: int,
        backbone: BackboneName = "resnet50",
        norm: Norm = "batch",
        frozen_stages: int = 0,
        stride_in: StrideIn = "3x3",
        head_norm: HeadNorm = "none",
        width: int = 256,
        p6_from: P6From = "c5",
        prior: float = 0.01,
        strides: Sequence[int] = (8, 16, 32, 64, 128),
        base_sizes: Sequence[float] = (32, 64, 128, 256, 512),
        scales: Sequence[float] = (1, 2 ** (1 / 3), 2 ** (2 / 3)),
        ratios: Sequence[float] = (0.5, 1, 2),
        convention: AnchorConvention = "exact",
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
        self.parts = ModelParts(
            backbone=backbone,
            norm=norm,
            stride_in=stride_in,
            head_norm=head_norm,
            width=width,
            p6_from=p6_from,
        )
        # The arguments may come from JSON, where a tuple is a list.
        self.anchor_shapes = AnchorShapes(
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
        assert self.class_head.output.bias is not None
        nn.init.constant_(self.class_head.output.bias, -math.log((1 - prior) / prior))
        use_products(self)
        self._grids: dict[tuple[int, int, torch.device], list[Tensor]] = {}

    def forward(
        self, images_B3HW: Tensor, *, by_level: bool = False
    ) -> tuple[Tensor, Tensor] | tuple[list[Tensor], list[Tensor]]:
        """RGB pixels 0..255 (uint8 or float), H and W multiples of 32 -> logits (B, A, K), offsets
        (B, A, 4), anchors in the order of `anchors`.

        `by_level`: lists of (B, a, K) and (B, a, 4), not joined. The loss does not need them
        joined, and joining takes a pass over the logits; in a compiled network this pass has a
        fifteenth of the bandwidth (1.6 ms of 16 x 800x800 with 91 classes on an H200).
        """
        levels = self.pyramid(self.backbone(self.normalised(images_B3HW)))
        # Measured as faster for bfloat16 outputs. The gradient of float32 outputs is large, and
        # padding makes another copy of it.
        aligned = by_level and images_B3HW.is_cuda and torch.is_autocast_enabled("cuda")
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
    def detect(
        self, images_B3HW: Tensor, sizes_B2: Tensor, **decode: Unpack[DecodeSettings]
    ) -> list[Detections]:
        """Detections of each image, XYXY px on the canvas, clipped to the picture's (height, width)
        on it. The network must be in evaluation mode.
        """
        assert not self.training
        height, width = images_B3HW.shape[2:]
        canvas = (height, width, images_B3HW.device)
        if canvas not in self._grids:
            self._grids[canvas] = self.anchors(height, width)
        logits_BAK, deltas_BA4 = self(images_B3HW)
        return decode_detections(logits_BAK, deltas_BA4, self._grids[canvas], sizes_B2, **decode)
