"""Whether a score is the share of detections with it that are right.

Shapes: N detections, B bins of equal width over the scores from 0 to 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BINS = 10


@dataclass(frozen=True)
class Reliability:
    """Detections by score. NaN in a bin without detections."""

    count_B: np.ndarray
    score_B: np.ndarray
    """Their mean score."""
    right_B: np.ndarray
    """The share of them that are hits."""

    @property
    def expected_error(self) -> float | None:
        """The mean of |score - share of hits| over the bins, weighted by their detections (Guo et
        al., On Calibration of Modern Neural Networks, ICML 2017, equation 3). None without
        detections.
        """
        total = self.count_B.sum()
        if not total:
            return None
        gap_B = np.abs(self.score_B - self.right_B)
        return float((np.nan_to_num(gap_B) * self.count_B).sum() / total)


def reliability(score_N: np.ndarray, right_N: np.ndarray, *, bins: int = BINS) -> Reliability:
    """Scores (0..1) against hits (bool). A score on the border of two bins is in the upper one."""
    bin_N = np.minimum((score_N * bins).astype(np.int64), bins - 1)
    count_B = np.bincount(bin_N, minlength=bins)
    with np.errstate(invalid="ignore"):
        score_B, right_B = (
            np.bincount(bin_N, weights=values, minlength=bins) / count_B
            for values in (score_N, right_N)
        )
    return Reliability(count_B, score_B, right_B)
