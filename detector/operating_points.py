"""Precision, recall and F1 against the score threshold, and the threshold of each class that
maximises F1 or reaches a wished precision.

A detection counts if its score is the threshold or more. The numbers are those of the set that the
threshold was chosen on; another set gives a little less.

JSON: {"version": 1, "rule": "f1" | "precision", "precision": number | null, "iou": 0.5, "classes":
{name: {"threshold", "precision", "recall", "f1"} | null}}

Shapes: N distinct scores of a class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from detector.coco_matching import AREA_RANGES, HIT, IGNORED, match
from detector.decode import Detections
from detector.metrics import Truth
from detector.pairing import IOU, Pairing

VERSION = 1


@dataclass(frozen=True)
class ThresholdCurve:
    """One class at each threshold that changes something, from the highest on."""

    threshold_N: np.ndarray
    precision_N: np.ndarray
    recall_N: np.ndarray

    @property
    def f1_N(self) -> np.ndarray:
        total_N = self.precision_N + self.recall_N
        product_N = 2 * self.precision_N * self.recall_N
        return np.divide(product_N, total_N, out=np.zeros(len(total_N)), where=total_N > 0)


@dataclass(frozen=True)
class OperatingPoint:
    threshold: float
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Thresholds:
    precision: float | None
    """The wished precision; None where F1 decides."""
    iou: float
    classes: Mapping[str, OperatingPoint | None]
    """None for a class without objects or hits, or where no threshold reaches the precision."""

    @property
    def rule(self) -> str:
        return "f1" if self.precision is None else "precision"

    def words(self) -> str:
        """How they were chosen, after `that reach`."""
        if self.precision is None:
            return "the score with the highest F1 of their class"
        return f"the score with precision {self.precision:g} of their class"

    def lowest(self, name: str) -> float:
        """The threshold of a class; above every score where it has none."""
        point = self.classes[name]
        return np.inf if point is None else point.threshold

    def scores(self) -> dict[str, float | None]:
        """The threshold of each class; None where it has none."""
        return {name: point and point.threshold for name, point in self.classes.items()}

    def lowest_of(self, names: Sequence[str]) -> np.ndarray:
        """`lowest` of these classes, float64 (K,). `KeyError` for a class that is not known."""
        return np.array([self.lowest(name) for name in names])

    def to_json(self) -> dict[str, Any]:
        classes = {name: point and asdict(point) for name, point in self.classes.items()}
        return {
            "version": VERSION,
            "rule": self.rule,
            "precision": self.precision,
            "iou": self.iou,
            "classes": classes,
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Thresholds:
        """Raises `ValueError` for another version, and `KeyError` for a key that is missing."""
        if stored.get("version") != VERSION:
            raise ValueError(
                f"version {stored.get('version')!r} of thresholds is not known; use the version"
                " that wrote it"
            )
        points = {
            name: None if point is None else OperatingPoint(**point)
            for name, point in stored["classes"].items()
        }
        return cls(stored["precision"], stored["iou"], points)


def threshold_curve(pairing: Pairing, label: int) -> ThresholdCurve:
    """The curve of one class; empty for a class without objects or detections."""
    its_D = pairing.label_D == label
    objects = int((pairing.label_G == label).sum())
    return _curve(pairing.score_D[its_D], pairing.outcome_D[its_D], objects)


def _curve(score_D: np.ndarray, outcome_D: np.ndarray, objects: int) -> ThresholdCurve:
    order = np.argsort(-score_D, kind="stable")
    order = order[outcome_D[order] != IGNORED]
    score_D, hits_D = score_D[order], np.cumsum(outcome_D[order] == HIT)
    if not objects or not len(score_D):
        return ThresholdCurve(*(np.zeros(0) for _ in range(3)))
    # The last of equal scores.
    ends_N = np.flatnonzero(np.append(np.diff(score_D) != 0, True))
    return ThresholdCurve(score_D[ends_N], hits_D[ends_N] / (ends_N + 1), hits_D[ends_N] / objects)


def thresholds(pairing: Pairing, *, precision: float | None = None) -> Thresholds:
    """The threshold of each class with the highest F1 or, with `precision` (0..1), with the highest
    recall among those that reach it; of equals the highest threshold.
    """
    points = {
        name: _best_point(threshold_curve(pairing, label), precision)
        for label, name in enumerate(pairing.class_names)
    }
    return Thresholds(precision, pairing.iou, points)


def f1_thresholds(
    truths: Sequence[Truth], detections: Mapping[int, Detections], class_names: Sequence[str]
) -> Thresholds:
    """`thresholds` of F1 in a quarter of the time: it finds the hits at IoU 0.5 alone, not what
    every other detection is. See `detector.pairing.pair` for what is given.
    """
    matches = match(
        truths, detections, class_names, iou_thresholds=np.array([IOU]), area_ranges=AREA_RANGES[:1]
    )
    points = {
        name: _best_point(
            _curve(of.score_D, of.outcome_STD[0, 0], int(of.counted_SG[0].sum())), None
        )
        for name, of in zip(matches.class_names, matches.classes, strict=True)
    }
    return Thresholds(None, IOU, points)


def _best_point(curve: ThresholdCurve, precision: float | None) -> OperatingPoint | None:
    """The point with the highest F1 or, with `precision`, with the highest recall that has it."""
    wanted_N = curve.f1_N if precision is None else curve.recall_N
    if precision is not None:
        wanted_N = np.where(curve.precision_N >= precision, wanted_N, 0)
    if not wanted_N.any():
        return None
    best = int(wanted_N.argmax())
    columns = (curve.threshold_N, curve.precision_N, curve.recall_N, curve.f1_N)
    return OperatingPoint(*(float(column[best]) for column in columns))


def kept(pairing: Pairing, chosen: Thresholds) -> np.ndarray:
    """bool (D,): the detections that reach the threshold of their class and are not ignored."""
    lowest_K = chosen.lowest_of(pairing.class_names)
    return (pairing.score_D >= lowest_K[pairing.label_D]) & (pairing.outcome_D != IGNORED)
