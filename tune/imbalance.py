"""How rare objects are among the anchors: the imbalance that a loss copes with (section 3)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from cluster.reports.anchor_fit import View
from cluster.shards.statistics import Annotations
from detector.anchors import anchor_grid, match

MOST_IMAGES = 500
"""Images that are matched, spread evenly over the set. Where the positives of an image vary by as
much as their mean, the mean is right to 1 / sqrt(500) = 4 %. 800x800 px with 9 anchors a position
and 8 objects take 0.02 s an image on one core.
"""


@dataclass(frozen=True)
class Imbalance:
    """Means over images."""

    anchors: float
    """Anchors of an image."""
    positives: float
    """Those of them that are assigned to an object."""

    @property
    def anchors_a_positive(self) -> float | None:
        """None where no anchor is assigned."""
        return self.anchors / self.positives if self.positives else None


def measure(
    annotations: Annotations,
    view: View,
    *,
    positive_iou: float = 0.5,
    most: int = MOST_IMAGES,
) -> Imbalance:
    """Match the anchors of up to `most` images as a training does, on the canvas and scale of
    evaluation, which is that of training without scale jitter. An anchor with at least
    `positive_iou` is positive, and the best ones of each object. A crowd is no object.
    """
    placement = view.place(annotations)
    boxes_N4 = torch.from_numpy(placement.boxes(annotations))
    labels_N = torch.from_numpy(np.where(annotations.crowd_N, -1, annotations.labels_N))
    images = len(annotations.heights_I)
    # Boxes are stored image by image.
    bounds = np.searchsorted(annotations.image_N, np.arange(images + 1))
    chosen = np.linspace(0, images - 1, min(images, most)).round().astype(int)
    anchors = positives = 0
    for number, canvas in enumerate(view.canvas.canvases):
        grid_A4 = torch.cat(anchor_grid(*canvas, **view.anchors.model_dump()))
        for image in chosen[placement.canvas_I[chosen] == number].tolist():
            own = slice(bounds[image], bounds[image + 1])
            anchors += len(grid_A4)
            if own.start < own.stop:
                slots_1A = match(
                    grid_A4, boxes_N4[None, own], labels_N[None, own], high=positive_iou
                )
                positives += int((slots_1A >= 0).sum())
    return Imbalance(anchors / max(1, len(chosen)), positives / max(1, len(chosen)))
