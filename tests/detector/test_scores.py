from __future__ import annotations

import numpy as np
import pytest

from detector.scores import score, shown


@pytest.mark.parametrize(
    "value", [-1, -1.0, np.float64(-1), float("nan"), float("inf"), None, "0.5", True, 10**400]
)
def test_what_is_no_score_is_none_and_a_dash(value: object) -> None:
    assert score(value) is None and shown(score(value)) == "-"


@pytest.mark.parametrize("value", [0, 1, 0.25, np.float32(0.25), np.float64(0.0), 123.0, -0.5])
def test_a_number_is_a_score(value: float) -> None:
    found = score(value)
    assert type(found) is float and found == value


def test_a_score_is_shown_with_its_digits() -> None:
    assert shown(0.12345) == "0.1235" and shown(0.0, 3) == "0.000"
