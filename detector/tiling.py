"""The views of a picture that the network detects in: the whole picture and, where it is larger
than a tile, overlapping tiles. Small objects of a large picture stay as large as the tile's scale
makes them (Akyon et al., Slicing Aided Hyper Inference, ICIP 2022).

`detector/merge.py` puts the detections of the views together.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from detector.batch import Sample
from detector.choices import ViewSettings
from detector.image import Jpeg, open_image
from detector.placement import evaluation_sample


@dataclass(frozen=True)
class View:
    """A part of a picture that the network sees at once."""

    picture: tuple[int, int]
    """(height, width) px of the picture."""
    size: tuple[int, int]
    """(height, width) px."""
    corner: tuple[int, int] = (0, 0)
    """(y, x) px of its top left pixel in the picture."""
    number: int = 0
    """Among the views of the picture, from 0, which is the whole picture."""
    views: int = 1
    """Views that the picture has."""

    @property
    def is_whole(self) -> bool:
        return self.size == self.picture


def views_of(height: int, width: int, settings: ViewSettings) -> list[View]:
    """The whole picture of (height, width) px, then its tiles, row by row. A picture that is no
    larger than a tile has no others.

    The tiles cover every pixel, and all have the same size: that of a tile or, along a side of the
    picture that is shorter, this side. So they prefer the same canvas.
    """
    tile, picture = settings.tile, (height, width)
    corners: list[tuple[int, int]] = []
    if tile is not None and max(picture) > tile:
        down, across = (_starts(side, tile, settings.overlap) for side in picture)
        corners = [(y, x) for y in down for x in across]
    count = 1 + len(corners)
    size = (min(height, tile or height), min(width, tile or width))
    return [View(picture, picture, views=count)] + [
        View(picture, size, corner, number, count) for number, corner in enumerate(corners, start=1)
    ]


def _starts(side: int, tile: int, overlap: float) -> list[int]:
    """Where the tiles along a side of a picture begin, in px: as few as the overlap allows, evenly
    spread, the last one at the border.
    """
    if side <= tile:
        return [0]
    shared = math.ceil(tile * overlap)
    gaps = math.ceil((side - tile) / (tile - shared))
    # Rounded down, two neighbours are at most ceil((side - tile) / gaps) <= tile - shared apart.
    return [number * (side - tile) // gaps for number in range(gaps + 1)]


class Picture:
    """A picture of which threads take views. It is opened, and decoded in full, once and not before
    a view needs it.
    """

    def __init__(self, image: bytes | memoryview | np.ndarray | Jpeg):
        self._image = image
        self._lock = threading.Lock()
        self._pixels_HW3: np.ndarray | None = None

    def part(self, view: View) -> np.ndarray | Jpeg:
        """The view of the upright picture: RGB uint8 (H, W, 3) or, of the whole, what `open_image`
        returns: what is detected in it is then the same with tiles and without. `ImageError` as in
        `open_image`.
        """
        with self._lock:
            image = self._image
            if isinstance(image, bytes | memoryview):
                image = self._image = open_image(image)
            if view.is_whole:
                return image
            if isinstance(image, Jpeg):
                if self._pixels_HW3 is None:
                    self._pixels_HW3 = image.pixels()
                image = self._pixels_HW3
        (top, left), (height, width) = view.corner, view.size
        return image[top : top + height, left : left + width]


def view_sample(
    picture: Picture,
    image_id: int,
    view: View,
    *,
    canvases: Sequence[tuple[int, int]],
    long_side: int | None = None,
) -> tuple[Sample, View]:
    """The view on the canvas that it prefers, see `evaluation_sample`. `ImageError` where the
    picture cannot be decoded.
    """
    part = picture.part(view)
    return evaluation_sample(part, image_id, canvases=canvases, long_side=long_side), view
