"""One leniency for the numbers of annotations, in every field: what tools write for a number is
read as that number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

MAX_COORDINATE = 1e9
"""px; beyond it x + width loses the pixels, and no picture is that large."""


def as_number(value: object) -> float | None:
    """`value` as a finite number: 96, 96.0, "96" and " 9.6e1 ". None for anything else; True is no
    number.
    """
    if isinstance(value, str):
        # Python also takes 1_000, which no tool means.
        if "_" in value:
            return None
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def as_coordinates(values: Iterable[object]) -> list[float] | None:
    """All values as finite numbers up to `MAX_COORDINATE`; None where one is none."""
    numbers = [as_number(value) for value in values]
    known = [one for one in numbers if one is not None and abs(one) < MAX_COORDINATE]
    return known if len(known) == len(numbers) else None


def as_whole(value: object) -> int | None:
    """`value` as a whole number: 96, 96.0, "96" and "96.0". None for anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and re.fullmatch(r"\s*[0-9]{1,30}\s*", value):
        # Not by way of a float, which has 53 bits.
        return int(value)
    number = as_number(value)
    return int(number) if number is not None and number.is_integer() else None
