"""Pictures for people: PR curves, detections and annotations drawn on images. Matplotlib figures
and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from detector.decode import Detections
from detector.metrics import CocoTable

COLOURS = (
    "#e6194b",
    "#3cb44b",
    "#4363d8",
    "#f58231",
    "#911eb4",
    "#008080",
    "#9a6324",
    "#808000",
    "#000075",
    "#f032e6",
)


def precision_recall_figure(table: CocoTable) -> Figure:
    """Precision over recall at IoU 0.5, one line a class (the ten classes with most objects where
    there are more).
    """
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    recall = np.linspace(0, 1, 101)
    rows = list(table.per_class.items())
    shown = sorted(range(len(rows)), key=lambda k: -rows[k][1]["objects"])[: len(COLOURS)]
    for place, k in enumerate(shown):
        name, row = rows[k]
        if row["AP50"] >= 0:
            axes.plot(
                recall,
                table.precision_RK[:, k],
                color=COLOURS[place],
                label=f"{name}  AP50 {row['AP50']:.3f}  ({int(row['objects'])} objects)",
            )
    axes.set(
        xlabel="recall",
        ylabel="precision",
        xlim=(0, 1.005),
        ylim=(0, 1.02),
        title=f"IoU 0.5: AP50 {table.summary['AP50']:.3f}, AP {table.summary['AP']:.3f}",
    )
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(loc="lower left", fontsize=8)
    return figure


def overlay_figure(
    image_HW3: np.ndarray,
    found: Detections,
    class_names: Sequence[str],
    *,
    truth_N4: np.ndarray | None = None,
    score_threshold: float = 0.4,
    title: str = "",
) -> Figure:
    """Detections above the threshold in their class's colour; the truth, where given, as thin white
    dashes beneath.
    """
    figure, axes = picture_figure(image_HW3, title)
    for box in [] if truth_N4 is None else truth_N4:
        outline(axes, box, color="black", linewidth=1.6)
        outline(axes, box, color="white", linewidth=0.9, linestyle="--")
    for box, score, label in zip(found.boxes_N4, found.scores_N, found.labels_N, strict=True):
        if score >= score_threshold:
            outline(axes, box, color=COLOURS[int(label) % len(COLOURS)], linewidth=1.8)
            write_above(
                axes,
                box,
                f"{class_names[int(label)]} {score:.2f}",
                COLOURS[int(label) % len(COLOURS)],
            )
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
    """Annotated boxes (XYXY px of the picture) in their class's colour, with its name; crowds
    dashed.
    """
    figure, axes = picture_figure(image_HW3, title)
    for box, label, crowd in zip(boxes_N4, labels_N, crowd_N, strict=True):
        outline(
            axes,
            box,
            color=COLOURS[label % len(COLOURS)],
            linewidth=1.8,
            linestyle="--" if crowd else "-",
        )
        write_above(axes, box, class_names[label], COLOURS[label % len(COLOURS)])
    return figure


def picture_figure(image_HW3: np.ndarray, title: str) -> tuple[Figure, Axes]:
    height, width = image_HW3.shape[:2]
    figure = Figure(figsize=(8, 8 * height / width + 0.4), layout="constrained")
    axes = figure.subplots()
    axes.imshow(image_HW3)
    # A name may hold signs that matplotlib would take for a formula.
    axes.set_title(title, parse_math=False)
    axes.set(xlim=(0, width), ylim=(height, 0), autoscale_on=False)
    axes.set_axis_off()
    return figure, axes


def outline(axes: Axes, box: np.ndarray, **style: Any) -> None:
    x1, y1, x2, y2 = box
    axes.plot([x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1], **style)


def write_above(axes: Axes, box: np.ndarray, text: str, colour: str) -> None:
    ground = dict(facecolor=colour, pad=0.8, linewidth=0)
    axes.text(
        box[0],
        max(box[1], 0),
        text,
        color="white",
        fontsize=7,
        va="bottom",
        bbox=ground,
        parse_math=False,
    )
