"""The backbone and pyramid of RetinaNet in the forms that the baselines take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict, Unpack

from torch import Tensor, nn

from detector.backbone import DEEPEST_STRIDE, Backbone, Pyramid
from detector.choices import BackboneName, Norm, P6From, StrideIn


class Residual(TypedDict, total=False):
    """Keywords of `Backbone`; those that are missing have its defaults."""

    norm: Norm
    frozen_stages: int
    stride_in: StrideIn


def residual(
    backbone: BackboneName, strides: Sequence[int], trunk: Residual, *, dilated: bool = False
) -> Backbone:
    """The stages of a residual network up to the last of `strides`. `dilated`: the last stage keeps
    the resolution of the one before it, and its filters reach as far as before (DC5).
    """
    body = Backbone(backbone, **(Residual(norm="batch") | trunk), strides=strides)
    if dilated:
        _dilate(body.get_submodule("layer4"))
    return body


def _dilate(stage: nn.Module) -> None:
    """Take the stride out of a residual stage; 3x3 convolutions behind it get dilation 2, as in
    torchvision's `replace_stride_with_dilation`.
    """
    behind = False
    for block in stage.children():
        inner = [child for child in block.children() if isinstance(child, nn.Conv2d)]
        for convolution in inner:
            if behind and convolution.kernel_size == (3, 3):
                convolution.dilation = convolution.padding = (2, 2)
            behind = behind or convolution.stride != (1, 1)
        for convolution in block.modules():
            if isinstance(convolution, nn.Conv2d):
                convolution.stride = (1, 1)


class PyramidFeatures(nn.Module):
    """Backbone and pyramid as torchvision's detectors take them: (B, 3, H, W) -> float32 levels by
    name, finest first. `pooled` adds a level of every second position of the last one.
    """

    def __init__(
        self,
        backbone: BackboneName,
        *,
        strides: Sequence[int],
        pooled: bool,
        width: int = 256,
        p6_from: P6From = "p5",
        **trunk: Unpack[Residual],
    ):
        super().__init__()
        self.body = residual(backbone, [s for s in strides if s <= DEEPEST_STRIDE], trunk)
        self.pyramid = Pyramid(self.body.channels, strides=strides, width=width, p6_from=p6_from)
        self.out_channels = width
        self.pooled = pooled

    def forward(self, images_B3HW: Tensor) -> dict[str, Tensor]:
        levels = {
            str(i): level.float() for i, level in enumerate(self.pyramid(self.body(images_B3HW)))
        }
        if self.pooled:
            levels["pool"] = nn.functional.max_pool2d(
                levels[str(len(levels) - 1)], kernel_size=1, stride=2
            )
        return levels
