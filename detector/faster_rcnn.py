"""torchvision's Faster R-CNN: on RetinaNet's backbone and pyramid (FPN, Lin et al. 2017), and on C4
with the fifth stage as its head (Ren et al. 2015 with the networks of He et al. 2016).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self, Unpack, cast

from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FasterRCNN, FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import initLevelMapper

from detector.backbone import Backbone
from detector.baseline import Found, Objects, full_precision
from detector.choices import BackboneName
from detector.decode import DecodeSettings
from detector.trunk import PyramidFeatures, Residual, residual

_STRIDES = (4, 8, 16, 32)
"""Levels from which regions are cropped; proposals also come from a coarser one, stride 64."""
_SIZES = (32.0, 64.0, 128.0, 256.0, 512.0)
_RATIOS = (0.5, 1.0, 2.0)


def faster_rcnn(
    *,
    classes: int,
    backbone: BackboneName = "resnet50",
    width: int = 256,
    base_sizes: Sequence[float] = _SIZES,
    ratios: Sequence[float] = _RATIOS,
    **trunk: Unpack[Residual],
) -> RegionDetector:
    """Faster R-CNN with FPN. Each level has anchors of one of `base_sizes`."""
    features = PyramidFeatures(backbone, strides=_STRIDES, pooled=True, width=width, **trunk)
    return RegionDetector(
        features,
        classes + 1,
        rpn_anchor_generator=_anchors([(size,) for size in base_sizes], ratios),
        box_roi_pool=_regions(_STRIDES, output_size=7),
    )


def faster_rcnn_c4(
    *,
    classes: int,
    backbone: BackboneName = "resnet50",
    base_sizes: Sequence[float] = _SIZES,
    ratios: Sequence[float] = _RATIOS,
    **trunk: Unpack[Residual],
) -> RegionDetector:
    """Faster R-CNN on C4, stride 16, with anchors of all `base_sizes` at each position. It has
    neither the box refinement, the context nor the several scales of He et al.'s Faster R-CNN+++.
    """
    whole = residual(backbone, (32,), trunk)
    frozen = trunk.get("frozen_stages", 0) >= 5
    return RegionDetector(
        _FourStages(residual(backbone, (16,), trunk)),
        rpn_anchor_generator=_anchors([tuple(base_sizes)], ratios),
        box_roi_pool=_regions((16,), output_size=14),
        box_head=_FifthStage(whole.get_submodule("layer4"), frozen=frozen),
        box_predictor=FastRCNNPredictor(whole.channels[0], classes + 1),
    )


def _anchors(sizes: Sequence[tuple[float, ...]], ratios: Sequence[float]) -> AnchorGenerator:
    # torchvision annotates whole numbers; its arithmetic takes any.
    return AnchorGenerator(cast(tuple, tuple(sizes)), (tuple(ratios),) * len(sizes))


def _regions(strides: Sequence[int], *, output_size: int) -> MultiScaleRoIAlign:
    pool = MultiScaleRoIAlign([str(i) for i in range(len(strides))], output_size, sampling_ratio=2)
    # torchvision infers the scales from the first pictures that it sees, but on a canvas the
    # features cover more than a picture.
    pool.scales = [1 / stride for stride in strides]
    pool.map_levels = initLevelMapper(*(int(math.log2(s)) for s in (strides[0], strides[-1])))
    return pool


class _FourStages(nn.Module):
    """(B, 3, H, W) -> C4, float32 (B, C, H / 16, W / 16), under the name "0"."""

    def __init__(self, body: Backbone):
        super().__init__()
        self.body = body
        (self.out_channels,) = body.channels

    def forward(self, images_B3HW: Tensor) -> dict[str, Tensor]:
        (features,) = self.body(images_B3HW)
        return {"0": features.float()}


class _FifthStage(nn.Module):
    """Regions (R, C, 14, 14) of C4 -> the mean of their 7 x 7 features, (R, 2 C)."""

    def __init__(self, stage: nn.Module, *, frozen: bool):
        super().__init__()
        self.stage, self._frozen = stage, frozen

    def train(self, mode: bool = True) -> Self:
        return super().train(mode and not self._frozen)

    def forward(self, regions: Tensor) -> Tensor:
        return self.stage(regions).mean(dim=(2, 3))


class RegionDetector(FasterRCNN):
    """A `BaselineNetwork` of torchvision's modules, without their resizing and normalising. Its
    label 0 is the background.
    """

    def losses(self, images: ImageList, objects: Sequence[Objects]) -> tuple[Tensor, Tensor]:
        targets = [{"boxes": boxes, "labels": labels + 1} for boxes, labels in objects]
        features = self.backbone(images.tensors)
        with full_precision(images):
            proposals, regions = self.rpn(images, features, targets)
            _, heads = self.roi_heads(features, proposals, images.image_sizes, targets)
        return (
            regions["loss_objectness"] + heads["loss_classifier"],
            regions["loss_rpn_box_reg"] + heads["loss_box_reg"],
        )

    def found(self, images: ImageList, settings: DecodeSettings) -> list[Found]:
        heads = cast(RoIHeads, self.roi_heads)
        heads.score_thresh = settings["score_threshold"]
        heads.nms_thresh = settings["nms_threshold"]
        heads.detections_per_img = settings["max_detections"]
        features = self.backbone(images.tensors)
        with full_precision(images):
            proposals, _ = self.rpn(images, features)
            found, _ = heads(features, proposals, images.image_sizes)
        return [Found(image["boxes"], image["scores"], image["labels"] - 1) for image in found]
