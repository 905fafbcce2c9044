"""SSD (Liu et al. 2016) on a residual network, and DSSD (Fu et al. 2017), which adds deconvolution
modules: torchvision's matching, loss and decoding on features of our own.

The levels have the strides of RetinaNet's (8 to 128 px), not the paper's seven up to a single cell,
and every level the same aspect ratios. Shapes: B batch, L levels, A default boxes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Unpack, cast

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD, SSDHead
from torchvision.ops import box_iou

from detector.baseline import Found, Objects, full_precision
from detector.choices import BackboneName
from detector.decode import DecodeSettings
from detector.trunk import Residual, residual

_STRIDES = (8, 16, 32, 64, 128)
_SIZES = (32.0, 64.0, 128.0, 256.0, 512.0)
_RATIOS = (0.5, 1.0, 2.0)
_GROUPS = 32


def ssd(
    *,
    classes: int,
    backbone: BackboneName = "resnet50",
    width: int = 256,
    base_sizes: Sequence[float] = _SIZES,
    ratios: Sequence[float] = _RATIOS,
    **trunk: Unpack[Residual],
) -> ShotDetector:
    """SSD: a 3x3 convolution on each level predicts classes and boxes."""
    features = _Levels(backbone, width, trunk)
    head = SSDHead(list(features.channels), [len(ratios) + 1] * len(_STRIDES), classes + 1)
    return ShotDetector(features, head, classes, base_sizes, ratios)


def dssd(
    *,
    classes: int,
    backbone: BackboneName = "resnet50",
    width: int = 256,
    base_sizes: Sequence[float] = _SIZES,
    ratios: Sequence[float] = _RATIOS,
    **trunk: Unpack[Residual],
) -> ShotDetector:
    """DSSD: each level is combined with the coarser ones, and a residual block stands before each
    prediction (the paper's Figures 2c and 3). Its modules have 2 x `width` channels, the paper's
    512 for 256, and group normalisation in place of batch normalisation, which a level of one cell
    does not take in training.
    """
    features = _Deconvolution(_Levels(backbone, width, trunk), width)
    head = SSDHead([4 * width] * len(_STRIDES), [len(ratios) + 1] * len(_STRIDES), classes + 1)
    return ShotDetector(features, head, classes, base_sizes, ratios)


class _Levels(nn.Module):
    """(B, 3, H, W) -> the levels, finest first: C3, C5 at stride 16 (à trous, as in DSSD), then
    pairs of 1x1 and stride-2 3x3 convolutions.
    """

    def __init__(self, backbone: BackboneName, width: int, trunk: Residual):
        super().__init__()
        self.body = residual(backbone, (8, 32), trunk, dilated=True)
        self.channels = (*self.body.channels, *(2 * width for _ in _STRIDES[2:]))
        self.extra = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, width, 1),
                nn.ReLU(inplace=True),
                nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
                nn.ReLU(inplace=True),
            )
            for channels in self.channels[1:-1]
        )
        for convolution in self.extra.modules():
            if isinstance(convolution, nn.Conv2d):
                nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
                nn.init.zeros_(cast(Tensor, convolution.bias))

    def forward(self, images_B3HW: Tensor) -> list[Tensor]:
        levels = self.body(images_B3HW)
        for extra in self.extra:
            levels.append(extra(levels[-1]))
        return levels


class _Deconvolution(nn.Module):
    """The levels of SSD -> as many of DSSD with 4 x `width` channels."""

    def __init__(self, levels: _Levels, width: int):
        super().__init__()
        self.levels = levels
        inner = 2 * width
        self.top = nn.Conv2d(levels.channels[-1], inner, 1)
        self.laterals = nn.ModuleList(
            nn.Sequential(
                *_normalised(nn.Conv2d(channels, inner, 3, padding=1, bias=False)),
                nn.ReLU(inplace=True),
                *_normalised(nn.Conv2d(inner, inner, 3, padding=1, bias=False)),
            )
            for channels in levels.channels[:-1]
        )
        self.ups = nn.ModuleList(
            nn.Sequential(
                nn.ConvTranspose2d(inner, inner, 2, stride=2),
                *_normalised(nn.Conv2d(inner, inner, 3, padding=1, bias=False)),
            )
            for _ in levels.channels[:-1]
        )
        self.predictions = nn.ModuleList(_Prediction(inner, width) for _ in levels.channels)

    def forward(self, images_B3HW: Tensor) -> list[Tensor]:
        levels = self.levels(images_B3HW)
        combined = [self.top(levels[-1])]
        for level, lateral, up in zip(
            levels[-2::-1], reversed(self.laterals), reversed(self.ups), strict=True
        ):
            height, width = level.shape[2:]
            # A level with an odd extent has a coarser one of half of it, rounded up.
            risen = up(combined[0])[:, :, :height, :width]
            combined.insert(0, torch.relu(lateral(level) * risen))
        return [module(level) for module, level in zip(self.predictions, combined, strict=True)]


class _Prediction(nn.Module):
    """A residual block before the prediction, (B, C, h, w) -> (B, 4 x `width`, h, w)."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.inner = nn.Sequential(
            *_normalised(nn.Conv2d(channels, width, 1, bias=False)),
            nn.ReLU(inplace=True),
            *_normalised(nn.Conv2d(width, width, 1, bias=False)),
            nn.ReLU(inplace=True),
            *_normalised(nn.Conv2d(width, 4 * width, 1, bias=False)),
        )
        self.shortcut = nn.Sequential(*_normalised(nn.Conv2d(channels, 4 * width, 1, bias=False)))

    def forward(self, level: Tensor) -> Tensor:
        return torch.relu(self.inner(level) + self.shortcut(level))


