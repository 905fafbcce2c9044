"""Images and boxes taken one by one from a table, as columns from the first on: a box takes 65
bytes, the 14.6 million of OpenImages 0.9 GB.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from cluster.formats.annotations import NO_ID, AnnotationColumns, Box, Images, make_images


def _whole() -> array[int]:
    return array("q")


def _real() -> array[float]:
    return array("d")


@dataclass
class Columns:
    """`Images` that grow. A height or width of 0 means "not given"."""

    names: list[str] = field(default_factory=list)
    ids: array[int] = field(default_factory=_whole)
    heights: array[int] = field(default_factory=_whole)
    widths: array[int] = field(default_factory=_whole)
    owners: array[int] = field(default_factory=_whole)
    """The position in `names` of each box's image."""
    numbers: array[int] = field(default_factory=_whole)
    """The id of each box."""
    labels: array[int] = field(default_factory=_whole)
    corners: array[float] = field(default_factory=_real)
    """Four numbers for each box."""
    crowds: array[int] = field(default_factory=lambda: array("b"))
    areas: array[float] = field(default_factory=_real)

    def add_image(self, image_id: int, name: str, height: int = 0, width: int = 0) -> int:
        """Returns the position of the image, for its boxes."""
        self.names.append(name)
        self.ids.append(image_id)
        self.heights.append(height)
        self.widths.append(width)
        return len(self.names) - 1

    def add_box(
        self,
        owner: int,
        label: int,
        box: Box,
        *,
        number: int = NO_ID,
        crowd: bool = False,
        area: float = math.nan,
    ) -> None:
        self.owners.append(owner)
        self.numbers.append(number)
        self.labels.append(label)
        self.corners.extend(box)
        self.crowds.append(crowd)
        self.areas.append(area)

    def boxes_N4(self) -> np.ndarray:
        return np.array(self.corners, np.float64).reshape(-1, 4)

    def to_images(
        self,
        boxes_N4: np.ndarray,
        labels_K: Sequence[int],
        *,
        normalised: bool,
        kept_I: Sequence[bool] | None = None,
    ) -> Images:
        """The images by id, with `boxes_N4` (XYXY) for their boxes and the label `labels_K[k]` for
        the boxes that were added with label k. `kept_I` says which images are wanted, all by
        default.
        """
        kept = np.ones(len(self.names), np.bool_) if kept_I is None else np.array(kept_I, np.bool_)
        owners_N = np.array(self.owners, np.int64)
        kept_N = kept[owners_N]
        return make_images(
            ids=np.array(self.ids, np.int64)[kept],
            names=[name for name, one in zip(self.names, kept.tolist(), strict=True) if one],
            heights=np.array(self.heights, np.int64)[kept],
            widths=np.array(self.widths, np.int64)[kept],
            owners=(np.cumsum(kept) - 1)[owners_N[kept_N]],
            annotations=AnnotationColumns(
                ids_N=np.array(self.numbers, np.int64)[kept_N],
                labels_N=np.array(labels_K, np.int32)[np.array(self.labels, np.int64)[kept_N]],
                boxes_N4=boxes_N4[kept_N],
                crowd_N=np.array(self.crowds, np.bool_)[kept_N],
                area_N=np.array(self.areas, np.float64)[kept_N],
            ),
            normalised=normalised,
        )
