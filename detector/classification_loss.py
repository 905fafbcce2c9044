"""The classification loss of every anchor and class. `CLASSIFICATION_LOSSES` is the one list of
them. Shapes: B batch, A anchors, K classes.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from detector.choices import ClassificationLoss, LossSettings
from detector.focal import focal_sums

ClassificationLossFunction = Callable[[Tensor, Tensor, LossSettings], Tensor]
"""Logits (B, A, K) and the class of each anchor (B, A), `BACKGROUND` or `IGNORED` where it has no
object, -> the sum over anchors and classes of each image, (B,), in float32 or the logits' larger
dtype. All shapes are those of the canvas, so that one compiled program serves every batch.
"""


def _focal(logits_BAK: Tensor, class_BA: Tensor, settings: LossSettings) -> Tensor:
    return focal_sums(logits_BAK, class_BA, gamma=settings.gamma, alpha=settings.alpha)


def _balanced_cross_entropy(logits_BAK: Tensor, class_BA: Tensor, settings: LossSettings) -> Tensor:
    """The focal loss without focusing."""
    return focal_sums(logits_BAK, class_BA, gamma=0.0, alpha=settings.alpha)


def _cross_entropy(logits_BAK: Tensor, class_BA: Tensor, settings: LossSettings) -> Tensor:
    """Positives and negatives weigh the same."""
    return focal_sums(logits_BAK, class_BA, gamma=0.0, alpha=None)


CLASSIFICATION_LOSSES: dict[ClassificationLoss, ClassificationLossFunction] = {
    "focal": _focal,
    "balanced_cross_entropy": _balanced_cross_entropy,
    "cross_entropy": _cross_entropy,
}
