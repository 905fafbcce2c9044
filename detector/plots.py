"""Matplotlib figures: precision-recall curves, and detections and annotations drawn on images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from detector.palette import colour_of, ink_on
from detector.plot_names import write_name
from detector.scores import shown

if TYPE_CHECKING:
    # A driver that draws does without torch's operators.
    from detector.decode import Detections
    from detector.metrics import CocoTable

MOST_CURVES = 10
_STYLES = ("-", "--", ":", "-.")


def precision_recall_figure(table: CocoTable) -> Figure:
    """Precision over recall at IoU 0.5, one line a class, at most the ten classes with the most
    objects. Lines of one colour have other dashes.
    """
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    recall = np.linspace(0, 1, 101)
    rows = list(table.per_class.items())
    classes = sorted(range(len(rows)), key=lambda k: -(rows[k][1]["objects"] or 0))[:MOST_CURVES]
    labels: list[tuple[str, str]] = []
    drawn: list[str] = []
    for k in classes:
        name, row = rows[k]
        if row["AP50"] is not None:
            style = _STYLES[drawn.count(colour_of(k)) % len(_STYLES)]
            drawn.append(colour_of(k))
            axes.plot(recall, table.precision_RK[:, k], style, color=colour_of(k))
            numbers = f"  AP50 {row['AP50']:.3f}  ({int(row['objects'] or 0)} objects)"
            labels.append((name, numbers))
    axes.set(
        xlabel="recall",
        ylabel="precision",
        xlim=(0, 1.005),
        ylim=(0, 1.02),
        title=(
            f"IoU 0.5: AP50 {shown(table.summary['AP50'], 3)}, AP {shown(table.summary['AP'], 3)}"
        ),
    )
    axes.grid(alpha=0.3)
    if axes.lines:
        # Matplotlib leaves out a label that begins with an underscore, so the names come later.
        legend = axes.legend(axes.lines, ["-"] * len(labels), loc="lower left", fontsize=8)
        for text, (name, numbers) in zip(legend.get_texts(), labels, strict=True):
            write_name(text, name, after=numbers)
    return figure


MOST_INCHES = 32.0
"""Height of a figure of a picture."""


def overlay_figure(
    image_HW3: np.ndarray,
    detections: Detections,
    class_names: Sequence[str],
    *,
    truth_N4: np.ndarray | None = None,
    score_threshold: float = 0.4,
    title: str = "",
) -> Figure:
    """Detections (XYXY px of the image) above the threshold in the colour of their class; the
    truth, where given, as thin white dashes below them. Where none is above it, the title says so.
    """
    count = len(detections.scores_N)
    if not (detections.scores_N >= score_threshold).any():
        title = f"{title}{title and ': '}0 of {count} above {score_threshold:.2f}"
    figure, axes = _picture_figure(image_HW3, title)
    for box in [] if truth_N4 is None else truth_N4:
        _outline(axes, box, color="black", linewidth=1.6)
        _outline(axes, box, color="white", linewidth=0.9, linestyle="--")
    for box, score, label in zip(
        detections.boxes_N4, detections.scores_N, detections.labels_N, strict=True
    ):
        if score >= score_threshold:
            colour = colour_of(int(label))
            _outline(axes, box, color=colour, linewidth=1.8)
            _write_above(axes, box, class_names[int(label)], colour, after=f" {score:.2f}")
    return figure


def annotation_figure(
    image_HW3: np.ndarray,
    boxes_N4: np.ndarray,
    labels_N: Sequence[int],
    crowd_N: Sequence[bool],
    class_names: Sequence[str],
    *,
    title: str = "",
) -> Figure:
    """Annotated boxes (XYXY px of the picture) in the colour of their class, with its name; crowds
    with dashed lines.
    """
    figure, axes = _picture_figure(image_HW3, title)
    for box, label, crowd in zip(boxes_N4, labels_N, crowd_N, strict=True):
        _outline(
            axes,
            box,
            color=colour_of(label),
            linewidth=1.8,
            linestyle="--" if crowd else "-",
        )
        _write_above(axes, box, class_names[label], colour_of(label))
    return figure


def _picture_figure(image_HW3: np.ndarray, title: str) -> tuple[Figure, Axes]:
    height, width = image_HW3.shape[:2]
    # Inches; a strip of 1 x 5000 px would otherwise be a figure of 40,000 inches and 38 GiB.
    tall = min(8 * height / width, MOST_INCHES)
    figure = Figure(figsize=(8, tall + 0.4), layout="constrained")
    axes = figure.subplots()
    axes.imshow(image_HW3)
    write_name(axes.title, title, most=70)
    axes.set(xlim=(0, width), ylim=(height, 0), autoscale_on=False)
    axes.set_axis_off()
    return figure, axes


def _outline(axes: Axes, box: np.ndarray, **style: Any) -> None:
    x1, y1, x2, y2 = box
    axes.plot([x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1], **style)


def _write_above(axes: Axes, box: np.ndarray, name: str, colour: str, *, after: str = "") -> None:
    ground = dict(facecolor=colour, pad=0.8, linewidth=0)
    text = axes.text(
        box[0], max(box[1], 0), "", color=ink_on(colour), fontsize=7, va="bottom", bbox=ground
    )
    write_name(text, name, after=after)
