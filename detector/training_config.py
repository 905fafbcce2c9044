"""Settings of the loss and the optimizer."""

from __future__ import annotations

from pydantic import Field, model_validator

from detector.choices import (
    BoxLoss,
    ClassificationLoss,
    LossNormalizer,
    LossSettings,
    OptimizerName,
    Schedule,
)
from detector.config import Section, refuse_unused


class LossConfig(Section):
    """L = L_cls + box_weight * L_box, both divided by the positive anchors (section 4.1). The
    fields are those of `LossSettings`.
    """

    classification: ClassificationLoss = Field(
        default=LossSettings.classification,
        description=(
            "focal (the paper), balanced_cross_entropy (the same with gamma 0) or cross_entropy"
            " (gamma 0, and positives and negatives weigh 1)"
        ),
    )
    gamma: float = Field(
        default=LossSettings.gamma,
        ge=0,
        le=10,
        description="focusing exponent of the focal loss; 0 is alpha-balanced cross entropy",
    )
    alpha: float = Field(
        default=LossSettings.alpha,
        gt=0,
        lt=1,
        description="weight of the positive class; negatives weigh 1 - alpha",
    )
    box: BoxLoss = Field(
        default=LossSettings.box,
        description=(
            "smooth_l1 or l1 on the four encoded offsets; iou, giou, diou or ciou: 1 - IoU of the"
            " decoded boxes plus the penalty of that loss"
        ),
    )
    box_weight: float = Field(
        default=LossSettings.box_weight,
        gt=0,
        le=100,
        description=(
            "factor of the box loss; iou, giou, diou and ciou have smaller values and often get 2"
        ),
    )
    beta: float = Field(
        default=LossSettings.beta,
        gt=0,
        le=10,
        description=(
            "difference at which smooth L1 turns from square to linear, in units of the encoded"
            " offsets"
        ),
    )
    normalizer: LossNormalizer = Field(
        default=LossSettings.normalizer,
        description=(
            "divisor of the summed loss: batch (the positive anchors of the global batch), image"
            " (each image's own positive anchors, then the number of images) or moving_average (of"
            " the divisor of batch)"
        ),
    )

    positive_iou: float = Field(
        default=LossSettings.positive_iou,
        gt=0,
        lt=1,
        description=(
            "IoU with an object from which an anchor is positive (section 4, Anchors); the best"
            " anchors of an object always are"
        ),
    )
    negative_iou: float = Field(
        default=LossSettings.negative_iou,
        gt=0,
        lt=1,
        description=(
            "IoU below which an anchor is background; one between it and loss.positive_iou has no"
            " loss"
        ),
    )

    @model_validator(mode="after")
    def _thresholds_rise(self) -> LossConfig:
        if self.negative_iou > self.positive_iou:
            raise ValueError(
                f"loss.negative_iou {self.negative_iou:g}: must be at most loss.positive_iou"
                f" {self.positive_iou:g}; lower it, or raise that"
            )
        return self

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> LossConfig:
        unused: dict[ClassificationLoss, tuple[str, ...]] = {
            "balanced_cross_entropy": ("gamma",),
            "cross_entropy": ("gamma", "alpha"),
        }
        refuse_unused(
            self,
            "loss",
            unused.get(self.classification, ()),
            f"where loss.classification is {self.classification}",
            "set loss.classification to focal",
        )
        if self.box != "smooth_l1":
            refuse_unused(
                self, "loss", ["beta"], f"where loss.box is {self.box}", "set loss.box to smooth_l1"
            )
        return self


class OptimizerConfig(Section):
    """The update rule, and its schedule as a function of images seen."""

    name: OptimizerName = Field(default="sgd", description="sgd (momentum 0.9, the paper) or adamw")
    learning_rate: float = Field(
        default=0.01,
        gt=0,
        le=10,
        description="peak learning rate, for the configured size of the global batch",
    )
    weight_decay: float = Field(
        default=1e-4,
        ge=0,
        le=1,
        description="weight decay of the convolutions; norms and biases have none",
    )
    momentum: float = Field(
        default=0.9, ge=0, lt=1, description="sgd's momentum; adamw's first beta"
    )
    clip_norm: float = Field(
        default=10.0,
        gt=0,
        description="largest gradient norm of the global batch; a larger one is scaled down to it",
    )
    schedule: Schedule = Field(
        default="cosine",
        description=(
            "learning rate after the warm-up: cosine (falls to 1 % of the peak), steps (falls to a"
            " tenth at each milestone) or constant (stays at the peak)"
        ),
    )
    milestones: tuple[float, ...] = Field(
        default=(2 / 3, 8 / 9),
        description=(
            "where the schedule steps reduces the rate, as shares of all images of the training"
            " (the paper: 60k and 80k of 90k)"
        ),
    )
    warmup: float = Field(
        default=0.05,
        ge=0,
        lt=1,
        description=(
            "share of all images over which the rate rises linearly from 1/1000 of the peak"
        ),
    )
    ema_images: float = Field(
        default=0.0,
        ge=0,
        description=(
            "time constant of the moving average of the weights, in images; 0 turns it off"
        ),
    )

    @model_validator(mode="after")
    def _milestones_in_order(self) -> OptimizerConfig:
        if list(self.milestones) != sorted(set(self.milestones)) or not all(
            0 < m < 1 for m in self.milestones
        ):
            raise ValueError(
                f"optimizer.milestones {self.milestones}: must grow, each above 0 and below 1; they"
                " are shares of all images of the training"
            )
        return self

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> OptimizerConfig:
        if self.schedule != "steps":
            refuse_unused(
                self,
                "optimizer",
                ["milestones"],
                f"where optimizer.schedule is {self.schedule}",
                "set optimizer.schedule to steps",
            )
        return self
