"""The expected error of scores is that of the definition."""

from __future__ import annotations

import numpy as np
import pytest

from detector.calibration import reliability


def test_by_hand():
    score = np.array([0.05, 0.15, 0.19, 1.0, 0.9])
    found = reliability(score, np.array([False, True, False, True, False]))
    assert found.count_B.tolist() == [1, 2, 0, 0, 0, 0, 0, 0, 0, 2]
    np.testing.assert_allclose(found.score_B[[0, 1, 9]], [0.05, 0.17, 0.95])
    np.testing.assert_allclose(found.right_B[[0, 1, 9]], [0, 0.5, 0.5])
    assert np.isnan(found.right_B[2:9]).all()
    # (1 x 0.05 + 2 x 0.33 + 2 x 0.45) / 5
    assert found.expected_error == pytest.approx((0.05 + 0.66 + 0.9) / 5)


def test_scores_that_are_the_share_of_hits_have_almost_no_error():
    random = np.random.default_rng(0)
    score = random.random(200_000)
    right = random.random(200_000) < score
    error = reliability(score, right).expected_error
    # Each bin has 20,000 detections: their share is off by at most 0.5 / sqrt(20,000) = 0.0035.
    assert error is not None and error < 0.0035
    squared = reliability(score, random.random(200_000) < score**2).expected_error
    # The mean of s - s^2 is 1/2 - 1/3.
    assert squared == pytest.approx(1 / 6, abs=0.004)


def test_without_detections_there_is_no_error():
    assert reliability(np.zeros(0), np.zeros(0, bool)).expected_error is None
