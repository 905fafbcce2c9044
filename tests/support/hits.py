"""Models of which it is known how good they are: one object an image, found or not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cluster.judging.gate import Scored
from detector.coco_matching import match
from detector.decode import Detections
from detector.metrics import Truth, coco_table

BOX, ELSEWHERE = (10.0, 10.0, 90.0, 90.0), (100.0, 100.0, 180.0, 180.0)


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
            area_N=np.array([6400.0]),
        )
        for number, label in enumerate(labels)
    ]


def scored(
    version: str, found: Sequence[bool], labels: Sequence[int], names: Sequence[str]
) -> Scored:
    """A model that finds the objects of these images, and something else in the others, of which it
    is less sure.
    """
    detections = {
        number: Detections(
            np.array([BOX if hit else ELSEWHERE], np.float32),
            np.array([0.9 if hit else 0.3], np.float32),
            np.array([label]),
        )
        for number, (hit, label) in enumerate(zip(found, labels, strict=True))
    }
    truths = truths_of(labels)
    return Scored(version, coco_table(truths, detections, names), match(truths, detections, names))
