"""The detector's settings: frozen, checked when made, a sentence and a unit a field. Only entry
points read them; functions take plain arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

CANVAS_STEP = 32
"""Canvas sides are multiples of the stride of C5, so that the pyramid's levels halve exactly; P6
and P7 round up.
"""

MOST_CANVASES = 3


class Section(BaseModel):
    """A part of a configuration: immutable, and closed against names it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def refuse_unused(
    section: Section, where: str, names: Sequence[str], reason: str, remedy: str = ""
) -> None:
    """`ValueError` for one of these fields that is away from its default though it does nothing;
    `remedy` would make it do something.
    """
    for name in names:
        value, default = getattr(section, name), type(section).model_fields[name].default
        if value != default:
            raise ValueError(
                f"{where}.{name} {shown(value)}: does nothing {reason}; leave it at"
                f" {shown(default)}{remedy and f', or {remedy}'}"
            )


def shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(shown, value))
    if value is None:
        return "null"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class AnchorConfig(Section):
    """The pyramid's levels and the anchors at each of their positions; the paper's 3 x 3 (section
    4, Anchors).
    """

    strides: tuple[int, ...] = Field(
        (8, 16, 32, 64, 128),
        min_length=1,
        description=(
            "canvas px between positions of each level: doublings from 8 (P3, the paper) or 4 (P2,"
            " for small objects) to at most 128"
        ),
    )
    base_sizes: tuple[float, ...] = Field(
        (32.0, 64.0, 128.0, 256.0, 512.0),
        description=(
            "side of the square anchor before scales and ratios, px on the canvas, one a stride"
        ),
    )
    scales: tuple[float, ...] = Field(
        (1.0, 2 ** (1 / 3), 2 ** (2 / 3)),
        min_length=1,
        description=(
            "sizes within an octave, factors of the base size; 1,1.4142 with three ratios are the 6"
            " anchors that lead the paper's Table 1c (recipe paper_r50_1x_6_anchors.yaml)"
        ),
    )
    ratios: tuple[float, ...] = Field(
        (0.5, 1.0, 2.0), min_length=1, description="height / width of the anchors"
    )
    convention: Literal["exact", "torchvision"] = Field(
        "exact",
        description=(
            "exact (the paper, detectron2's weights), or in whole px as torchvision's weights were"
            " trained"
        ),
    )

    @model_validator(mode="after")
    def levels_have_anchors(self) -> AnchorConfig:
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
    def positive_and_growing(self) -> AnchorConfig:
        for name in ("base_sizes", "scales", "ratios"):
            if min(values := getattr(self, name)) <= 0:
                raise ValueError(
                    f"anchors.{name} {shown(values)}: must all be above 0, they are sizes and their"
                    " factors; leave out what is not"
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


class CanvasConfig(Section):
    """The fixed picture sizes the network sees. Images are scaled, aspect kept, to the largest size
    that fits, at the top left corner.
    """

    height: int = Field(800, ge=64, le=4096, description="px, a multiple of 32")
    width: int = Field(1344, ge=64, le=4096, description="px, a multiple of 32")
    shapes: tuple[tuple[int, int], ...] = Field(
        (),
        description=(
            "up to three canvases in place of the one above, each [height,width]; an image takes"
            " the one on which it becomes largest, a batch has one. The paper's 800 by at most 1333"
            " px is [[800,1088],[800,1344],[1344,800]] with long_side 1333; empty: height x width"
            " alone"
        ),
    )
    long_side: int | None = Field(
        None,
        ge=1,
        le=4096,
        description=(
            "px that the longer side of a picture must not pass on its canvas (the paper: 1333);"
            " unset: as large as fits"
        ),
    )

    @property
    def canvases(self) -> tuple[tuple[int, int], ...]:
        """All (height, width)."""
        return self.shapes or ((self.height, self.width),)

    @model_validator(mode="after")
    def divisible(self) -> CanvasConfig:
        if len(set(self.shapes)) != len(self.shapes) or len(self.shapes) > MOST_CANVASES:
            given = " ".join(f"{height}x{width}" for height, width in self.shapes)
            raise ValueError(
                f"canvas.shapes {given}: must be at most {MOST_CANVASES} different ones, compiled"
                " code is made for each; leave some out"
            )
        sides = [("height", self.height), ("width", self.width)]
        sides += [
            (f"shapes[{i}] {name}", side)
            for i, shape in enumerate(self.shapes)
            for name, side in zip(("height", "width"), shape, strict=True)
        ]
        for name, side in sides:
            if side % CANVAS_STEP:
                raise ValueError(
                    f"canvas.{name} {side}: must be a multiple of {CANVAS_STEP};"
                    f" {-(-side // CANVAS_STEP) * CANVAS_STEP} holds it"
                )
            if not 64 <= side <= 4096:
                raise ValueError(
                    f"canvas.{name} {side}: must be within 64..4096 px; 800 and 1344 are the"
                    " paper's"
                )
        for height, width in self.canvases:
            if max(height, width) <= 64:
                # With a single cell in P6, oneDNN's bfloat16 weight gradient of P7 reads memory it
                # never wrote: NaN by chance (torch 2.15, AVX512).
                raise ValueError(
                    f"canvas {height}x{width}: one side must be above 64 px, else P6 is a single"
                    " cell; 64x96 is the smallest"
                )
        return self

    @model_validator(mode="after")
    def nothing_is_ignored(self) -> CanvasConfig:
        if self.shapes:
            refuse_unused(
                self,
                "canvas",
                ("height", "width"),
                "beside canvas.shapes, which take its place",
                "set the shapes to []",
            )
        longest = max(map(max, self.canvases))
        if self.long_side is not None and self.long_side >= longest:
            refuse_unused(
                self,
                "canvas",
                ["long_side"],
                f"where no canvas is longer than {longest} px",
                "set it below that",
            )
        return self


class ModelConfig(Section):
    """The network and its parts."""

    architecture: Literal["retinanet", "faster_rcnn", "fcos"] = Field(
        "retinanet",
        description=(
            "retinanet, or a baseline to compare it with: torchvision's faster_rcnn or fcos, on the"
            " same backbone and pyramid"
        ),
    )
    backbone: Literal[
        "resnet18",
        "resnet34",
        "resnet50",
        "resnet101",
        "resnet152",
        "resnext50_32x4d",
        "resnext101_32x8d",
        "resnext101_64x4d",
    ] = Field("resnet50", description="torchvision's network under the pyramid")
    norm: Literal["batch", "frozen", "sync", "group"] = Field(
        "batch",
        description=(
            "the backbone's normalisation: batch (statistics of one rank), frozen (fixed scale and"
            " bias, for fine-tuning), sync (statistics of all ranks, GPUs only) or group (32 groups"
            " of channels, for small batches)"
        ),
    )
    frozen_stages: int = Field(
        0,
        ge=0,
        le=5,
        description=(
            "stages that stay as loaded: 1 the stem, 2 also layer1 (the usual fine-tuning), ... 5"
            " the whole backbone"
        ),
    )
    stride_in: Literal["3x3", "1x1"] = Field(
        "3x3",
        description=(
            "the convolution of a bottleneck that halves the resolution: 3x3 (torchvision's"
            " weights) or 1x1 (detectron2's)"
        ),
    )
    head_norm: Literal["none", "group"] = Field(
        "none",
        description="normalisation in the two heads: none (the paper) or 32 groups of channels",
    )
    # A flag and a variable are text, which is none of the three numbers.
    width: Annotated[
        Literal[64, 128, 256],
        BeforeValidator(lambda given: int(given) if str(given).isdecimal() else given),
    ] = Field(
        256,
        description=(
            "channels of the pyramid and the heads; 256 is the paper's, 128 costs well under half"
            " for small data sets"
        ),
    )
    p6_from: Literal["c5", "p5"] = Field(
        "c5", description="where the pyramid's extra levels start: c5 (the paper) or p5"
    )
    prior: float = Field(
        0.01,
        gt=0,
        lt=1,
        description="probability of an object the class head starts with (section 4.1)",
    )
    anchors: AnchorConfig = AnchorConfig()

    @model_validator(mode="after")
    def baselines_have_fewer_parts(self) -> ModelConfig:
        unused = {
            "retinanet": (),
            "faster_rcnn": ("head_norm", "prior", "p6_from"),
            "fcos": ("head_norm", "prior"),
        }[self.architecture]
        reason = f"in the baseline {self.architecture}"
        refuse_unused(self, "model", unused, reason)
        if self.architecture != "retinanet":
            ours = {"faster_rcnn": ("base_sizes", "ratios"), "fcos": ()}[self.architecture]
            refuse_unused(
                self.anchors,
                "model.anchors",
                [name for name in AnchorConfig.model_fields if name not in ours],
                reason,
            )
        return self

    @model_validator(mode="after")
    def p6_has_a_level(self) -> ModelConfig:
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
    def has_bottlenecks(self) -> ModelConfig:
        if self.stride_in == "1x1" and self.backbone in ("resnet18", "resnet34"):
            raise ValueError(
                f"model.stride_in 1x1: {self.backbone} has no bottlenecks, only 3x3 convolutions;"
                " leave it 3x3"
            )
        return self


class LossConfig(Section):
    """L = L_cls + box_weight * L_box, both divided by the positive anchors (section 4.1)."""

    classification: Literal["focal", "balanced_cross_entropy", "cross_entropy"] = Field(
        "focal",
        description=(
            "focal (the paper), balanced_cross_entropy (gamma 0) or cross_entropy (gamma 0, both"
            " classes weigh 1)"
        ),
    )
    gamma: float = Field(
        2.0,
        ge=0,
        le=10,
        description="focusing exponent of the focal loss; 0 is alpha-balanced cross entropy",
    )
    alpha: float = Field(
        0.25, gt=0, lt=1, description="weight of the positive class; negatives weigh 1 - alpha"
    )
    box: Literal["smooth_l1", "l1", "iou", "giou", "diou", "ciou"] = Field(
        "smooth_l1",
        description=(
            "smooth_l1 or l1 on the four encoded offsets, or 1 - IoU of the decoded boxes with the"
            " penalty of its kind"
        ),
    )
    box_weight: float = Field(
        1.0,
        gt=0,
        le=100,
        description="weight of the box loss; the IoU kinds are smaller and are often given 2",
    )
    beta: float = Field(
        1 / 9,
        gt=0,
        le=10,
        description=(
            "where smooth L1 turns from square to straight, in units of the encoded offsets"
        ),
    )
    normalizer: Literal["batch", "image", "moving_average"] = Field(
        "batch",
        description=(
            "what divides the sums: the positives of the global batch; each image's own, then the"
            " images; or a moving average of the first"
        ),
    )

    @model_validator(mode="after")
    def nothing_is_ignored(self) -> LossConfig:
        unused = {
            "focal": [],
            "balanced_cross_entropy": ["gamma"],
            "cross_entropy": ["gamma", "alpha"],
        }[self.classification]
        refuse_unused(
            self,
            "loss",
            unused,
            f"where loss.classification is {self.classification}",
            "set loss.classification to focal",
        )
        if self.box != "smooth_l1":
            refuse_unused(
                self, "loss", ["beta"], f"where loss.box is {self.box}", "set loss.box to smooth_l1"
            )
        return self


class AugmentationConfig(Section):
    """What is done to a training image, drawn from (seed, epoch, image id) alone."""

    flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip")
    vertical_flip: float = Field(
        0.0, ge=0, le=1, description="probability of a vertical flip (microscopy, aerial pictures)"
    )
    scale_min: float = Field(
        0.8,
        ge=0.1,
        le=1,
        description=(
            "smallest scale jitter, a factor of the size that fits the canvas; 0.1 with scale_max 2"
            " is large-scale jitter"
        ),
    )
    scale_max: float = Field(
        1.25,
        ge=1,
        le=4,
        description="largest scale jitter; what leaves the canvas is cropped at random",
    )
    short_sides: tuple[int, int] | None = Field(
        None,
        description=(
            "LOW,HIGH px: the shorter side is drawn between them, as far as the picture then fits,"
            " instead of the scale jitter (the paper: 640,800); unset: off"
        ),
    )
    min_visible: float = Field(
        0.25,
        gt=0,
        le=1,
        description="objects of which a crop leaves a smaller share become ignore regions",
    )
    iou_crop: float = Field(
        0.0,
        ge=0,
        le=1,
        description="probability of SSD's crop: a window with a least IoU with an object",
    )
    iou_minima: tuple[float, ...] = Field(
        (0.0, 0.1, 0.3, 0.5, 0.7, 0.9),
        min_length=1,
        description="least IoU values of which the IoU crop draws one, each 0..1",
    )
    photometric: float = Field(
        0.0,
        ge=0,
        le=1,
        description="probability of photometric jitter, of the strengths that follow (SSD's)",
    )
    brightness: float = Field(
        0.125, ge=0, le=1, description="largest change of the brightness, a share of it"
    )
    contrast: float = Field(
        0.5, ge=0, le=1, description="largest change of the contrast, a share of it"
    )
    saturation: float = Field(
        0.5, ge=0, le=1, description="largest change of the saturation, a share of it"
    )
    hue: float = Field(
        0.05,
        ge=0,
        le=0.5,
        description=(
            "largest turn of the hue, a share of the colour circle; the slowest of the four"
        ),
    )
    mosaic: float = Field(
        0.0,
        ge=0,
        le=1,
        description="probability that windows of four pictures of the batch share a canvas",
    )
    mixup: float = Field(
        0.0,
        ge=0,
        le=1,
        description="probability that a picture is blended with the next one of the batch",
    )

    @model_validator(mode="after")
    def ranges_rise(self) -> AugmentationConfig:
        if self.short_sides is not None and not 1 <= self.short_sides[0] <= self.short_sides[1]:
            raise ValueError(
                f"augmentation.short_sides {shown(self.short_sides)}: must be LOW,HIGH px with 1 <="
                " LOW <= HIGH; 640,800 is the paper's"
            )
        if not 0 <= min(self.iou_minima) <= max(self.iou_minima) <= 1:
            given = ",".join(map(str, self.iou_minima))
            raise ValueError(
                f"augmentation.iou_minima {given}: an IoU is within 0..1; 0,0.1,0.3,0.5,0.7,0.9 are"
                " SSD's"
            )
        return self

    @model_validator(mode="after")
    def nothing_is_ignored(self) -> AugmentationConfig:
        if self.short_sides is not None:
            refuse_unused(
                self,
                "augmentation",
                ("scale_min", "scale_max"),
                "beside augmentation.short_sides",
                "leave out short_sides",
            )
        if not self.iou_crop:
            refuse_unused(
                self,
                "augmentation",
                ["iou_minima"],
                "where augmentation.iou_crop is 0",
                "give it a probability",
            )
        if not self.photometric:
            strengths = ("brightness", "contrast", "saturation", "hue")
            refuse_unused(
                self,
                "augmentation",
                strengths,
                "where augmentation.photometric is 0",
                "give it a probability",
            )
        return self


class OptimizerConfig(Section):
    """The update rule and its schedule, which is a function of images seen."""

    name: Literal["adamw", "sgd"] = Field(
        "sgd", description="sgd (momentum 0.9, the paper) or adamw"
    )
    learning_rate: float = Field(
        0.01, gt=0, le=10, description="peak learning rate, for the global batch as configured"
    )
    weight_decay: float = Field(
        1e-4, ge=0, le=1, description="decay of convolution weights; norms and biases have none"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="sgd's momentum; adamw's first beta")
    clip_norm: float = Field(
        10.0,
        gt=0,
        description="largest gradient norm of the global batch; larger ones are scaled down",
    )
    schedule: Literal["cosine", "steps", "constant"] = Field(
        "cosine",
        description=(
            "after warm-up: cosine to 1 % of the peak, a tenth at each milestone, or the peak to"
            " the end"
        ),
    )
    milestones: tuple[float, ...] = Field(
        (2 / 3, 8 / 9),
        description=(
            "where the steps fall, as shares of all images to be seen (the paper: 60k and 80k of"
            " 90k)"
        ),
    )
    warmup: float = Field(
        0.05,
        ge=0,
        lt=1,
        description=(
            "share of all images over which the rate rises linearly from 1/1000 of the peak"
        ),
    )
    ema_images: float = Field(
        0.0,
        ge=0,
        description="time constant of the weights' moving average, images; 0 turns it off",
    )

    @model_validator(mode="after")
    def milestones_in_order(self) -> OptimizerConfig:
        if list(self.milestones) != sorted(set(self.milestones)) or not all(
            0 < m < 1 for m in self.milestones
        ):
            raise ValueError(
                f"optimizer.milestones {self.milestones}: must grow, each above 0 and below 1; they"
                " are shares of all images to be seen"
            )
        return self

    @model_validator(mode="after")
    def nothing_is_ignored(self) -> OptimizerConfig:
        if self.schedule != "steps":
            refuse_unused(
                self,
                "optimizer",
                ["milestones"],
                f"where optimizer.schedule is {self.schedule}",
                "set optimizer.schedule to steps",
            )
        return self


class DecodeConfig(Section):
    """From logits to detections (section 4.1, Inference)."""

    score_threshold: float = Field(
        0.05, ge=0, lt=1, description="detections below this score are dropped first"
    )
    top_per_level: int = Field(
        1000, ge=1, le=100_000, description="best candidates kept a pyramid level"
    )
    nms_threshold: float = Field(
        0.5, gt=0, lt=1, description="IoU above which the lower-scored box of a class is suppressed"
    )
    max_detections: int = Field(100, ge=1, le=10_000, description="best detections kept an image")
