from __future__ import annotations

import pytest
import yaml

from cluster.storage.yaml_text import parse

CONFIG = """\
training: {epochs: 3, amp: no}
anchors: &anchors
  scales: [1, 1.5]
model:
  <<: *anchors
  scales: [2]
"""


def test_content_is_that_of_safe_yaml() -> None:
    assert parse(CONFIG) == yaml.safe_load(CONFIG)
    assert parse("") is None and parse("# nothing\n") is None


@pytest.mark.parametrize("all_text", [False, True])
@pytest.mark.parametrize(
    "text", ["a: 1\nb: 2\na: 3\n", "x: {a: 1, a: 1}\n", "- b: 1\n  a: {}\n  b: 2\n", "1: x\n1: y\n"]
)
def test_a_key_that_stands_twice_is_an_error(text: str, all_text: bool) -> None:
    with pytest.raises(yaml.YAMLError, match=r"'(a|b|1)' stands twice; keep one of them"):
        parse(text, all_text=all_text)


def test_equal_keys_of_different_mappings_are_no_error() -> None:
    assert parse("a: {x: 1}\nb: {x: 2}\n") == {"a": {"x": 1}, "b": {"x": 2}}


def test_all_text_takes_nothing_for_a_number_or_a_truth_value() -> None:
    assert parse("no: 02146\n1: ~\n", all_text=True) == {"no": "02146", "1": "~"}
    # PyYAML's plain loader knows no merge: the key is what stands there.
    assert parse("names: [yes, 1.50, 2020-01-01]", all_text=True) == {
        "names": ["yes", "1.50", "2020-01-01"]
    }


def test_nothing_is_constructed_but_plain_values() -> None:
    with pytest.raises(yaml.YAMLError):
        parse("a: !!python/object/apply:os.system [echo]\n")


LAUGHS = "\n".join(
    ["a0: &a0 [x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10))]
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LAUGHS, "more than 100000 values, each alias counted"),
        ("a: &x\n  b: *x", "more than 50 mappings or lists in each other"),
        ("[" * 60 + "]" * 60, "more than 50 mappings or lists in each other"),
        ("[" * 500, "more than 50 mappings or lists in each other"),
        ("a: " + "1" * 5000, "a number of 5000 characters"),
        ("a: " + ":".join(["59"] * 3000), "a number of 8999 characters"),
        ("a: 2026-02-30", "day is out of range for month"),
        ("a: 1\na: 2", "'a' stands twice"),
    ],
)
def test_a_text_that_grows_is_refused(text: str, words: str) -> None:
    with pytest.raises(yaml.YAMLError) as caught:
        parse(text)
    assert words in str(caught.value) and len(str(caught.value)) < 400
