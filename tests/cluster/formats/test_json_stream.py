from __future__ import annotations

import hashlib
import io
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import DataError
from cluster.formats import json_stream


def read(data: bytes, *, chunk: int = 7) -> tuple[dict[str, list[Any]], set[str], str]:
    """Every list named a or b, through windows of a few bytes."""
    taken: dict[str, list[Any]] = {"a": [], "b": []}
    met, digest = json_stream.read_lists(
        io.BytesIO(data),
        "x.json",
        {name: records.append for name, records in taken.items()},
        chunk=chunk,
    )
    return taken, met, digest


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(
    lists=st.fixed_dictionaries(
        {"a": st.lists(values, max_size=4), "b": st.lists(values, max_size=4)}
    ),
    more=st.dictionaries(st.text().filter(lambda name: name not in "ab"), values, max_size=3),
    chunk=st.integers(1, 40),
    indent=st.sampled_from([None, 0, 2]),
    ascii_only=st.booleans(),
    mark=st.sampled_from([b"", b"\xef\xbb\xbf"]),
)
def test_records_are_those_of_json_however_the_text_is_cut(
    lists: dict[str, list[Any]],
    more: dict[str, Any],
    chunk: int,
    indent: int | None,
    ascii_only: bool,
    mark: bytes,
) -> None:
    data = mark + json.dumps(more | lists, indent=indent, ensure_ascii=ascii_only).encode(
        "utf-8", "replace"
    )
    whole = json.loads(data.decode("utf-8-sig"))
    taken, met, digest = read(data, chunk=chunk)
    assert taken == {"a": whole["a"], "b": whole["b"]}
    assert met == {name for name, value in whole.items() if isinstance(value, list)}
    assert digest == hashlib.sha256(data).hexdigest()


@settings(deadline=None)
@given(
    cut=st.integers(0, 60),
    noise=st.sampled_from(["", "}", "]", ",", "x", '"', "{", "1"]),
    chunk=st.integers(1, 30),
)
def test_what_json_refuses_is_refused_at_the_same_place(cut: int, noise: str, chunk: int) -> None:
    text = '{"a": [{"x": 1.5e3, "y": "é\\n"},\n [2, null]],\n "c": {"d": true}, "b": []}'
    broken = text[:cut] + noise + text[cut:]
    try:
        whole = json.loads(broken)
    except json.JSONDecodeError as error:
        with pytest.raises(DataError) as caught:
            read(broken.encode(), chunk=chunk)
        message = f"x.json: not valid JSON at line {error.lineno}, column {error.colno}: "
        # The words differ between versions of Python where a comma is missing or too many; the
        # place is theirs up to the comma itself.
        assert str(caught.value).startswith("x.json: not valid JSON at line ")
        if "trailing" not in error.msg:
            assert str(caught.value).startswith(message)
    else:
        assert read(broken.encode(), chunk=chunk)[0] == {
            "a": whole.get("a", []),
            "b": whole.get("b", []),
        }


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "line 1, column 1: Expecting value"),
        (b"   ", "line 1, column 4: Expecting value"),
        (b"{", "line 1, column 2: Expecting property name"),
        (b'{"a": [1,\n 2', "line 2, column 3: Expecting ',' delimiter"),
        (b'{"a": [1]} x', "line 1, column 12: Extra data"),
        (b'{"a": ["\xff"]}', "byte 8 is not UTF-8"),
        (b'{"a": ["\xc3"]}', "byte 8 is not UTF-8"),
        (b'{"a": [' + b"[" * 100_000, "too many brackets"),
        (b'{"a": [' + b"1" * 5000 + b"]}", "a number of too many digits"),
        (b'{"a": [], "b": [], "a": []}', "holds two lists named 'a'; merge them"),
    ],
)
def test_text_that_is_no_json(data: bytes, message: str) -> None:
    with pytest.raises(DataError) as caught:
        read(data)
    assert message in str(caught.value)


def test_json_without_an_object_has_no_lists() -> None:
    for data in (b"[1, 2]", b"3", b'"a"', b"null"):
        assert read(data)[:2] == ({"a": [], "b": []}, set())


def test_a_value_longer_than_the_limit_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "MAX_VALUE", 1000)
    file = io.BytesIO(b'{"a": ["' + b"x" * 1_000_000)
    with pytest.raises(DataError, match="line 1, column 8: Unterminated string"):
        json_stream.read_lists(file, "x.json", {}, chunk=64)
    # Twice as much each time: 64 + 128 + ... up to the first sum over the limit.
    assert file.tell() < 4000
