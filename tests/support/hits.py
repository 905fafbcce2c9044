"""Models of which it is known how good they are: one object an image, found or not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cluster.judging.gate import Scored
from detector.coco_matching import match
from detector.decode import Detections
from detector.metrics import Truth, coco_table

BOX, ELSEWHERE = (10.0, 10.0, 90.0, 90.0), (100.0, 100.0, 180.0, 180.0)
SIDE = 80.0


def truths_of(labels: Sequence[int]) -> list[Truth]:
    """An object of 80 x 80 px, medium, in each image."""
    return [
        Truth(
            image_id=number,
            height=200,
            width=200,
            boxes_N4=np.array([BOX], np.float32),
            labels_N=np.array([label]),
            crowd_N=np.array([False]),
            area_N=np.array([SIDE**2]),
        )
        for number, label in enumerate(labels)
    ]


def scored(
    version: str, found: Sequence[float], labels: Sequence[int], names: Sequence[str]
) -> Scored:
    """A model that finds the object of an image with this IoU, and the surer the better it fits; 0:
    it finds something else.
    """
    detections = {
        number: Detections(
            np.array([shifted(iou)], np.float32),
            np.array([0.1 + 0.8 * iou], np.float32),
            np.array([label]),
        )
        for number, (iou, label) in enumerate(zip(found, labels, strict=True))
    }
    truths = truths_of(labels)
    return Scored(version, coco_table(truths, detections, names), match(truths, detections, names))


def shifted(iou: float) -> tuple[float, float, float, float]:
    """A box that has this IoU with `BOX`."""
    if not iou:
        return ELSEWHERE
    by = SIDE * (1 - iou) / (1 + iou)
    return (BOX[0] + by, BOX[1], BOX[2] + by, BOX[3])
