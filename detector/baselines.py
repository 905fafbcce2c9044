"""torchvision's Faster R-CNN and FCOS with this project's batches, backbone, pyramid and
detections: what RetinaNet is compared with. They are not tuned.

Shapes: B batch, G ground-truth slots. Crowds and other ignore regions (label -1) are removed:
these detectors do not support them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict, cast

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FasterRCNN
from torchvision.models.detection.fcos import FCOS
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import initLevelMapper

from detector.backbone import DEEPEST_STRIDE, Backbone, Pyramid, check_choice
from detector.choices import Architecture, BackboneName, Norm, P6From, StrideIn
from detector.decode import Detections
from detector.model import PixelNetwork, RetinaNet

_POOLED_STRIDES = (4, 8, 16, 32)
"""Levels from which Faster R-CNN crops its regions; proposals also come from a coarser one, stride
64.
"""
_DENSE_STRIDES = (8, 16, 32, 64, 128)
_SHARED_PARTS = ("classes", "backbone", "norm", "frozen_stages", "stride_in", "width")
PARTS: dict[Architecture, tuple[str, ...]] = {
    "faster_rcnn": (*_SHARED_PARTS, "base_sizes", "ratios"),
    "fcos": (*_SHARED_PARTS, "p6_from"),
}
"""The keywords of `RetinaNet` that each baseline uses."""


def build_model(*, architecture: Architecture = "retinanet", **parts: Any) -> RetinaNet | Baseline:
    """The network of a description: `parts` are the keywords of `RetinaNet`. A baseline uses those
    in `PARTS` and no others.
    """
    if architecture == "retinanet":
        return RetinaNet(**parts)
    check_choice("architecture", architecture, ("retinanet", *PARTS))
    return Baseline(
        architecture, **{name: parts[name] for name in PARTS[architecture] if name in parts}
    )


class _Trunk(TypedDict):
    """Keywords of `_Features` that both baselines share."""

    norm: Norm
    frozen_stages: int
    stride_in: StrideIn
    width: int
    p6_from: P6From


class _Features(nn.Module):
    """Our backbone and pyramid in the form that torchvision's detectors take: (B, 3, H, W) ->
    float32 levels by name, finest first.
    """

    def __init__(
        self,
        backbone: BackboneName,
        *,
        strides: Sequence[int],
        pooled: bool,
        norm: Norm,
        frozen_stages: int,
        stride_in: StrideIn,
        width: int,
        p6_from: P6From,
    ):
        super().__init__()
        self.body = Backbone(
            backbone,
            norm=norm,
            frozen_stages=frozen_stages,
            stride_in=stride_in,
            strides=[stride for stride in strides if stride <= DEEPEST_STRIDE],
        )
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


def _faster_rcnn(
    backbone: BackboneName,
    classes: int,
    trunk: _Trunk,
    base_sizes: Sequence[float],
    ratios: Sequence[float],
) -> FasterRCNN:
    pool = MultiScaleRoIAlign(
        [str(i) for i in range(len(_POOLED_STRIDES))], output_size=7, sampling_ratio=2
    )
    # torchvision infers the scales from the first pictures that it sees, but on a canvas the
    # features cover more than a picture.
    pool.scales = [1 / stride for stride in _POOLED_STRIDES]
    pool.map_levels = initLevelMapper(2, 5)
    # torchvision annotates whole numbers; its arithmetic takes any.
    sizes = cast(tuple[tuple[int, ...], ...], tuple((size,) for size in base_sizes))
    anchors = AnchorGenerator(sizes, (tuple(ratios),) * len(base_sizes))
    features = _Features(backbone, strides=_POOLED_STRIDES, pooled=True, **trunk)
    return FasterRCNN(features, classes + 1, rpn_anchor_generator=anchors, box_roi_pool=pool)


class Baseline(PixelNetwork):
    """One of torchvision's detectors, untrained. In training mode a call returns losses, in
    evaluation mode `detect` returns detections; both for batches of one canvas.

    Backbone and pyramid run under the caller's autocast, the rest in float32: torchvision computes
    anchors and boxes in the dtype of the features, and bfloat16 has steps of 2 px at 800 px. Faster
    R-CNN's losses draw samples from torch's global generator.
    """

    def __init__(
        self,
        architecture: Architecture,
        *,
        classes: int,
        backbone: BackboneName = "resnet50",
        norm: Norm = "batch",
        frozen_stages: int = 0,
        stride_in: StrideIn = "3x3",
        width: int = 256,
        p6_from: P6From = "p5",
        base_sizes: Sequence[float] = (32, 64, 128, 256, 512),
        ratios: Sequence[float] = (0.5, 1, 2),
    ):
        super().__init__()
        if classes < 1:
            raise ValueError(
                f"classes {classes}: must be at least 1; does the data set have categories?"
            )
        self.classes = classes
        trunk: _Trunk = {
            "norm": norm,
            "frozen_stages": frozen_stages,
            "stride_in": stride_in,
            "width": width,
            "p6_from": p6_from,
        }
        self.detector: FasterRCNN | FCOS
        if architecture == "faster_rcnn":
            self.detector = _faster_rcnn(backbone, classes, trunk, base_sizes, ratios)
        else:
            features = _Features(backbone, strides=_DENSE_STRIDES, pooled=False, **trunk)
            self.detector = FCOS(features, classes)
        # Label 0 of Faster R-CNN is the background.
        self.first_label = 1 if architecture == "faster_rcnn" else 0

    def forward(
        self, images_B3HW: Tensor, sizes_B2: Tensor, boxes_BG4: Tensor, labels_BG: Tensor
    ) -> Tensor:
        """The fields of a `Batch` -> float32 (2,): classification and box loss, each averaged as
        its detector does it.
        """
        objects = [
            (boxes[labels >= 0], labels[labels >= 0])
            for boxes, labels in zip(boxes_BG4, labels_BG, strict=True)
        ]
        targets = [
            {"boxes": boxes, "labels": labels + self.first_label} for boxes, labels in objects
        ]
        _, losses = self._run(images_B3HW, sizes_B2, targets)
        # torchvision's names: loss_box_reg, loss_rpn_box_reg, bbox_regression, bbox_ctrness;
        # loss_classifier, loss_objectness, classification.
        zero = images_B3HW.new_zeros((), dtype=torch.float32)
        box = sum((loss for name, loss in losses.items() if "box" in name), zero)
        return torch.stack([sum(losses.values(), zero) - box, box])

    @torch.no_grad()
    def detect(
        self,
        images_B3HW: Tensor,
        sizes_B2: Tensor,
        *,
        score_threshold: float,
        top_per_level: int,
        nms_threshold: float,
        max_detections: int,
    ) -> list[Detections]:
        """Detections of each image, XYXY px on the canvas, clipped to the picture's (height, width)
        on it: `decode_detections` for this network, which must be in evaluation mode.

        Faster R-CNN does not use `top_per_level`; it keeps the 1000 best proposals of an image.
        """
        assert not self.training
        last = self._last_part()
        last.score_thresh = score_threshold
        last.nms_thresh = nms_threshold
        last.detections_per_img = max_detections
        if isinstance(last, FCOS):
            last.topk_candidates = top_per_level
        detections, _ = self._run(images_B3HW, sizes_B2, None)
        columns = [(d["boxes"], d["scores"], d["labels"] - self.first_label) for d in detections]
        return [Detections(*(column.cpu().numpy() for column in image)) for image in columns]

    def _last_part(self) -> RoIHeads | FCOS:
        """The module that makes detections of scores and boxes."""
        if isinstance(self.detector, FCOS):
            return self.detector
        return cast(RoIHeads, self.detector.roi_heads)

    def _run(
        self, images_B3HW: Tensor, sizes_B2: Tensor, targets: list[dict[str, Tensor]] | None
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """(detections, losses) of torchvision's modules without its own resizing and normalising.
        Boxes are clipped to the pictures, not to the canvas.
        """
        pixels = self.normalised(images_B3HW)
        images = ImageList(
            pixels, [(int(height), int(width)) for height, width in sizes_B2.tolist()]
        )
        features = self.detector.backbone(pixels)
        with torch.autocast(pixels.device.type, enabled=False):
            if isinstance(self.detector, FCOS):
                return _run_fcos(self.detector, images, features, targets)
            proposals, region_losses = self.detector.rpn(images, features, targets)
            detections, head_losses = self.detector.roi_heads(
                features, proposals, images.image_sizes, targets
            )
            return detections, region_losses | head_losses


def _run_fcos(
    network: FCOS,
    images: ImageList,
    features: dict[str, Tensor],
    targets: list[dict[str, Tensor]] | None,
) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
    levels = list(features.values())
    outputs, anchors = network.head(levels), network.anchor_generator(images, levels)
    counts = [level.shape[2] * level.shape[3] for level in levels]
    if targets is not None:
        return [], network.compute_loss(targets, outputs, anchors, counts)
    by_level = {name: list(output.split(counts, dim=1)) for name, output in outputs.items()}
    split_anchors = [list(a.split(counts)) for a in anchors]
    return network.postprocess_detections(by_level, split_anchors, images.image_sizes), {}
