"""The picture of the curves shows what there is."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from cluster.reports.training_curves import METRICS, draw_curves

CURVES = {name: [(8, 0.5), (16, 0.25), (24, 0.125)] for name in METRICS}


def pixels(curves: dict[str, list[tuple[int, float]]]) -> np.ndarray:
    image = Image.open(io.BytesIO(draw_curves(curves, heading="cells")))
    assert image.format == "PNG"
    return np.asarray(image.convert("RGB")).astype(int)


def test_each_curve_is_in_its_panel() -> None:
    """Left the losses, in the middle the learning rate, right AP: the first of a panel is blue."""
    for place, name in enumerate(("train/classification", "train/learning_rate", "val/AP")):
        shown = pixels({name: CURVES[name]})
        blue = (shown[..., 2] - shown[..., 0] > 80).any(axis=0)
        thirds = np.array_split(blue, 3)
        assert [bool(third.any()) for third in thirds] == [n == place for n in range(3)], name


def test_a_run_without_an_evaluation_has_its_losses() -> None:
    some = {"train/box": CURVES["train/box"], "val/AP": []}
    assert (pixels(some) != pixels({})).any()


def test_long_curves_have_no_marks() -> None:
    long = [(step, float(np.sin(step / 900))) for step in range(5000)]
    assert pixels({"train/box": long}).size
