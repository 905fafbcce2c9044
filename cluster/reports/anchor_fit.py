"""How well anchors fit the objects of a set, on the canvas on which the network sees them.

Suffix N: objects.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from cluster.shards.statistics import Annotations, Placement, place_images
from detector.canvas_fit import fit_canvas
from detector.image_config import CanvasConfig
from detector.model_config import AnchorConfig

BACKGROUND_BELOW = 0.4
"""IoU below which an anchor is background in matching (section 4, Anchors). An object without an
anchor above it keeps its best ones alone, one or a few, and is hardly learnt.
"""
MOST_UNFIT, ENOUGH = 0.25, 5
"""A class of which a larger share, and at least so many objects, have no such anchor is named."""
MOST_OBJECTS = 50_000
"""Objects that the warning looks at. They are every n-th, so the share is right to a fraction of a
percent; looking at them takes 0.1 s.
"""
SHOWN = 5
"""Classes in a sentence."""


@dataclass(frozen=True)
class View:
    """The settings of a network that decide which anchor fits an object."""

    canvas: CanvasConfig
    anchors: AnchorConfig

    def of(self, annotations: Annotations) -> View:
        """With the canvases that a training on these pictures takes."""
        if self.canvas.is_given:
            return self
        return replace(self, canvas=fit_canvas(annotations.heights_I, annotations.widths_I))

    def place(self, annotations: Annotations) -> Placement:
        return place_images(
            annotations.heights_I,
            annotations.widths_I,
            canvases=self.canvas.canvases,
            long_side=self.canvas.long_side,
        )

    def describe_canvas(self) -> str:
        """The canvas as part of a sentence, width x height as readers of pictures expect it."""
        sizes = [f"{width} x {height}" for height, width in self.canvas.canvases]
        return f"the canvas{'es' if len(sizes) > 1 else ''} of {', '.join(sizes)} px"


DEFAULT_VIEW = View(CanvasConfig(), AnchorConfig())


def best_iou_of_objects(objects: Annotations, view: View) -> np.ndarray:
    """float32 (N,): the highest IoU of each object with any anchor."""
    placement = view.place(objects)
    return best_iou_on_canvas(
        placement.boxes(objects),
        placement.canvas_I[objects.image_N],
        canvases=view.canvas.canvases,
        anchors=view.anchors,
    )


def best_iou_on_canvas(
    boxes_N4: np.ndarray,
    canvas_N: np.ndarray,
    *,
    canvases: Sequence[tuple[int, int]],
    anchors: AnchorConfig,
) -> np.ndarray:
    """float32 (N,): the highest IoU of each box with any anchor. Boxes are XYXY px on the canvas
    (height, width) whose number `canvas_N` has.
    """
    # Imported here: a verb that only names a `View` does not wait for torch.
    import torch

    from detector.anchors import best_iou

    result_N = np.zeros(len(boxes_N4), np.float32)
    for number, canvas in enumerate(canvases):
        on_N = canvas_N == number
        boxes = torch.from_numpy(boxes_N4[on_N])
        result_N[on_N] = best_iou(boxes, *canvas, **anchors.model_dump())
    return result_N


class _Change(NamedTuple):
    """Other settings, and the options that choose them."""

    options: str
    view: View


def _changes(view: View) -> Iterator[_Change]:
    """Settings that may fit better, those first that cost the least."""
    anchors, canvas = view.anchors, view.canvas
    for factor in (0.5, 0.25, 2):
        sizes = tuple(size * factor for size in anchors.base_sizes)
        options = f"--model.anchors.base_sizes {_list(sizes)}"
        yield _Change(options, View(canvas, anchors.model_copy(update={"base_sizes": sizes})))
    ratios = (0.4 * min(anchors.ratios), *anchors.ratios, 2.5 * max(anchors.ratios))
    options = f"--model.anchors.ratios {_list(ratios)}"
    yield _Change(options, View(canvas, anchors.model_copy(update={"ratios": ratios})))
    height, width = (2 * side for side in canvas.canvases[0])
    if not canvas.shapes and max(height, width) <= 4096:
        options = f"--canvas.height {height} --canvas.width {width}"
        larger = canvas.model_copy(update={"height": height, "width": width})
        yield _Change(options, View(larger, anchors))


def _list(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)


def warning(objects: Annotations, names: Sequence[str], view: View) -> str | None:
    """A sentence where the anchors do not fit: the classes, the share of their objects, and the
    setting that mends it; None where they fit. `objects` holds no crowds.
    """
    objects = objects.every(-(-len(objects.labels_N) // MOST_OBJECTS) or 1)
    unfit_N = best_iou_of_objects(objects, view) < BACKGROUND_BELOW
    all_K = np.bincount(objects.labels_N, minlength=len(names))
    unfit_K = np.bincount(objects.labels_N[unfit_N], minlength=len(names))
    named = np.flatnonzero((unfit_K >= ENOUGH) & (unfit_K > MOST_UNFIT * all_K))
    if not len(named):
        return None
    named = named[np.argsort(-unfit_K[named], kind="stable")].tolist()
    shares = [f"{names[k]!r} ({unfit_K[k] / all_K[k]:.0%})" for k in named[:SHOWN]]
    more = f" and {len(named) - SHOWN} more classes" if len(named) > SHOWN else ""
    mine_N = np.isin(objects.labels_N, named)
    return (
        f"many objects of {', '.join(shares)}{more} have no anchor with an IoU of"
        f" {BACKGROUND_BELOW:g} on {view.describe_canvas()}, so the network hardly learns them;"
        f" {_remedy(objects.where(mine_N), float(unfit_N[mine_N].mean()), view)}"
    )


def _remedy(objects: Annotations, share: float, view: View) -> str:
    """`share` of these objects have no fitting anchor."""
    tried = [
        (float((best_iou_of_objects(objects, change.view) < BACKGROUND_BELOW).mean()), change)
        for change in _changes(view)
    ]
    best = min(left for left, _ in tried)
    # A cheaper setting that is as good to a few percent is better.
    left, change = next(one for one in tried if one[0] <= best + 0.02)
    if left > share / 2:
        return "try other --model.anchors.* and a larger --canvas"
    return f"with {change.options} it would be {left:.0%} instead of {share:.0%}"
