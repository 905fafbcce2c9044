"""A card says what is known and what is not, and fits into the registry."""

from __future__ import annotations

from typing import Any

from cluster.runs.evaluations import Evaluation
from cluster.tracking.model_card import DESCRIPTION, LEFT_OUT, model_card, short_card

CONFIG = {
    "model": {"architecture": "retinanet", "backbone": "resnet18"},
    "canvas": {"height": 320, "width": 448},
    "decode": {"score_threshold": 0.05, "nms_threshold": 0.5, "max_detections": 100},
    "data": {"train": "/gone/train", "val": "/gone/val"},
    "pretrained": "s3://weights/coco.pt",
    "training": {"seed": 3},
}


def card(
    per_class: dict[str, float | None],
    interval: tuple[float, float] | None = None,
    **metrics: Any,
) -> str:
    best = Evaluation(
        "/runs/a/checkpoints/images-9",
        900,
        3,
        weights="ema",
        metrics={"AP": 0.5, "AP50": 0.75, **metrics},
        per_class=per_class,
        images_evaluated=87,
    )
    return model_card(
        "cells",
        best,
        CONFIG,
        interval=interval,
        run="/runs/a",
        digest="abc",
        licence="CC-BY-4.0",
    )


def test_what_is_known_is_in_the_card_and_what_is_not_among_the_limits() -> None:
    text = card({"rbc": 0.6, "platelets": 0.05, "wbc": None}, AP_small=None, AP_large=0.7)
    for said in (
        "# cells\n\nA RetinaNet on a resnet18 that detects 3 classes.",
        "| 0.500 | 0.750 | - | - | - | 0.700 |",
        "validation set of 87 images",
        "| platelets | 0.050 |",
        "- train: /gone/train, which cannot be read now",
        "- canvas: 320 x 448 px",
        "- small objects: the validation set has none",
        "- AP below 0.1: platelets",
        "- the validation set has no object of: wbc",
        "- weights: moving average",
        "- started from: s3://weights/coco.pt",
        "## Licence\n\nCC-BY-4.0",
    ):
        assert said in text, said
    assert short_card(text) == text


def test_the_interval_of_ap_is_that_of_the_evaluation_or_said_to_be_missing() -> None:
    assert "The 95 % interval of AP is 0.450 to 0.547 (" in card({"rbc": 0.6}, (0.45, 0.5468))
    assert "interval of AP is not known; `evaluate` before `register`" in card({"rbc": 0.6})


def test_a_card_of_many_classes_is_cut_between_two_of_them() -> None:
    text = card({f"class {number}": 0.5 for number in range(1203)})
    short = short_card(text)
    assert DESCRIPTION - 50 < len(short) <= DESCRIPTION
    assert LEFT_OUT in short and "## Licence" in short and "| class 1 | 0.500 |" in short
    cut = short[: short.index(LEFT_OUT)]
    assert text.startswith(cut) and cut.endswith("| 0.500 |")


def test_a_class_name_does_not_break_the_table() -> None:
    assert "| a\\|b\\<i\\> | 0.500 |" in card({"a|b<i>": 0.5})
