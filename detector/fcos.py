"""torchvision's FCOS (Tian et al. 2019) on RetinaNet's backbone and pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from torch import Tensor
from torchvision.models.detection.fcos import FCOS
from torchvision.models.detection.image_list import ImageList

from detector.baseline import Found, Objects, full_precision
from detector.choices import BackboneName, P6From
from detector.decode import DecodeSettings
from detector.trunk import PyramidFeatures, Residual

_STRIDES = (8, 16, 32, 64, 128)


def fcos(
    *,
    classes: int,
    backbone: BackboneName = "resnet50",
    width: int = 256,
    p6_from: P6From = "p5",
    **trunk: Unpack[Residual],
) -> DenseDetector:
    """FCOS on P3 to P7."""
    features = PyramidFeatures(
        backbone, strides=_STRIDES, pooled=False, width=width, p6_from=p6_from, **trunk
    )
    return DenseDetector(features, classes)


class DenseDetector(FCOS):
    """A `BaselineNetwork` of torchvision's modules, without their resizing and normalising."""

    def losses(self, images: ImageList, objects: Sequence[Objects]) -> tuple[Tensor, Tensor]:
        levels = list(self.backbone(images.tensors).values())
        targets = [{"boxes": boxes, "labels": labels} for boxes, labels in objects]
        with full_precision(images):
            losses = self.compute_loss(
                targets, self.head(levels), self.anchor_generator(images, levels), _counts(levels)
            )
        return losses["classification"], losses["bbox_regression"] + losses["bbox_ctrness"]

    def found(self, images: ImageList, settings: DecodeSettings) -> list[Found]:
        self.score_thresh = settings["score_threshold"]
        self.nms_thresh = settings["nms_threshold"]
        self.detections_per_img = settings["max_detections"]
        self.topk_candidates = settings["top_per_level"]
        levels = list(self.backbone(images.tensors).values())
        counts = _counts(levels)
        with full_precision(images):
            by_level = {
                name: list(output.split(counts, dim=1))
                for name, output in self.head(levels).items()
            }
            anchors = [list(a.split(counts)) for a in self.anchor_generator(images, levels)]
            found = self.postprocess_detections(by_level, anchors, images.image_sizes)
        return [Found(image["boxes"], image["scores"], image["labels"]) for image in found]


def _counts(levels: Sequence[Tensor]) -> list[int]:
    return [level.shape[2] * level.shape[3] for level in levels]
