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
    """px; infinite where a detection is missing, or one too many."""
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
    everything: DecodeSettings = {
        "score_threshold": package.decode["score_threshold"] / 2,
        "top_per_level": 2 * package.decode["top_per_level"],
        "nms_threshold": 1.0,
        "max_detections": 1_000_000,
    }
    for batch, sizes in collate_by_canvas(samples, package.batch_size):
        pictures += len(sizes)
        candidates = package.model.detect(batch.images, batch.sizes_B2, **everything)
        lists = zip(package.on_canvas(batch), exported.on_canvas(batch), candidates, strict=True)
        for expected, found, possible in lists:
            box, score, tied = difference(expected, found, possible, package.decode)
            boxes, scores = max(boxes, box), max(scores, score)
            ties, count = ties + tied, count + len(expected.scores_N)
    return Comparison(pictures, count, boxes, scores, ties)


def difference(
    expected: Detections, found: Detections, possible: Detections, decode: DecodeSettings
) -> tuple[float, float, int]:
    """The largest differences of a box (px) and of a score between two lists of detections of an
    image, and the number of ties, which are left out. Infinite for one without a partner.

    Detections of a class are paired so that the differences are small in sum. One without a partner
    within `TOLERANCE` is a tie if it is among the `possible` ones, those of the package before NMS,
    and rounding decides about it: its score is at the threshold, its IoU with one of the other list
    at the limit of NMS, or the other list has one of the same score in its place.
    """
    apart_EF = _apart(expected, found)
    pairs = zip(*linear_sum_assignment(apart_EF), strict=True)
    close = [(int(e), int(f)) for e, f in pairs if apart_EF[e, f] <= TOLERANCE]
    alone_E = sorted(set(range(len(expected.scores_N))) - {e for e, _ in close})
    alone_F = sorted(set(range(len(found.scores_N))) - {f for _, f in close})
    box = score = 0.0
    for e, f in close:
        box = max(box, float(np.abs(expected.boxes_N4[e] - found.boxes_N4[f]).max()))
        score = max(score, float(abs(expected.scores_N[e] - found.scores_N[f])))
    ties = 0
    for mine, alone, other, others in (
        (expected, alone_E, found, alone_F),
        (found, alone_F, expected, alone_E),
    ):
        possible_A = _apart(_only(mine, alone), possible).min(axis=1, initial=_OTHER_CLASS)
        for i, nearest in zip(alone, possible_A, strict=True):
            if nearest <= TOLERANCE and _is_tie(mine, i, other, other.scores_N[others], decode):
                ties += 1
            else:
                # How far it is from what it should be; without such a one it is too much or
                # missing.
                box = max(box, float(nearest) if TOLERANCE < nearest < _OTHER_CLASS else np.inf)
    return box, score, ties


def _apart(first: Detections, second: Detections) -> np.ndarray:
    """The larger difference of box and score, (N, M); `_OTHER_CLASS` where the classes differ."""
    box_NM = np.abs(first.boxes_N4[:, None] - second.boxes_N4[None]).max(axis=2, initial=0)
    score_NM = np.abs(first.scores_N[:, None] - second.scores_N[None])
    other_NM = first.labels_N[:, None] != second.labels_N[None]
    return np.where(other_NM, _OTHER_CLASS, np.maximum(box_NM, score_NM))


def _only(detections: Detections, chosen: list[int]) -> Detections:
    index = np.array(chosen, np.int64)
    columns = (detections.boxes_N4, detections.scores_N, detections.labels_N)
    return Detections(*(column[index] for column in columns))


def _is_tie(
    mine: Detections,
    i: int,
    other: Detections,
    scores_of_others: np.ndarray,
    decode: DecodeSettings,
) -> bool:
    """Whether rounding decides that a detection is in one list and not in the other."""
    score = float(mine.scores_N[i])
    limits = np.append(scores_of_others, decode["score_threshold"])
    if (np.abs(limits - score) <= TIE).any():
        return True
    of_class = other.boxes_N4[other.labels_N == mine.labels_N[i]]
    boxes = (torch.from_numpy(boxes).double() for boxes in (mine.boxes_N4[i : i + 1], of_class))
    return bool(((iou(*boxes) - decode["nms_threshold"]).abs() <= TIE).any())
