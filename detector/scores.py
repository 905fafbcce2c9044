"""A score is a number, or None where there was nothing to count, such as the AP of large objects in
a set that has none.

COCO's own code writes -1 for that. Here -1 is in its arrays only: texts show a dash, JSON has null,
and MLflow gets no value.
"""

from __future__ import annotations

import math
from numbers import Real


def score(value: object) -> float | None:
    """The score that a metric computed, or that a file holds."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) and number != -1 else None


def shown(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
