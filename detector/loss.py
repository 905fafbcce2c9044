"""Classification and box loss as one sum an image, and what divides these sums (section 4.1).
Shapes: B batch, A anchors (a those of a level), K classes, G slots.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from detector.box_loss import BOX_LOSSES
from detector.choices import LossNormalizer, LossSettings
from detector.classification_loss import CLASSIFICATION_LOSSES

FIRST_AVERAGE, AVERAGE_MOMENTUM = 100.0, 0.9
"""First value of the moving average of the positives, and the share of it that one step keeps
(detectron2's values).
"""


class LossSums(NamedTuple):
    """Float32, or float64 where the network computes in it."""

    classification_B: Tensor
    """Sum of the classification loss over the image's anchors that are not ignored."""
    box_B: Tensor
    """Sum of the box loss over the image's positive anchors."""


def detection_loss(
    logits: Sequence[Tensor],
    deltas: Sequence[Tensor],
    anchors_A4: Tensor,
    boxes_BG4: Tensor,
    labels_BG: Tensor,
    slot_BA: Tensor,
    *,
    settings: LossSettings,
    dense: Callable[..., LossSums] | None = None,
) -> LossSums:
    """The sums of L_cls and L_box of every image for matched anchors: `slot_BA` is what `match`
    returned. Logits (B, a, K) and offsets (B, a, 4) are those of each level. `dense` is
    `dense_loss`, compiled.
    """
    class_BA, target_BA4 = _targets(anchors_A4, boxes_BG4, labels_BG, slot_BA)
    return (dense or dense_loss)(logits, deltas, anchors_A4, class_BA, target_BA4, settings)


def _targets(
    anchors_A4: Tensor, boxes_BG4: Tensor, labels_BG: Tensor, slot_BA: Tensor
) -> tuple[Tensor, Tensor]:
    """What every anchor must predict: its class, int64 (B, A), `BACKGROUND` or `IGNORED` without an
    object, and its box, (B, A, 4), the anchor itself without one.
    """
    positive_BA = slot_BA >= 0
    index_BA = torch.where(positive_BA, slot_BA, 0)
    class_BA = torch.where(positive_BA, labels_BG.gather(1, index_BA), slot_BA)
    boxes_BA4 = boxes_BG4.gather(1, index_BA[..., None].expand(-1, -1, 4))
    return class_BA, torch.where(positive_BA[..., None], boxes_BA4, anchors_A4)


def dense_loss(
    logits: Sequence[Tensor],
    deltas: Sequence[Tensor],
    anchors_A4: Tensor,
    class_BA: Tensor,
    target_BA4: Tensor,
    settings: LossSettings,
) -> LossSums:
    """The loss sums over all levels, for the `_targets` of the anchors: logits (B, a, K) and
    offsets (B, a, 4) of each level, in the order of the anchors.
    """
    sizes = [level.shape[1] for level in logits]
    columns = (
        logits,
        deltas,
        anchors_A4.split(sizes),
        class_BA.split(sizes, dim=1),
        target_BA4.split(sizes, dim=1),
    )
    sums = [_level_loss(*level, settings) for level in zip(*columns, strict=True)]
    return LossSums(*(torch.stack(column).sum(dim=0) for column in zip(*sums, strict=True)))


def _level_loss(
    logits_BAK: Tensor,
    deltas_BA4: Tensor,
    anchors_A4: Tensor,
    class_BA: Tensor,
    target_BA4: Tensor,
    settings: LossSettings,
) -> LossSums:
    """The loss sums of one level, computed in float32 where the network's dtype is smaller.

    All shapes are those of the canvas, whatever is on it: one program serves every batch, and no
    device is asked how many anchors are positive.
    """
    classification_B = CLASSIFICATION_LOSSES[settings.classification](
        logits_BAK, class_BA, settings
    )
    precise = torch.promote_types(deltas_BA4.dtype, torch.float32)
    positive_BA = class_BA >= 0
    # The target of an anchor without an object is the anchor itself. With offsets of 0 both value
    # and gradient are 0, whatever the network says there.
    deltas_BA4 = torch.where(positive_BA[..., None], deltas_BA4, 0.0).to(precise)
    box_BA = BOX_LOSSES[settings.box](
        deltas_BA4, anchors_A4.to(precise), target_BA4.to(precise), settings
    )
    return LossSums(
        classification_B=classification_B, box_B=torch.where(positive_BA, box_BA, 0.0).sum(dim=1)
    )


def moving_average(average: float | Tensor, positives: Tensor) -> Tensor:
    """The average after a step with these positives in the global batch (at least 1 counts),
    float32 scalar.
    """
    return AVERAGE_MOMENTUM * average + (1 - AVERAGE_MOMENTUM) * positives.clamp(min=1)


def image_weights(
    positives_B: Tensor,
    *,
    positives: Tensor,
    images: Tensor,
    average: Tensor,
    normalizer: LossNormalizer,
) -> Tensor:
    """The factor of each image's sums, (B,), from the positives of each image, and the positives
    and images (without fillers) of the global batch.

    "batch" divides by the positives of the global batch (section 4.1); "moving_average" by
    `average`; "image" divides each image by its own positives, then by the images (torchvision's
    way: a crowded picture weighs no more than any other). A divisor of 0 is replaced by 1.
    """
    if normalizer == "image":
        return 1 / (positives_B.clamp(min=1) * images.clamp(min=1))
    divisor = average if normalizer == "moving_average" else positives.clamp(min=1)
    return (1 / divisor).expand_as(positives_B)
