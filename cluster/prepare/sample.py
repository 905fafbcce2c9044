"""A sample of the annotations of a plan in px, before anything is prepared."""

from __future__ import annotations

import numpy as np

from cluster.prepare.image import read_picture
from cluster.prepare.plan import Plan
from cluster.shards.statistics import Annotations
from detector.image import ORIENTATION, ImageError, opened

MOST = 400
"""Pictures. Only those are opened whose size the annotations do not give."""


def sample_annotations(plan: Plan, *, most: int = MOST) -> Annotations:
    """The objects of evenly spaced pictures that can be used: no crowds, and boxes cut to their
    picture. Labels are 0..K-1, areas those of the boxes.
    """
    usable = np.sort(np.concatenate(plan.cuts)) if plan.cuts else np.zeros(0, np.int64)
    chosen = usable[np.unique(np.linspace(0, len(usable) - 1, most).round().astype(int))]
    sizes: list[tuple[int, int]] = []
    boxes: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    for position in chosen.tolist() if len(usable) else ():
        image = plan.images[position]
        size = (image.height, image.width)
        if size[0] is None or size[1] is None:
            found = _size_of(read_picture(image, plan.folders[image.source]))
            if found is None:
                continue
            size = found
        height, width = size
        kept = [one for one in image.annotations if not one.crowd]
        boxes_N4 = np.array([one.box for one in kept], np.float32).reshape(-1, 4)
        limit = np.array([width, height, width, height], np.float32)
        boxes_N4 = np.clip(np.nan_to_num(boxes_N4) * (limit if image.normalised else 1), 0, limit)
        there_N = (boxes_N4[:, 2:] > boxes_N4[:, :2]).all(axis=1)
        sizes.append((height, width))
        boxes.append(boxes_N4[there_N])
        labels.append(np.array([one.label for one in kept], np.int64)[there_N])
    counts_I = [len(one) for one in boxes]
    sizes_I2 = np.array(sizes, np.int64).reshape(-1, 2)
    boxes_N4 = np.concatenate([np.empty((0, 4), np.float32), *boxes])
    return Annotations(
        heights_I=sizes_I2[:, 0],
        widths_I=sizes_I2[:, 1],
        image_N=np.repeat(np.arange(len(counts_I)), counts_I),
        boxes_N4=boxes_N4,
        labels_N=np.concatenate([np.zeros(0, np.int64), *labels]),
        crowd_N=np.zeros(len(boxes_N4), bool),
        area_N=(boxes_N4[:, 2:] - boxes_N4[:, :2]).prod(axis=1),
    )


def _size_of(data: bytes | str) -> tuple[int, int] | None:
    """(height, width) px of the upright picture; None where it cannot be read."""
    if isinstance(data, str):
        return None
    try:
        with opened(data) as picture:
            width, height = picture.size
            turned = picture.getexif().get(ORIENTATION, 1) in range(5, 9)
            return (width, height) if turned else (height, width)
    except ImageError:
        return None
