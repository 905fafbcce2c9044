"""The names that a setting may take, one type a choice, and the settings of the loss and of views.
The configuration offers these names and the code has a table with the same names. torch is not
imported here, so a configuration is checked without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Architecture = Literal[
    "retinanet",
    "faster_rcnn",
    "faster_rcnn_c4",
    "fcos",
    "ssd",
    "dssd",
    "yolov2",
    "detr",
    "detr_dc5",
]
_RESIDUAL = ("classes", "backbone", "norm", "frozen_stages", "stride_in")
BASELINE_PARTS: dict[Architecture, tuple[str, ...]] = {
    "faster_rcnn": (*_RESIDUAL, "width", "base_sizes", "ratios"),
    "faster_rcnn_c4": (*_RESIDUAL, "base_sizes", "ratios"),
    "fcos": (*_RESIDUAL, "width", "p6_from"),
    "ssd": (*_RESIDUAL, "width", "base_sizes", "ratios"),
    "dssd": (*_RESIDUAL, "width", "base_sizes", "ratios"),
    "yolov2": ("classes", "norm", "width", "base_sizes", "ratios"),
    "detr": (*_RESIDUAL, "width"),
    "detr_dc5": (*_RESIDUAL, "width"),
}
"""The keywords of `RetinaNet` that each baseline uses. The keys are those of
`detector.baselines.NETWORKS`.
"""
BASELINE_DECODE_UNUSED: dict[Architecture, tuple[tuple[str, ...], str]] = {
    "faster_rcnn": (("top_per_level",), "which keeps 1000 proposals an image"),
    "faster_rcnn_c4": (("top_per_level",), "which keeps 1000 proposals an image"),
    "detr": (("top_per_level", "nms_threshold"), "which has one box a query and no NMS"),
    "detr_dc5": (("top_per_level", "nms_threshold"), "which has one box a query and no NMS"),
}
"""The settings of `DecodeConfig` that a baseline does not use, and why."""
BackboneName = Literal[
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
]
"""The keys of `detector.backbone.BACKBONES`."""
Norm = Literal["batch", "frozen", "sync", "group"]
"""The keys of `detector.backbone.NORMS`."""
StrideIn = Literal["3x3", "1x1"]
HeadNorm = Literal["none", "group"]
P6From = Literal["c5", "p5"]
AnchorConvention = Literal["exact", "torchvision"]

ClassificationLoss = Literal["focal", "balanced_cross_entropy", "cross_entropy"]
"""The keys of `detector.classification_loss.CLASSIFICATION_LOSSES`."""
BoxLoss = Literal["smooth_l1", "l1", "iou", "giou", "diou", "ciou"]
"""The keys of `detector.box_loss.BOX_LOSSES`."""
LossNormalizer = Literal["batch", "image", "moving_average"]

OptimizerName = Literal["adamw", "sgd"]
Schedule = Literal["cosine", "steps", "constant"]


@dataclass(frozen=True)
class LossSettings:
    """What the loss of a training step is made of; the fields and defaults of `LossConfig`."""

    classification: ClassificationLoss = "focal"
    gamma: float = 2.0
    """Focusing exponent of the focal loss."""
    alpha: float = 0.25
    """Weight of positive entries; negative ones weigh 1 - alpha."""
    box: BoxLoss = "smooth_l1"
    box_weight: float = 1.0
    """L = L_cls + box_weight * L_box."""
    beta: float = 1 / 9
    """Where smooth L1 turns from square to linear, in encoded offsets."""
    normalizer: LossNormalizer = "batch"
    positive_iou: float = 0.5
    """IoU with an object from which an anchor is to find it."""
    negative_iou: float = 0.4
    """IoU with every object below which an anchor is background; between the two it has no loss."""


OVERLAP = 0.2
"""Share of a tile: objects of up to a fifth of a tile are seen whole by one of the tiles."""


@dataclass(frozen=True)
class ViewSettings:
    """In which views of a picture the network detects, see `detector.tiling`. The default is the
    whole picture once.
    """

    tile: int | None = None
    """px of the side of a tile; None: no tiles."""
    overlap: float = OVERLAP
    """Share of its side that a tile has in common with the next one, at least."""
    flip: bool = False
    """Detect in the mirrored view too."""

    def as_dict(self) -> dict[str, Any]:
        """What is not the default and has an effect."""
        tiles = {} if self.tile is None else {"tile": self.tile, "overlap": self.overlap}
        return {**tiles, **({"flip": True} if self.flip else {})}


WHOLE_PICTURE = ViewSettings()
