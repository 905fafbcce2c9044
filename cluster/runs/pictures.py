"""What the pictures of a training are drawn from: small copies of the first batches, and the boxes
of a few images of data.val.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class BatchPicture:
    """A small copy of one canvas of a batch, padding included, with the objects on it."""

    image_id: int
    jpeg: bytes
    boxes_N4: np.ndarray
    """float32, XYXY px of the copy."""
    labels_N: np.ndarray
    """int64, 0..K-1; -1: an ignore region."""


@dataclass(frozen=True)
class ExampleImage:
    """An image of data.val with its objects and what a checkpoint detects there. Boxes are XYXY px
    of the image, labels are 0..K-1 of the model.
    """

    image_id: int
    objects_M4: np.ndarray
    """Crowds too."""
    boxes_N4: np.ndarray
    """Detections, best first."""
    scores_N: np.ndarray
    labels_N: np.ndarray
