"""Search spaces that come with the program, as entries of `sweep.space`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cluster.runs.config import TrainConfig
from tune import fields
from tune.dimensions import four_digits, same

Preset = Literal["focal", "anchors", "focal+anchors", "optimiser", "augmentation", "paper", "none"]

_RETINANET = "model.architecture=retinanet"
FOCAL = {
    "loss.gamma": f"0..5 when {_RETINANET} and loss.classification=focal",
    "loss.alpha": (
        f"0.05..0.95 when {_RETINANET} and loss.classification=focal|balanced_cross_entropy"
    ),
}
BASE_SIZE_FACTORS = tuple(2 ** (half / 2) for half in (-2, -1, 0, 1, 2))
RATIOS = ([1.0], [0.5, 1.0, 2.0], [0.3333, 1.0, 3.0], [0.3333, 0.5, 1.0, 2.0, 3.0])


def entries(preset: Preset, config: TrainConfig) -> dict[str, Any]:
    """The entries of a preset. Those of anchors, optimiser and augmentation lie around the values
    of the configuration.
    """
    match preset:
        case "focal":
            return dict(FOCAL)
        case "anchors":
            return _anchors(config)
        case "focal+anchors":
            return FOCAL | _anchors(config)
        case "optimiser":
            return _optimiser(config)
        case "augmentation":
            return _augmentation(config)
        case "paper":
            return _paper()
        case "none":
            return {}


def _anchors(config: TrainConfig) -> dict[str, Any]:
    given = fields.values_of(config)
    sizes: list[float] = given["model.anchors.base_sizes"]
    lists = {
        "model.anchors.base_sizes": [
            [four_digits(size * factor) for size in sizes] for factor in BASE_SIZE_FACTORS
        ],
        "model.anchors.scales": [octave(count) for count in (1, 2, 3)],
        "model.anchors.ratios": list(RATIOS),
    }
    when = {"model.architecture": "retinanet"}
    return {
        name: {"values": _with(given[name], values), "when": when} for name, values in lists.items()
    }


def octave(scales: int) -> list[float]:
    """So many anchor scales, evenly spread over an octave: 2^(k / scales) (section 4, Anchors)."""
    return [2 ** (k / scales) for k in range(scales)]


def _optimiser(config: TrainConfig) -> dict[str, Any]:
    optimizer = config.optimizer
    rate, decay = optimizer.learning_rate, optimizer.weight_decay or 1e-4
    # The highest values that the two fields take are 10 and 1.
    return {
        "optimizer.learning_rate": f"log {rate / 10:.4g}..{min(rate * 10, 10):.4g}",
        "optimizer.weight_decay": f"log {decay / 10:.4g}..{min(decay * 10, 1):.4g}",
        "optimizer.warmup": "0..0.2",
        "optimizer.clip_norm": _with(optimizer.clip_norm, [1.0, 5.0, 10.0, 35.0]),
    }


def _augmentation(config: TrainConfig) -> dict[str, Any]:
    jitter = "when augmentation.short_sides=null"
    names = ("flip", "vertical_flip", "iou_crop", "photometric", "mosaic", "mixup")
    probabilities = {
        f"augmentation.{name}": _with(getattr(config.augmentation, name), [0.0, 0.5])
        for name in names
    }
    return probabilities | {
        "augmentation.scale_min": f"0.1..1 {jitter}",
        "augmentation.scale_max": f"1..2 {jitter}",
    }


def _with(given: Any, values: Sequence[Any]) -> list[Any]:
    """The values, and before them the configured one where it is not among them."""
    return [*([] if any(same(given, one) for one in values) else [given]), *values]


@dataclass(frozen=True)
class Arm:
    """A row of the paper's ablations."""

    table: str
    label: str
    sample: Mapping[str, Any]
    """The fields in which the row differs from the paper's own model."""
    paper_ap: float | None
    """AP in per cent, as printed."""


TABLE_1A = ((0.10, 0.0), (0.25, 10.8), (0.50, 30.2), (0.75, 31.1), (0.90, 30.8), (0.99, 28.7))
TABLE_1A += ((0.999, 25.1),)
"""alpha and AP of alpha-balanced cross entropy."""
TABLE_1B = (
    (0.0, 0.75, 31.1),
    (0.1, 0.75, 31.4),
    (0.2, 0.75, 31.9),
    (0.5, 0.50, 32.9),
    (1.0, 0.25, 33.7),
    (2.0, 0.25, 34.0),
    (5.0, 0.25, 32.2),
)
"""gamma, the best alpha for it, and AP of the focal loss."""
TABLE_1C = (
    (1, 1, 30.3),
    (2, 1, 31.9),
    (3, 1, 31.8),
    (1, 3, 32.4),
    (2, 3, 34.2),
    (3, 3, 34.0),
    (4, 3, 33.8),
)
"""Scales an octave, ratios, and AP."""
_LOSS = ("loss.classification", "loss.gamma", "loss.alpha")
_ANCHORS = ("model.anchors.scales", "model.anchors.ratios")


def paper_arms() -> tuple[Arm, ...]:
    """The rows of Lin et al., Focal Loss for Dense Object Detection, ICCV 2017: cross entropy of
    section 5.1 and Tables 1a, 1b and 1c (ResNet-50-FPN, 600 px, trained on trainval35k, scored on
    COCO minival). A row of 1c has the focal loss of the configuration; the paper's is gamma 2,
    alpha 0.25. Table 1d is absent: its hard example mining is no setting here.

    A loss that has no gamma or alpha is given their defaults, because the configuration refuses
    others there. Gamma 0 of Table 1b is the balanced cross entropy of Table 1a, so it is written as
    that, and one training serves both rows.
    """
    unused = (2.0, 0.25)
    arms = [_loss_arm("5.1", "cross entropy", ("cross_entropy", *unused), 30.2)]
    arms += [
        _loss_arm("1a", f"alpha {alpha:g}", ("balanced_cross_entropy", unused[0], alpha), ap)
        for alpha, ap in TABLE_1A
    ]
    arms += [
        _loss_arm(
            "1b",
            f"gamma {gamma:g}, alpha {alpha:g}",
            ("focal", gamma, alpha) if gamma else ("balanced_cross_entropy", unused[0], alpha),
            ap,
        )
        for gamma, alpha, ap in TABLE_1B
    ]
    for scales, ratios, ap in TABLE_1C:
        values = (octave(scales), [0.5, 1.0, 2.0] if ratios == 3 else [1.0])
        sample: dict[str, Any] = dict(zip(_ANCHORS, values, strict=True))
        arms.append(Arm("1c", f"scales {scales}, ratios {ratios}", sample, ap))
    return tuple(arms)


def _loss_arm(table: str, label: str, values: tuple[str, float, float], ap: float) -> Arm:
    return Arm(table, label, dict(zip(_LOSS, values, strict=True)), ap)


def _paper() -> dict[str, Any]:
    """The losses and the anchors of all rows, as two lists of fixed values."""
    return {
        "+".join(names): [
            [arm.sample[name] for name in names] for arm in paper_arms() if names[0] in arm.sample
        ]
        for names in (_LOSS, _ANCHORS)
    }
