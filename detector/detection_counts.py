"""How often a model detects each class, with which scores, in images of which sizes: sums that add
up, so that any number of images needs the same memory.

Suffixes: I images, N detections, K classes, C = K + 1 rows (the classes by label, then all of them
together), B bins of the score.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

BINS = 100
"""Of the score, each 0.01 wide."""
ALL = "all classes"
"""Name of the last row."""
VERSION = 1
_BITS = 11
"""Of a side: up to 2,047 px are counted exactly, longer ones to 0.1 %, so that there are few
different sides.
"""


@dataclass(frozen=True, eq=False)
class DetectionCounts:
    """The sums over some images."""

    class_names: tuple[str, ...]
    images: int
    detections_C: np.ndarray
    images_C: np.ndarray
    """Images with a detection."""
    squares_C: np.ndarray
    """Sum over the images of the squared number of detections."""
    scores_CB: np.ndarray
    """Detections by score."""
    widths: Mapping[int, int]
    """Images by width in px."""
    heights: Mapping[int, int]

    def __add__(self, other: DetectionCounts) -> DetectionCounts:
        """The sums over the images of both, which are detections of the same classes."""
        assert self.class_names == other.class_names
        return DetectionCounts(
            self.class_names,
            self.images + other.images,
            self.detections_C + other.detections_C,
            self.images_C + other.images_C,
            self.squares_C + other.squares_C,
            self.scores_CB + other.scores_CB,
            Counter(self.widths) + Counter(other.widths),
            Counter(self.heights) + Counter(other.heights),
        )

    @property
    def row_names(self) -> tuple[str, ...]:
        return (*self.class_names, ALL)

    def to_json(self) -> dict[str, Any]:
        rows = zip(
            self.row_names,
            self.detections_C.tolist(),
            self.images_C.tolist(),
            self.squares_C.tolist(),
            self.scores_CB,
            strict=True,
        )
        return {
            "version": VERSION,
            "images": self.images,
            "rows": [
                {
                    "name": name,
                    "detections": detections,
                    "images": images,
                    "squares": squares,
                    "scores": {str(b): int(scores_B[b]) for b in np.flatnonzero(scores_B)},
                }
                for name, detections, images, squares, scores_B in rows
            ],
            "widths": {str(side): count for side, count in sorted(self.widths.items())},
            "heights": {str(side): count for side, count in sorted(self.heights.items())},
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> DetectionCounts:
        """`KeyError`, `TypeError` or `ValueError` for the content of another file or version."""
        if stored["version"] != VERSION:
            raise ValueError(f"version {stored['version']!r} is not known")
        rows = stored["rows"]
        scores_CB = np.zeros((len(rows), BINS), np.int64)
        for scores_B, row in zip(scores_CB, rows, strict=True):
            for b, count in row["scores"].items():
                scores_B[int(b)] = count

        def column(name: str) -> np.ndarray:
            return np.array([row[name] for row in rows], np.int64)

        return cls(
            class_names=tuple(row["name"] for row in rows[:-1]),
            images=int(stored["images"]),
            detections_C=column("detections"),
            images_C=column("images"),
            squares_C=column("squares"),
            scores_CB=scores_CB,
            widths={int(side): int(count) for side, count in stored["widths"].items()},
            heights={int(side): int(count) for side, count in stored["heights"].items()},
        )


def count_detections(
    class_names: Sequence[str],
    *,
    image_N: np.ndarray,
    labels_N: np.ndarray,
    scores_N: np.ndarray,
    heights_I: np.ndarray,
    widths_I: np.ndarray,
) -> DetectionCounts:
    """The sums over I images. `image_N` is the place of each detection's image, 0..I-1; labels
    are 0..K-1, scores 0..1, heights and widths px.
    """
    K = len(class_names)
    image_N, labels_N = np.asarray(image_N, np.int64), np.asarray(labels_N, np.int64)
    label_P, count_P = _per_image(image_N, labels_N, K)
    _, count_of_all = _per_image(image_N, np.zeros_like(labels_N), 1)
    bin_N = np.clip((np.asarray(scores_N, np.float64) * BINS).astype(np.int64), 0, BINS - 1)
    scores_KB = np.bincount(labels_N * BINS + bin_N, minlength=K * BINS).reshape(K, BINS)
    squares_K = np.bincount(label_P, weights=count_P**2, minlength=K).astype(np.int64)
    return DetectionCounts(
        tuple(class_names),
        len(heights_I),
        np.append(np.bincount(labels_N, minlength=K), len(labels_N)),
        np.append(np.bincount(label_P, minlength=K), len(count_of_all)),
        np.append(squares_K, (count_of_all**2).sum()),
        np.vstack([scores_KB, scores_KB.sum(axis=0)]),
        _count_sides(widths_I),
        _count_sides(heights_I),
    )


def _per_image(image_N: np.ndarray, labels_N: np.ndarray, K: int) -> tuple[np.ndarray, np.ndarray]:
    """The label and the number of detections of each pair of an image and a label in it."""
    pairs, counts = np.unique(image_N * K + labels_N, return_counts=True)
    return pairs % max(1, K), counts


def _count_sides(sides_I: np.ndarray) -> dict[int, int]:
    sides_I = np.asarray(sides_I, np.int64)
    _, bits_I = np.frexp(sides_I.astype(np.float64))
    drop_I = np.maximum(0, bits_I - _BITS)
    sides, counts = np.unique(sides_I >> drop_I << drop_I, return_counts=True)
    return dict(zip(sides.tolist(), counts.tolist(), strict=True))


def score_quantiles(scores_B: np.ndarray, fractions: Sequence[float]) -> list[float] | None:
    """Scores below which these fractions of the detections lie, straight within a bin. None where
    there is no detection.
    """
    total = int(scores_B.sum())
    if not total:
        return None
    reached_B = np.cumsum(scores_B)
    wanted = np.asarray(fractions, np.float64) * total
    bins = np.minimum(np.searchsorted(reached_B, np.maximum(wanted, 1e-9)), BINS - 1)
    within = (wanted - (reached_B[bins] - scores_B[bins])) / scores_B[bins]
    return ((bins + within) / BINS).tolist()


def mean_score(scores_B: np.ndarray) -> float | None:
    total = int(scores_B.sum())
    return float((scores_B * (np.arange(BINS) + 0.5) / BINS).sum() / total) if total else None


def side_quantiles(sides: Mapping[int, int], fractions: Sequence[float]) -> list[int] | None:
    """The side in px that these fractions of the images reach at most; None without an image."""
    if not sides:
        return None
    ordered = np.array(sorted(sides))
    share = np.cumsum([sides[side] for side in ordered.tolist()])
    places = np.searchsorted(share, np.asarray(fractions) * share[-1])
    return ordered[np.minimum(places, len(ordered) - 1)].tolist()
