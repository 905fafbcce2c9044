"""The curves of a training over the images seen, as one picture."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from detector.palette import COLOURS

PANELS = {
    "loss": ("train/classification", "train/box"),
    "learning rate": ("train/learning_rate",),
    "average precision": ("val/AP", "val/AP50"),
}
"""Title -> the metrics that a panel shows."""
METRICS = tuple(name for names in PANELS.values() for name in names)
_FEW = 60
"""Points of a line up to which each is marked."""


def draw_curves(curves: Mapping[str, Sequence[tuple[int, float]]], *, heading: str) -> bytes:
    """A PNG. `curves` have (images seen, value) by metric, ordered by images seen; those that are
    missing or empty are left out.
    """
    figure = Figure(figsize=(15, 4.2), layout="constrained")
    figure.suptitle(heading, fontsize=11, parse_math=False)
    for axes, (title, names) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        # Told apart without colour too.
        for name, colour, style in zip(names, COLOURS, ("-", "--"), strict=False):
            points = curves.get(name, ())
            if points:
                images_seen, values = zip(*points, strict=True)
                marker = "o" if len(points) <= _FEW else ""
                axes.plot(images_seen, values, style, color=colour, marker=marker, ms=3, label=name)
        axes.set(title=title, xlabel="images seen")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=8)
        else:
            axes.text(0.5, 0.5, "no value", transform=axes.transAxes, ha="center")
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=100)
    return sink.getvalue()
