"""What is wrong in each image at given thresholds: numbers, words, and which images are the worst.

Shapes: I images, D detections and G objects of a `Pairing`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from detector.coco_matching import HIT
from detector.error_kinds import BACKGROUND, BOTH, BOX, CLASS, DUPLICATE, KINDS, ErrorKinds
from detector.pairing import Pairing


@dataclass(frozen=True)
class ImageScores:
    hits_I: np.ndarray
    false_alarms_I: np.ndarray
    missed_I: np.ndarray
    """Objects without a hit that counts."""

    @property
    def errors_I(self) -> np.ndarray:
        return self.false_alarms_I + self.missed_I

    @property
    def f1_I(self) -> np.ndarray:
        """NaN for an image without objects and detections."""
        with np.errstate(invalid="ignore"):
            return 2 * self.hits_I / (2 * self.hits_I + self.errors_I)

    def worst(self, count: int) -> list[int]:
        """Images with an error: the lowest F1 first, of equals the most errors."""
        order = np.lexsort((-self.errors_I, self.f1_I))
        return [i for i in order.tolist() if self.errors_I[i]][:count]

    def best(self, count: int, *, besides: Sequence[int] = ()) -> list[int]:
        """Images with a hit: the highest F1 first, of equals the most hits. Without the images
        `besides`.
        """
        order = np.lexsort((-self.hits_I, -self.f1_I))
        return [i for i in order.tolist() if self.hits_I[i] and i not in besides][:count]


def image_scores(pairing: Pairing, kept_D: np.ndarray) -> ImageScores:
    """`kept_D` (bool): the detections that count, ignored ones not among them."""
    images = len(pairing.image_ids)
    hit_D = kept_D & (pairing.outcome_D == HIT)
    hits_I, found_I = (
        np.bincount(pairing.image_D[chosen_D], minlength=images) for chosen_D in (hit_D, kept_D)
    )
    objects_I = np.bincount(pairing.image_G, minlength=images)
    return ImageScores(hits_I, found_I - hits_I, objects_I - hits_I)


@dataclass(frozen=True)
class Remark:
    """An error of one image. `detection` or `object` is -1 where it is about the other alone."""

    kind: str
    """One of `KINDS`."""
    words: str
    detection: int = -1
    object: int = -1


def remarks(pairing: Pairing, errors: ErrorKinds, kept_D: np.ndarray, image: int) -> list[Remark]:
    """The errors of an image: false alarms, the surest first, then the objects that were missed and
    that no class or box error is about.
    """
    found, there = pairing.detections_of(image), pairing.objects_of(image)
    said, about = [], set()
    for d in range(found.start, found.stop):
        if kept_D[d] and errors.kind_D[d] >= 0:
            said.append(_false_alarm(pairing, errors, d))
            about.add(said[-1].object)
    for g in range(there.start, there.stop):
        hit = int(pairing.detection_G[g])
        if (hit < 0 or not kept_D[hit]) and g not in about:
            name = pairing.class_names[pairing.label_G[g]]
            score = f": only {pairing.score_D[hit]:.2f} sure of it" if hit >= 0 else ""
            said.append(Remark("missed", f"{name} missed{score}", object=g))
    return said


def _false_alarm(pairing: Pairing, errors: ErrorKinds, d: int) -> Remark:
    kind, g = int(errors.kind_D[d]), int(errors.object_D[d])
    name = pairing.class_names[pairing.label_D[d]]
    score = f"({pairing.score_D[d]:.2f})"
    words = {
        CLASS: lambda: f"{pairing.class_names[pairing.label_G[g]]} taken for {name} {score}",
        BOX: lambda: f"box of {name} does not fit: IoU {pairing.own_iou_D[d]:.2f} {score}",
        BOTH: lambda: f"{name}: neither class nor box fits {score}",
        DUPLICATE: lambda: f"{name} found twice {score}",
        BACKGROUND: lambda: f"{name} where nothing is labelled {score}",
    }
    return Remark(KINDS[kind], words[kind](), d, g)


_IN_WORDS = {
    "class": "of a wrong class",
    "box": "with a box that does not fit",
    "both": "with neither class nor box",
    "duplicate": "found twice",
    "background": "of nothing",
    "missed": "missed",
}


def summed_up(said: Sequence[Remark]) -> str:
    """The kinds and their numbers, such as `1 of a wrong class, 2 missed`."""
    counts = Counter(remark.kind for remark in said)
    return ", ".join(f"{counts[kind]} {words}" for kind, words in _IN_WORDS.items() if counts[kind])
