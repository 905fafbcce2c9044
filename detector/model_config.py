"""Settings of the network, its anchors, and how its outputs become detections."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from detector.choices import (
    BASELINE_PARTS,
    AnchorConvention,
    Architecture,
    BackboneName,
    HeadNorm,
    Norm,
    P6From,
    StrideIn,
)
from detector.config import Section, refuse_unused, shown

_WITHOUT_BOTTLENECKS: tuple[BackboneName, ...] = ("resnet18", "resnet34")


class AnchorConfig(Section):
    """The levels of the pyramid and the anchors at each position; the defaults are the paper's 3
    scales x 3 ratios (section 4, Anchors).
    """

    strides: tuple[int, ...] = Field(
        default=(8, 16, 32, 64, 128),
        min_length=1,
        description=(
            "distance between the positions of each level, canvas px: starts at 8 (P3, the paper)"
            " or 4 (P2, for small objects) and doubles from level to level, up to 128 at most"
        ),
    )
    base_sizes: tuple[float, ...] = Field(
        default=(32.0, 64.0, 128.0, 256.0, 512.0),
        description=(
            "side of the square anchor of each level before scales and ratios, canvas px; one for"
            " each stride"
        ),
    )
    scales: tuple[float, ...] = Field(
        default=(1.0, 2 ** (1 / 3), 2 ** (2 / 3)),
        min_length=1,
        description=(
            "factors of the base size; 1,1.4142 with three ratios are the 6 anchors of the best row"
            " of the paper's Table 1c (recipe paper_r50_1x_6_anchors.yaml)"
        ),
    )
    ratios: tuple[float, ...] = Field(
        default=(0.5, 1.0, 2.0), min_length=1, description="height / width of the anchors"
    )
    convention: AnchorConvention = Field(
        default="exact",
        description=(
            "exact (the paper, detectron2's weights) or torchvision (anchors rounded to whole px,"
            " as torchvision's weights were trained)"
        ),
    )

    @model_validator(mode="after")
    def _levels_have_anchors(self) -> AnchorConfig:
        doublings = tuple(self.strides[0] * 2**i for i in range(len(self.strides)))
        if self.strides[0] not in (4, 8) or self.strides != doublings or self.strides[-1] > 128:
            raise ValueError(
                f"anchors.strides {self.strides}: must begin at 4 or 8 and double from level to"
                " level up to 128 at most, such as 8,16,32,64,128"
            )
        if len(self.base_sizes) != len(self.strides):
            raise ValueError(
                f"anchors.base_sizes {self.base_sizes}: has {len(self.base_sizes)} entries for the"
                f" {len(self.strides)} levels of anchors.strides {self.strides}, every level needs"
                " anchors; give one size a stride"
            )
        return self

    @model_validator(mode="after")
    def _sizes_are_positive_and_grow(self) -> AnchorConfig:
        for name in ("base_sizes", "scales", "ratios"):
            if min(values := getattr(self, name)) <= 0:
                raise ValueError(
                    f"anchors.{name} {shown(values)}: must all be above 0, they are sizes and their"
                    " factors; remove the others"
                )
        if list(self.base_sizes) != sorted(set(self.base_sizes)):
            raise ValueError(
                f"anchors.base_sizes {self.base_sizes}: must grow with the stride, coarser levels"
                " see larger objects"
            )
        smallest = int(min(self.base_sizes) * min(self.scales)) * min(
            min(ratio**0.5, ratio**-0.5) for ratio in self.ratios
        )
        if self.convention == "torchvision" and round(smallest / 2) == 0:
            raise ValueError(
                f"anchors.base_sizes {self.base_sizes}: with these scales and ratios a side of"
                f" {smallest:g} px is rounded to nothing; take larger ones, or anchors.convention"
                " exact"
            )
        return self


class ModelConfig(Section):
    """The network and its parts."""

    architecture: Architecture = Field(
        default="retinanet",
        description=(
            "retinanet, or a baseline for comparison: faster_rcnn and fcos on the same backbone and"
            " pyramid; faster_rcnn_c4, ssd, dssd, detr and detr_dc5 on the same backbone; yolov2 on"
            " DarkNet-19"
        ),
    )
    backbone: BackboneName = Field(
        default="resnet50", description="the network below the pyramid, as torchvision defines it"
    )
    norm: Norm = Field(
        default="batch",
        description=(
            "normalisation of the backbone: batch (statistics of one worker), frozen (fixed scale"
            " and bias, for fine-tuning), sync (statistics of all workers, GPUs only) or group (32"
            " groups of channels, for small batches)"
        ),
    )
    frozen_stages: int = Field(
        default=0,
        ge=0,
        le=5,
        description=(
            "number of backbone stages that are not trained: 1 the stem, 2 also layer1 (usual for"
            " fine-tuning), ... 5 the whole backbone"
        ),
    )
    stride_in: StrideIn = Field(
        default="3x3",
        description=(
            "which convolution of a bottleneck halves the resolution: 3x3 (torchvision's weights)"
            " or 1x1 (detectron2's)"
        ),
    )
    head_norm: HeadNorm = Field(
        default="none",
        description=(
            "normalisation of the two heads: none (the paper) or group (32 groups of channels)"
        ),
    )
    # A command-line flag or environment variable is text, which equals none of the three numbers.
    width: Annotated[
        Literal[64, 128, 256],
        BeforeValidator(lambda given: int(given) if str(given).isdecimal() else given),
    ] = Field(
        default=256,
        description=(
            "channels of the pyramid and the heads; the paper uses 256; 128 costs less than half,"
            " for small data sets"
        ),
    )
    p6_from: P6From = Field(
        default="c5", description="input of the pyramid's level P6: c5 (the paper) or p5"
    )
    prior: float = Field(
        default=0.01,
        gt=0,
        lt=1,
        description="initial object probability of the class head (section 4.1)",
    )
    anchors: AnchorConfig = AnchorConfig()

    @model_validator(mode="after")
    def _baselines_have_fewer_parts(self) -> ModelConfig:
        if self.architecture == "retinanet":
            return self
        reason = f"in the baseline {self.architecture}"
        used = BASELINE_PARTS[self.architecture]
        for section, where in ((self, "model"), (self.anchors, "model.anchors")):
            parts = type(section).model_fields.keys() - {"architecture", "anchors", *used}
            refuse_unused(section, where, sorted(parts), reason)
        return self

    @model_validator(mode="after")
    def _p6_has_a_level(self) -> ModelConfig:
        if self.anchors.strides[-1] < 64:
            refuse_unused(
                self,
                "model",
                ["p6_from"],
                f"where model.anchors.strides are {shown(self.anchors.strides)}",
                "add 64, the stride of P6",
            )
        return self

    @model_validator(mode="after")
    def _has_bottlenecks(self) -> ModelConfig:
        if self.stride_in == "1x1" and self.backbone in _WITHOUT_BOTTLENECKS:
            raise ValueError(
                f"model.stride_in 1x1: {self.backbone} has no bottlenecks, only 3x3 convolutions;"
                " leave it 3x3"
            )
        return self


class DecodeConfig(Section):
    """How the network's outputs become detections (section 4.1, Inference)."""

    score_threshold: float = Field(
        default=0.05, ge=0, lt=1, description="detections with a lower score are dropped first"
    )
    top_per_level: int = Field(
        default=1000,
        ge=1,
        le=100_000,
        description="number of candidates with the best scores that each pyramid level keeps",
    )
    nms_threshold: float = Field(
        default=0.5,
        gt=0,
        lt=1,
        description="IoU above which the box with the lower score of the same class is removed",
    )
    max_detections: int = Field(
        default=100, ge=1, le=10_000, description="most detections of one image, the best ones"
    )
