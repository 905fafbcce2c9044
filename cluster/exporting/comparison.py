"""Whether an exported file detects what the package detects, on pictures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from cluster.errors import PlainError
from detector.batch import Sample, collate_by_canvas
from detector.boxes import iou
from detector.decode import DecodeSettings, Detections
from detector.predict import Predictor

TOLERANCE = 1e-3
"""px of a box on the canvas, and of a score: rounding stays below it."""
TIE = 1e-4
"""Of scores and IoU: what is nearer to a limit may fall on either side of it after rounding."""
_OTHER_CLASS = 1e9


@dataclass(frozen=True)
class Comparison:
    """The largest differences between the detections of two programs, on the canvas."""

    pictures: int
    detections: int
    """Of the package."""
    box: float
    """px; infinite where a detection has no counterpart of its class."""
    score: float
    ties: int
    """Detections that only one of the two has because a limit fell between them; not among the
    differences.
    """

    def text(self) -> str:
        if not self.detections and not self.ties and not self.box:
            return f"nothing is detected in {self.pictures} pictures, so nothing was compared"
        ties = f"; {self.ties} ties at a limit are left out" if self.ties else ""
        return (
            f"{self.detections} detections in {self.pictures} pictures differ by up to"
            f" {self.box:.2g} px and {self.score:.2g} of a score{ties}"
        )

    def refuse(self, name: str) -> None:
        """`PlainError` where a difference is larger than rounding makes it."""
        if max(self.box, self.score) > TOLERANCE:
            raise PlainError(
                f"{name}: {self.text()}; more than {TOLERANCE:g}, so nothing was written. Report it"
                " with the versions of torch, onnxscript and onnxruntime"
            )


def compare(
    package: Predictor, exported: Predictor, samples: Iterable[tuple[Sample, tuple[int, int]]]
) -> Comparison:
    """The detections of both for the same pictures on their canvases."""
    boxes = scores = 0.0
    ties = count = pictures = 0
    for batch, sizes in collate_by_canvas(samples, package.batch_size):
        pictures += len(sizes)
        both = zip(package.on_canvas(batch), exported.on_canvas(batch), strict=True)
        for expected, found in both:
            box, score, tied = difference(expected, found, package.decode)
            boxes, scores = max(boxes, box), max(scores, score)
            ties, count = ties + tied, count + len(expected.scores_N)
    return Comparison(pictures, count, boxes, scores, ties)


def difference(
    expected: Detections, found: Detections, decode: DecodeSettings
) -> tuple[float, float, int]:
    """The largest differences of a box (px) and of a score between two lists of detections of an
    image, and the number of ties, which are left out. Infinite for one without a partner.

    Detections of a class are paired so that the differences are small in sum. One without a partner
    within `TOLERANCE` is a tie if its score is at the threshold or, where both lists are full, at
    that of the last detection; or if its IoU with one of the other list is at the limit of NMS.
    """
    box_EF = np.abs(expected.boxes_N4[:, None] - found.boxes_N4[None]).max(axis=2, initial=0)
    score_EF = np.abs(expected.scores_N[:, None] - found.scores_N[None])
    other_EF = expected.labels_N[:, None] != found.labels_N[None]
    apart_EF = np.where(other_EF, _OTHER_CLASS, np.maximum(box_EF, score_EF))
    pairs = list(zip(*linear_sum_assignment(apart_EF), strict=True))
    same = [pair for pair in pairs if not other_EF[pair]]
    paired = [pair for pair in same if apart_EF[pair] <= TOLERANCE]
    ties = 0
    for pair in same:
        if apart_EF[pair] > TOLERANCE:
            e, f = pair
            if _is_tie(expected, e, found, decode) or _is_tie(found, f, expected, decode):
                ties += 1
            else:
                paired.append(pair)
    box = max((float(box_EF[pair]) for pair in paired), default=0.0)
    score = max((float(score_EF[pair]) for pair in paired), default=0.0)
    for mine, other, axis in ((expected, found, 0), (found, expected, 1)):
        for i in set(range(len(mine.scores_N))) - {int(pair[axis]) for pair in same}:
            if _is_tie(mine, i, other, decode):
                ties += 1
            else:
                box = float("inf")
    return box, score, ties


def _is_tie(mine: Detections, i: int, other: Detections, decode: DecodeSettings) -> bool:
    """Whether rounding decides that a detection is in one list and not in the other."""
    limits = [decode["score_threshold"]]
    if min(len(mine.scores_N), len(other.scores_N)) >= decode["max_detections"]:
        limits.append(float(mine.scores_N[-1]))
    if any(abs(float(mine.scores_N[i]) - limit) <= TIE for limit in limits):
        return True
    of_class = other.boxes_N4[other.labels_N == mine.labels_N[i]]
    boxes = (torch.from_numpy(boxes).double() for boxes in (mine.boxes_N4[i : i + 1], of_class))
    return bool(((iou(*boxes) - decode["nms_threshold"]).abs() <= TIE).any())
