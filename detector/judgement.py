"""All that an evaluation finds in one set of detections, from one matching.

Memory: 83 MiB for 5,000 images with 100 detections each, beside the detections themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from detector.calibration import Reliability, reliability
from detector.coco_matching import HIT, IGNORED, Matches, match
from detector.confusion import confusion_matrix
from detector.decode import Detections
from detector.error_kinds import ErrorKinds, error_kinds
from detector.image_errors import ImageScores, image_scores
from detector.metrics import Truth
from detector.operating_points import Thresholds, kept, thresholds
from detector.pairing import Pairing, pair
from detector.resampling import IntervalTable, intervals, resamples_for

SEED = 0


@dataclass(frozen=True)
class Judgement:
    """Images, labels, detections and objects are those of `pairing`."""

    matches: Matches
    pairing: Pairing
    intervals: IntervalTable | None
    """None for less than two images, or without resamples."""
    errors: ErrorKinds
    thresholds: Thresholds
    kept_D: np.ndarray
    """bool: the detections that reach the threshold of their class."""
    confusion: np.ndarray
    """See `confusion_matrix`."""
    reliability: Reliability
    images: ImageScores


def judge(
    truths: Sequence[Truth],
    detections: Mapping[int, Detections],
    class_names: Sequence[str],
    *,
    max_detections: int = 100,
    precision: float | None = None,
    resamples: int | None = None,
) -> Judgement:
    """`precision` (0..1): the thresholds reach it; unset, they have the highest F1. Confusions and
    the errors of images are those at the thresholds. `max_detections`: see `match`. `resamples`:
    see `intervals`; 0 for none, by default as many as `resamples_for` says.
    """
    matches = match(truths, detections, class_names, max_detections=max_detections)
    resamples = resamples_for(matches) if resamples is None else resamples
    pairing = pair(truths, detections, class_names, max_detections=max_detections)
    chosen = thresholds(pairing, precision=precision)
    kept_D = kept(pairing, chosen)
    counted_D = pairing.outcome_D != IGNORED
    return Judgement(
        matches,
        pairing,
        intervals(matches, seed=SEED, resamples=resamples)
        if resamples and len(truths) > 1
        else None,
        error_kinds(pairing),
        chosen,
        kept_D,
        confusion_matrix(pairing, kept_D),
        reliability(pairing.score_D[counted_D], pairing.outcome_D[counted_D] == HIT),
        image_scores(pairing, kept_D),
    )
