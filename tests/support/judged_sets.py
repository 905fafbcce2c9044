"""Truths and detections with every kind of error, for the tests of what an evaluation finds."""

from __future__ import annotations

import numpy as np

from detector.decode import Detections
from detector.metrics import Truth

NAMES = ("cell", "platelet", "dust")


def judged_set(
    seed: int = 0, *, images: int = 40, crowds: bool = False
) -> tuple[list[Truth], dict[int, Detections]]:
    """Pictures of 200 x 160 px with up to six objects; detections are objects moved a little or
    much, of a wrong class, twice, or of nothing. Some images have no objects or no detections.
    """
    random = np.random.default_rng(seed)
    truths, detections = [], {}
    for image_id in range(1, images + 1):
        boxes, labels = _boxes(random, int(random.integers(0, 7))), None
        labels = random.integers(0, len(NAMES), len(boxes))
        crowd = (random.random(len(boxes)) < 0.2) & crowds
        area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
        truths.append(Truth(image_id, 160, 200, boxes, labels, crowd, area))
        if random.random() > 0.1:
            detections[image_id] = _detected(random, boxes, labels)
    return truths, detections


def _boxes(random: np.random.Generator, count: int) -> np.ndarray:
    corners, sides = random.uniform(0, 120, (count, 2)), random.uniform(12, 60, (count, 2))
    return np.concatenate([corners, corners + sides], axis=1)


def _detected(random: np.random.Generator, boxes: np.ndarray, labels: np.ndarray) -> Detections:
    of = np.flatnonzero(random.random(len(boxes)) < 0.85)
    of = np.concatenate([of, of[random.random(len(of)) < 0.3]])
    spread = random.choice([1.0, 3.0, 12.0], (len(of), 1))
    moved = boxes[of] + random.normal(0, 1, (len(of), 4)) * spread
    moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 2)
    given = np.where(random.random(len(of)) < 0.2, random.integers(0, len(NAMES), len(of)), 0)
    given = np.where(random.random(len(of)) < 0.2, given, labels[of])
    nothing = _boxes(random, int(random.integers(0, 3)))
    scores = np.concatenate([random.beta(5, 2, len(of)), random.beta(2, 4, len(nothing))])
    its = np.concatenate([given, random.integers(0, len(NAMES), len(nothing))])
    best_first = np.argsort(-scores, kind="stable")
    found = np.concatenate([moved, nothing])[best_first]
    return Detections(found, scores[best_first], its[best_first])