def _normalised(convolution: nn.Conv2d) -> tuple[nn.Conv2d, nn.GroupNorm]:
    return convolution, nn.GroupNorm(_GROUPS, convolution.out_channels)


class DefaultBoxes(nn.Module):
    """The default boxes of SSD (section 2.2): at each position one box for each aspect ratio with
    the level's size, and a square of the geometric mean of this size and the next level's.
    """

    def __init__(self, sizes: Sequence[float], ratios: Sequence[float]):
        super().__init__()
        self.sizes, self.ratios = tuple(sizes), tuple(ratios)

    def forward(self, images: ImageList, levels: Sequence[Tensor]) -> list[Tensor]:
        """The boxes of each image, XYXY px, float32 (A, 4), in the order of levels, rows, columns,
        then ratios and the square.
        """
        following = (*self.sizes[1:], self.sizes[-1] * self.sizes[-1] / self.sizes[-2])
        boxes_A4 = torch.cat(
            [
                _grid(level.shape[2], level.shape[3], stride, self._shapes(size, larger))
                for level, stride, size, larger in zip(
                    levels, _STRIDES, self.sizes, following, strict=True
                )
            ]
        ).to(images.tensors.device)
        return [boxes_A4] * len(images.image_sizes)

    def _shapes(self, size: float, larger: float) -> Tensor:
        """(width, height) px of the boxes of a position, (S, 2)."""
        square = math.sqrt(size * larger)
        ratios = [(size / math.sqrt(r), size * math.sqrt(r)) for r in self.ratios]
        return torch.tensor([*ratios, (square, square)])


def _grid(rows: int, columns: int, stride: int, shapes_S2: Tensor) -> Tensor:
    """Boxes of these shapes about the middle of each cell, XYXY px (rows * columns * S, 4)."""
    y, x = torch.meshgrid(
        (torch.arange(rows) + 0.5) * stride, (torch.arange(columns) + 0.5) * stride, indexing="ij"
    )
    centres_P12 = torch.stack([x, y], dim=-1).reshape(-1, 1, 2)
    return torch.cat([centres_P12 - shapes_S2 / 2, centres_P12 + shapes_S2 / 2], dim=-1).reshape(
        -1, 4
    )


class ShotDetector(SSD):
    """A `BaselineNetwork` of torchvision's modules, without their resizing and normalising. Its
    label 0 is the background. Of the background boxes the three hardest for each matched box are
    trained (hard negative mining), so an image without objects has no loss.
    """

    def __init__(
        self,
        features: nn.Module,
        head: SSDHead,
        classes: int,
        sizes: Sequence[float],
        ratios: Sequence[float],
    ):
        boxes = cast(DefaultBoxGenerator, DefaultBoxes(sizes, ratios))
        super().__init__(features, boxes, size=(1, 1), num_classes=classes + 1, head=head)

    def _outputs(self, images: ImageList) -> tuple[dict[str, Tensor], list[Tensor]]:
        levels = [level.float() for level in self.backbone(images.tensors)]
        with full_precision(images):
            return self.head(levels), self.anchor_generator(images, levels)

    def losses(self, images: ImageList, objects: Sequence[Objects]) -> tuple[Tensor, Tensor]:
        outputs, anchors = self._outputs(images)
        targets = [{"boxes": boxes, "labels": labels + 1} for boxes, labels in objects]
        matched = [
            self.proposal_matcher(box_iou(boxes, anchors_A4))
            if len(boxes)
            else torch.full((len(anchors_A4),), -1, device=anchors_A4.device)
            for (boxes, _), anchors_A4 in zip(objects, anchors, strict=True)
        ]
        with full_precision(images):
            losses = self.compute_loss(targets, outputs, anchors, matched)
        return losses["classification"], losses["bbox_regression"]

    def found(self, images: ImageList, settings: DecodeSettings) -> list[Found]:
        self.score_thresh = settings["score_threshold"]
        self.nms_thresh = settings["nms_threshold"]
        self.detections_per_img = settings["max_detections"]
        self.topk_candidates = settings["top_per_level"]
        outputs, anchors = self._outputs(images)
        with full_precision(images):
            found = self.postprocess_detections(outputs, anchors, images.image_sizes)
        return [Found(image["boxes"], image["scores"], image["labels"] - 1) for image in found]
