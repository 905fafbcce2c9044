from __future__ import annotations

import math

import pytest

from cluster.formats.numbers import as_number, as_whole


@pytest.mark.parametrize("value", [96, 96.0, "96", "96.0", " 96\n", "9.6e1", "+96"])
def test_what_tools_write_for_a_number(value: object) -> None:
    assert as_number(value) == 96 and as_whole(value) == 96


@pytest.mark.parametrize("value", [0.5, "0.5", "1e-3"])
def test_a_number_that_is_not_whole(value: object) -> None:
    assert as_number(value) == float(str(value)) and as_whole(value) is None


@pytest.mark.parametrize(
    "value",
    [None, True, False, "", " ", "x", "1_000", "0x10", "nan", "inf", math.nan, math.inf, [1], {}],
)
def test_what_is_no_number(value: object) -> None:
    assert as_number(value) is None and as_whole(value) is None


def test_whole_numbers_keep_all_their_digits() -> None:
    # A float has 53 bits.
    assert as_whole(2**63 - 1) == as_whole(str(2**63 - 1)) == 2**63 - 1
    assert as_whole(10**400) == 10**400 and as_number(10**400) is None
    assert as_whole("9" * 5000) is None
