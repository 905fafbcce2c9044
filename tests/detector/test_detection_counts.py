"""Sums of detections: parts add up to the whole, and quantiles are those of the scores."""

from __future__ import annotations

import json

import numpy as np
import pytest

from detector import detection_counts
from detector.detection_counts import DetectionCounts, count_detections

NAMES = ("cat", "dog")


def counted(
    *images: list[tuple[int, float]], size: tuple[int, int] = (480, 640)
) -> DetectionCounts:
    """Of images with these (label, score)."""
    return count_detections(
        NAMES,
        image_N=np.repeat(np.arange(len(images)), [len(image) for image in images]),
        labels_N=np.array([label for image in images for label, _ in image], np.int64),
        scores_N=np.array([score for image in images for _, score in image]),
        heights_I=np.full(len(images), size[0]),
        widths_I=np.full(len(images), size[1]),
    )


IMAGES = ([(0, 0.255), (0, 0.905), (1, 0.5)], [], [(1, 1.0)])


def test_counts_worked_by_hand() -> None:
    found = counted(*IMAGES)
    assert found.row_names == ("cat", "dog", "all classes")
    assert found.images == 3
    assert found.detections_C.tolist() == [2, 2, 4]
    assert found.images_C.tolist() == [1, 2, 2]
    # cat: 2 * 2; dog: 1 * 1 + 1 * 1; together: 3 * 3 + 1 * 1.
    assert found.squares_C.tolist() == [4, 2, 10]
    assert np.flatnonzero(found.scores_CB[0]).tolist() == [25, 90]
    # A score of 1 belongs to the last bin.
    assert np.flatnonzero(found.scores_CB[1]).tolist() == [50, 99]
    assert (found.widths, found.heights) == ({640: 3}, {480: 3})


def test_parts_add_up_to_the_whole_and_json_keeps_it() -> None:
    parts = counted(IMAGES[0]) + counted(*IMAGES[1:])
    assert parts.to_json() == counted(*IMAGES).to_json()
    stored = json.loads(json.dumps(parts.to_json()))
    assert DetectionCounts.from_json(stored).to_json() == parts.to_json()
    with pytest.raises(ValueError, match="version 2 is not known"):
        DetectionCounts.from_json({**stored, "version": 2})


def test_no_image_and_no_detection_are_counted() -> None:
    assert counted().images == 0
    assert counted([], []).detections_C.tolist() == [0, 0, 0]


def test_quantiles_of_scores_are_those_of_the_scores_to_one_bin() -> None:
    scores = np.random.default_rng(0).beta(2, 5, 2000)
    found = counted([(0, score) for score in scores])
    fractions = [0, 0.05, 0.5, 0.95, 1]
    quantiles = detection_counts.score_quantiles(found.scores_CB[0], fractions)
    assert quantiles == pytest.approx(np.quantile(scores, fractions).tolist(), abs=0.01)
    assert detection_counts.mean_score(found.scores_CB[0]) == pytest.approx(
        scores.mean(), abs=0.005
    )
    # Between two bins there is nothing.
    low, high = counted([(0, 0.105)] * 3 + [(0, 0.905)] * 3), counted([])
    assert detection_counts.score_quantiles(low.scores_CB[0], [0.75]) == pytest.approx([0.905])
    assert detection_counts.score_quantiles(high.scores_CB[0], [0.5]) is None
    assert detection_counts.mean_score(high.scores_CB[0]) is None


def test_sides_are_exact_up_to_2047_px_and_few_beyond() -> None:
    sides = np.arange(1, 100_000)
    found = count_detections(
        NAMES,
        image_N=np.empty(0),
        labels_N=np.empty(0),
        scores_N=np.empty(0),
        heights_I=sides,
        widths_I=sides,
    )
    assert all(found.widths[side] == 1 for side in range(1, 2048))
    # From 2,048 on 1,024 sides an octave, of which there are 5.6.
    assert len(found.widths) < 2048 + 6 * 1024
    assert sum(found.widths.values()) == len(sides)
    assert all(side in found.widths for side in (1920, 2048, 3840, 4000, 5472, 6000, 8192))
    medians = detection_counts.side_quantiles({640: 5, 800: 4, 1024: 1}, [0.05, 0.5, 0.51, 1])
    assert medians == [640, 640, 800, 1024]
    assert detection_counts.side_quantiles({}, [0.5]) is None
