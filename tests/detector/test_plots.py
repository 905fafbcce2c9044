"""The pictures hold what they claim: the right curves, names, colours and boxes."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from detector.decode import Detections
from detector.metrics import SUMMARY_NAMES, CocoTable
from detector.palette import COLOURS
from detector.plots import annotation_figure, overlay_figure, precision_recall_figure


def table(objects: list[int]) -> CocoTable:
    """A table of classes c0, c1, ...; a class without objects has no score."""
    precision = np.linspace(1, 0.5, 101)[:, None] * np.ones(len(objects))
    precision[:, [count == 0 for count in objects]] = -1
    rows = {
        f"c{k}": {"AP": 0.4 if n else None, "AP50": 0.75 if n else None, "objects": float(n)}
        for k, n in enumerate(objects)
    }
    return CocoTable(dict.fromkeys(SUMMARY_NAMES, 0.4), rows, precision, 5, 9)


def png(figure) -> np.ndarray:
    sink = io.BytesIO()
    figure.savefig(sink, format="png")
    return np.asarray(Image.open(sink).convert("RGB"))


def test_a_curve_for_each_class_with_truth():
    figure = precision_recall_figure(table([4, 0, 9]))
    (axes,) = figure.axes
    # Most objects first.
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "c2  AP50 0.750  (9 objects)",
        "c0  AP50 0.750  (4 objects)",
    ]
    recall, precision = axes.lines[0].get_data()
    assert recall[0] == 0 and recall[-1] == 1 and len(recall) == 101
    assert precision[0] == 1 and precision[-1] == pytest.approx(0.5)
    assert "0.400" in axes.get_title()
    assert png(figure).std() > 5


def test_ten_classes_at_most_and_those_with_most_objects():
    (axes,) = precision_recall_figure(table(list(range(1, 16)))).axes
    assert [text.get_text().split()[0] for text in axes.get_legend().get_texts()] == [
        f"c{k}" for k in range(14, 4, -1)
    ]
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == 10


def test_no_truth_gives_an_empty_plot():
    figure = precision_recall_figure(
        replace(table([0, 0]), summary=dict.fromkeys(SUMMARY_NAMES, None))
    )
    assert not figure.axes[0].lines and figure.axes[0].get_legend() is None
    assert figure.axes[0].get_title() == "IoU 0.5: AP50 -, AP -"
    assert png(figure).shape[2] == 3


def test_a_class_has_its_name_in_the_legend_whatever_it_is_called():
    names = ["_private", "$\\frac{", "a\nb", "\ue000"]
    rows = {name: {"AP": 0.4, "AP50": 0.75, "objects": 9.0} for name in names}
    figure = precision_recall_figure(replace(table([9] * 4), per_class=rows))
    shown = [text.get_text().split("  ")[0] for text in figure.axes[0].get_legend().get_texts()]
    assert shown[:3] == ["_private", "$\\frac{", "a\\nb"] and shown[3] == "\\ue000"
    # Warnings are errors, so that a missing glyph would end the test.
    assert png(figure).std() > 5


def found() -> Detections:
    boxes = np.array([[10, 5, 60, 40], [70, 50, 90, 70], [1, 1, 9, 9]], np.float32)
    return Detections(boxes, np.array([0.95, 0.5, 0.2], np.float32), np.array([1, 0, 1]))


def test_overlay_draws_what_is_above_the_threshold():
    (axes,) = overlay_figure(
        np.zeros((80, 120, 3), np.uint8), found(), ("cat", "dog"), title="7.jpg"
    ).axes
    assert [text.get_text() for text in axes.texts] == ["dog 0.95", "cat 0.50"]
    xs, ys = axes.lines[0].get_data()
    assert (min(xs), max(xs), min(ys), max(ys)) == (10, 60, 5, 40)
    assert [to_hex(line.get_color()) for line in axes.lines] == [COLOURS[1], COLOURS[0]]
    # Pixel rows run down, the picture fills the axes.
    assert (
        axes.get_ylim() == (80, 0) and axes.get_xlim() == (0, 120) and axes.get_title() == "7.jpg"
    )


def test_overlay_draws_the_truth_beneath():
    truth = np.array([[20, 20, 50, 60]], np.float32)
    (axes,) = overlay_figure(
        np.zeros((80, 120, 3), np.uint8),
        found(),
        ("cat", "dog"),
        truth_N4=truth,
        score_threshold=0.9,
    ).axes
    # A dark line under white dashes, then the one detection.
    assert len(axes.lines) == 3 and axes.lines[1].get_linestyle() == "--"
    xs, ys = axes.lines[0].get_data()
    assert (min(xs), max(xs), min(ys), max(ys)) == (20, 50, 20, 60)


def test_an_overlay_without_a_box_says_why():
    # Scores 0.95, 0.5 and 0.2.
    picture = np.zeros((80, 120, 3), np.uint8)
    (axes,) = overlay_figure(
        picture, found(), ("cat", "dog"), score_threshold=0.96, title="7.jpg"
    ).axes
    assert axes.get_title() == "7.jpg: 0 of 3 above 0.96" and not axes.lines
    (axes,) = overlay_figure(picture, found(), ("cat", "dog"), score_threshold=0.95).axes
    assert axes.get_title() == "" and len(axes.lines) == 1


def test_annotations_are_outlined_and_named_crowds_dashed():
    boxes = np.array([[10, 5, 60, 40], [70, 50, 90, 70]], np.float32)
    (axes,) = annotation_figure(
        np.zeros((80, 120, 3), np.uint8),
        boxes,
        [1, 0],
        [False, True],
        ("cat", "a $dog$"),
        title="$7.jpg",
    ).axes
    # A dollar sign starts no formula.
    assert [text.get_text() for text in axes.texts] == ["a $dog$", "cat"] and not any(
        text.get_parse_math() for text in [*axes.texts, axes.title]
    )
    assert [to_hex(line.get_color()) for line in axes.lines] == [COLOURS[1], COLOURS[0]]
    assert [line.get_linestyle() for line in axes.lines] == ["-", "--"]
    xs, ys = axes.lines[1].get_data()
    assert (
        (min(xs), max(xs), min(ys), max(ys)) == (70, 90, 50, 70)
        and axes.get_xlim() == (0, 120)
        and axes.get_ylim() == (80, 0)
    )


@pytest.mark.parametrize("shape", [(80, 120), (300, 20), (20, 300)])
def test_overlay_of_nothing_shows_the_picture(shape):
    image = np.full((*shape, 3), (200, 30, 30), np.uint8)
    nothing = Detections(
        np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64)
    )
    pixels = png(overlay_figure(image, nothing, ("cat",)))
    assert (np.abs(pixels.astype(int) - (200, 30, 30)).sum(axis=2) < 10).mean() > 0.2
    assert max(pixels.shape) < 20_000
