"""A sheet of several pictures with their boxes, as one JPEG. Shapes: N boxes, M dashed boxes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from detector.palette import colour_of, ink_on
from detector.plot_names import write_name

MOST_NAMED = 30
"""Boxes of a picture that have a name, the first ones: more would hide the picture."""
_WIDE, _CAPTION, _HEADING = 4.2, 0.28, 0.36
"""Inches: the width of a picture, and the height of the words above it and above the sheet."""
_GAP = 0.04
"""Inches at the sides of a picture."""
_DPI = 110


def _no_boxes() -> np.ndarray:
    return np.empty((0, 4), np.float32)


@dataclass(frozen=True)
class SheetPicture:
    """Boxes are XYXY px of the image."""

    image_HW3: np.ndarray
    """uint8."""
    name: str
    caption: str
    """What is said behind the name."""
    boxes_N4: np.ndarray
    """Drawn in the colour of their class, with its name."""
    labels_N: np.ndarray
    """int64, 0..K-1."""
    scores_N: np.ndarray | None = None
    """Written behind the names."""
    dashed_M4: np.ndarray = field(default_factory=_no_boxes)
    """Drawn as white dashes over the others."""


def draw_sheet(
    pictures: Sequence[SheetPicture], class_names: Sequence[str], *, heading: str, columns: int
) -> bytes:
    """The pictures from left to right, from top to bottom, as a JPEG; a cell is as high as the
    tallest picture needs, at most a square.
    """
    columns = max(1, min(columns, len(pictures)))
    rows = -(-len(pictures) // columns)
    shapes = [picture.image_HW3.shape for picture in pictures]
    tall = _WIDE * min(1.0, max((height / width for height, width, _ in shapes), default=1.0))
    width, height = columns * _WIDE, rows * (tall + _CAPTION) + _HEADING
    figure = Figure(figsize=(width, height), dpi=_DPI)
    figure.text(
        0.005, 1 - 0.5 * _HEADING / height, heading, va="center", fontsize=11, parse_math=False
    )
    for place, picture in enumerate(pictures):
        row, column = divmod(place, columns)
        bottom = height - _HEADING - (row + 1) * (tall + _CAPTION)
        # Inches to shares of the sheet.
        left, wide = (column * _WIDE + _GAP) / width, (_WIDE - 2 * _GAP) / width
        axes = figure.add_axes((left, bottom / height, wide, tall / height))
        _draw(axes, picture, class_names)
    sink = io.BytesIO()
    figure.savefig(sink, format="jpeg", pil_kwargs={"quality": 88})
    return sink.getvalue()


def _draw(axes: Axes, picture: SheetPicture, class_names: Sequence[str]) -> None:
    height, width = picture.image_HW3.shape[:2]
    axes.imshow(picture.image_HW3)
    axes.set(xlim=(0, width), ylim=(height, 0), autoscale_on=False, anchor="NW")
    axes.set_axis_off()
    title = axes.text(0, 1.01, "", transform=axes.transAxes, fontsize=8, va="bottom")
    write_name(title, picture.name, after=picture.caption, most=40)
    colours = [colour_of(int(label)) for label in picture.labels_N]
    _outline(axes, picture.boxes_N4, edgecolors=colours, linewidths=1.6)
    _outline(axes, picture.dashed_M4, edgecolors="black", linewidths=1.5)
    _outline(axes, picture.dashed_M4, edgecolors="white", linewidths=0.9, linestyles="--")
    for i in range(min(MOST_NAMED, len(colours))):
        left, top, _, _ = picture.boxes_N4[i]
        # Above the box where there is room for a line, which takes about a 20th of the picture.
        inside = top < height / 18
        text = axes.text(
            max(left, 0),
            max(top, 0),
            "",
            color=ink_on(colours[i]),
            fontsize=6.5,
            va="top" if inside else "bottom",
            bbox={"facecolor": colours[i], "pad": 0.6, "linewidth": 0},
            clip_on=True,
        )
        score = "" if picture.scores_N is None else f" {picture.scores_N[i]:.2f}"
        write_name(text, class_names[int(picture.labels_N[i])], after=score, most=20)


def _outline(axes: Axes, boxes_N4: np.ndarray, **style: object) -> None:
    if len(boxes_N4):
        # x1 y1, x2 y1, x2 y2, x1 y2
        corners_N42 = np.asarray(boxes_N4)[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)
        axes.add_collection(PolyCollection(list(corners_N42), facecolors="none", **style))  # pyright: ignore[reportArgumentType]
