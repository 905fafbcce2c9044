"""JSON is a value or one refusal, whatever the text holds."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector import json_text

PLAIN = st.none() | st.booleans() | st.integers(-(1 << 63), 1 << 63) | st.text(max_size=5)
VALUES = st.recursive(
    PLAIN | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=20,
)


@given(VALUES)
def test_what_is_written_is_read(value):
    assert json_text.parse(json.dumps(value)) == value
    assert json_text.parse(json.dumps(value).encode()) == value


@settings(deadline=None)
@given(VALUES, st.data())
def test_a_changed_text_is_a_value_or_one_refusal(value, drawn):
    text = bytearray(json.dumps(value).encode())
    place = drawn.draw(st.integers(0, len(text) - 1))
    text[place : place + drawn.draw(st.integers(0, 2))] = drawn.draw(
        st.sampled_from([b"[" * 3000, b"{" * 90, b"9" * 5000, b'"', b"\xff", b"\\u", b"e", b"-"])
    )
    try:
        json_text.parse(bytes(text))
    except ValueError as error:
        assert len(str(error)) < 200


def test_the_limits_are_where_they_are_said_to_be():
    assert json_text.parse("[" * 100 + "]" * 100)
    for brackets in (101, 900, 100_000):
        for text in ("[" * brackets + "]" * brackets, '{"a":' * brackets + "1" + "}" * brackets):
            with pytest.raises(ValueError, match="more than 100 brackets in each other"):
                json_text.parse(text)
    assert json_text.parse("[18446744073709551615, -9223372036854775808]")
    with pytest.raises(ValueError, match=r"a whole number of 4000 digits, 11111111\.\.\."):
        json_text.parse("[" + "1" * 4000 + "]")
    with pytest.raises(ValueError, match="a whole number of 9999 digits"):
        json_text.parse("1" * 9999)
