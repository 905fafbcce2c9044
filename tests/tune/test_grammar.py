"""The text of an entry, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.errors import UsageError
from cluster.storage import yaml_text
from tune.dimensions import Choice, Dimension, Range
from tune.grammar import dimension

SMOOTH = {"loss.box": ("smooth_l1",)}
FORMS = [
    ("loss.gamma", "0..5", Range(0.0, 5.0), {}),
    ("loss.gamma", ".5 .. 2.5e0", Range(0.5, 2.5), {}),
    ("loss.gamma", "int 0..4", Range(0, 4, integer=True), {}),
    ("loss.gamma", {"range": [0, 5]}, Range(0.0, 5.0), {}),
    ("loss.gamma", "{range: [0, 5]}", Range(0.0, 5.0), {}),
    ("optimizer.learning_rate", "log 1e-3..0.1", Range(0.001, 0.1, log=True), {}),
    ("optimizer.learning_rate", {"log": [0.001, "1e-1"]}, Range(0.001, 0.1, log=True), {}),
    ("training.batch_size", "4..16", Range(4, 16, integer=True), {}),
    ("training.batch_size", "log int 4..64", Range(4, 64, log=True, integer=True), {}),
    ("training.batch_size", {"int": [4, 16]}, Range(4, 16, integer=True), {}),
    ("loss.box", ["smooth_l1", "giou"], Choice((("smooth_l1",), ("giou",))), {}),
    ("loss.box", "[smooth_l1, giou]", Choice((("smooth_l1",), ("giou",))), {}),
    ("loss.box", '["smooth_l1", "giou"]', Choice((("smooth_l1",), ("giou",))), {}),
    ("loss.gamma", [0, 2, 2.0], Choice(((0.0,), (2.0,))), {}),
    ("model.width", "[64, 128]", Choice(((64,), (128,))), {}),
    ("training.amp", [True, False], Choice(((True,), (False,))), {}),
    ("canvas.long_side", [None, 640], Choice(((None,), (640,))), {}),
    ("sampling.source_weights", [{}, {"a": 2}], Choice((({},), ({"a": 2.0},))), {}),
    ("model.anchors.ratios", [[1], [0.5, 2]], Choice((([1.0],), ([0.5, 2.0],))), {}),
    (
        "loss.gamma+loss.alpha",
        [[0, 0.75], [2, 0.25]],
        Choice(((0.0, 0.75), (2.0, 0.25))),
        {},
    ),
    ("loss.beta", "log 0.01..1 when loss.box=smooth_l1", Range(0.01, 1.0, log=True), SMOOTH),
    ("loss.beta", {"values": [0.1, 1], "when": {"loss.box": "smooth_l1"}}, None, SMOOTH),
    ("loss.beta", {"values": [0.1, 1], "when": "loss.box=smooth_l1"}, None, SMOOTH),
    (
        "loss.box_weight",
        "1..2 when loss.box=giou|diou and augmentation.short_sides=null",
        Range(1.0, 2.0),
        {"loss.box": ("giou", "diou"), "augmentation.short_sides": (None,)},
    ),
    (
        "loss.box_weight",
        {"range": [1, 2], "when": {"loss.box": ["giou", "diou"], "augmentation.flip": 0}},
        Range(1.0, 2.0),
        {"loss.box": ("giou", "diou"), "augmentation.flip": (0.0,)},
    ),
]


@pytest.mark.parametrize(("name", "entry", "values", "when"), FORMS)
def test_each_form_has_the_values_of_the_fields_own_type(
    name: str, entry: Any, values: Range | Choice | None, when: dict[str, Any]
) -> None:
    read = dimension(name, entry, "x")
    assert read.name == name and read.when == when
    if values is not None:
        assert read.values == values
        assert repr(read.values) == repr(values), "2 and 2.0, True and 1 are told apart"


@pytest.mark.parametrize(("name", "entry", "values", "when"), FORMS)
def test_a_dimension_is_written_as_an_entry_that_gives_it_again(
    name: str, entry: Any, values: Any, when: Any
) -> None:
    read = dimension(name, entry, "x")
    assert dimension(name, str(read), "x") == read
    # And YAML takes the text for text, or for the same list.
    assert dimension(name, yaml_text.parse(f"a: {str(read)!r}")["a"], "x") == read


def test_ranges_in_yaml_are_text() -> None:
    text = "{a: 0..5, b: .5..1, c: log 1e-4..1, d: 1..2.5}"
    assert yaml_text.parse(text) == {"a": "0..5", "b": ".5..1", "c": "log 1e-4..1", "d": "1..2.5"}


def test_numbers_have_four_digits() -> None:
    read = dimension("loss.beta", "0.012346..0.99999", "x")
    assert read.values == Range(0.01235, 1.0)
    assert dimension("loss.beta", [1 / 9], "x").values == Choice(((0.1111,),))


@pytest.mark.parametrize(
    ("name", "entry", "words"),
    [
        ("loss.gama", "0..5", "loss.gama is no setting of a training; did you mean loss.gamma"),
        ("learning_rate", "0..5", "did you mean optimizer.learning_rate?"),
        ("loss", {"gamma": "0..5"}, "loss is a section; name one of its fields, such as loss."),
        ("loss.gamma", "0..11", "loss.gamma 11: must be less than or equal to 10 .focusing"),
        ("loss.alpha", "0..0.5", "loss.alpha 0: must be greater than 0"),
        ("loss.gamma", "5..0", "5.0..0.0: LOW must be below HIGH"),
        ("loss.gamma", "2..2", "LOW must be below HIGH; for one value set --loss.gamma instead"),
        ("loss.gamma", "log 0..5", "LOW must be above 0, it has a logarithm"),
        ("loss.gamma", "int 0.5..5", "both must be whole numbers"),
        ("training.batch_size", "4.5..16", "training.batch_size 4.5: must be a valid integer"),
        ("loss.gamma", "0,5", "x 0,5: must be LOW..HIGH, log LOW..HIGH"),
        ("loss.gamma", 2.0, "x 2.0: must be LOW..HIGH.* to keep one value, set --loss.gamma"),
        ("loss.gamma", "", "x: must be LOW..HIGH"),
        ("loss.gamma", "[0, 5", "x .0, 5: must be LOW..HIGH"),
        ("loss.gamma", [], "a list has 1 to 1000 values, this one 0"),
        ("loss.gamma", {"range": [1]}, "must be two numbers, .LOW, HIGH"),
        ("loss.gamma", {"range": "0..5"}, "must be two numbers, .LOW, HIGH"),
        ("loss.gamma", {"log": [1, 2], "int": [1, 2]}, "a mapping must have one of range, log"),
        ("loss.gamma", {"values": [1], "where": 1}, "got values, where"),
        ("loss.box", "0..1", r"loss.box is no single number .* \[smooth_l1, l1, iou\]"),
        ("model.anchors.ratios", "0..1", "model.anchors.ratios is no single number"),
        ("loss.box", ["giuo"], "loss.box giuo: must be 'smooth_l1', 'l1'"),
        ("loss.gamma+loss.alpha", "0..5", "a range is of one field; give loss.gamma.loss.alpha"),
        ("loss.gamma+loss.alpha", [[1]], "a list of 2 values, one for each of loss.gamma, loss.a"),
        ("loss.gamma+loss.alpha", [1], "a list of 2 values"),
        ("loss.gamma+loss.gamma", [[1, 1]], "loss.gamma stands twice"),
        ("loss.beta", "0.1..1 when smooth_l1", "must be FIELD=VALUE"),
        (
            "loss.beta",
            "{log: [0.01, 1]} when loss.box=smooth_l1",
            "has a condition behind a mapping; write it into the mapping",
        ),
        (
            "loss.beta",
            "0.1..1 when loss.bux=l1",
            "when loss.bux: loss.bux is no setting .*loss.box",
        ),
        ("loss.beta", "0.1..1 when loss.box=l3", "loss.box l3: must be 'smooth_l1'"),
        ("loss.beta", "0.1..1 when loss.beta=1", "must name another field"),
        ("name", ["a", "b"], "name is not searched, because each trial has its own"),
        ("data.train", ["a"], "all trials have the same data"),
        ("pretrained", ["a"], "all trials start from the same weights"),
        ("training.epochs", "1..5", "sweep.epochs is the length of every trial"),
        ("training.workers", "1..5", "how a training is executed and not its result"),
        ("training.patience", "1..5", "a sweep stops bad trials itself"),
    ],
)
def test_what_is_refused_is_named_with_the_rule(name: str, entry: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        dimension(name, entry, "x")
    assert str(caught.value).startswith("x")


@pytest.mark.parametrize(
    ("values", "inside", "outside"),
    [
        (Range(0.5, 2.0), [0.5, 1, 2.0], [0.4999, 2.1, None, "1", True]),
        (Range(1, 3, integer=True), [1, 2.0, 3], [2.5, 0, 4]),
    ],
)
def test_a_range_holds_its_ends_and_what_is_between(
    values: Range, inside: list[Any], outside: list[Any]
) -> None:
    assert all(map(values.holds, inside)) and not any(map(values.holds, outside))
    assert all(values.holds(values.nearest(one)) for one in inside + outside)


def test_points_go_from_end_to_end() -> None:
    assert Range(0.0, 5.0).points(3) == [0.0, 2.5, 5.0]
    # The middle of the logarithm is sqrt(0.001 * 0.1) = 0.01.
    assert Range(0.001, 0.1, log=True).points(3) == [0.001, 0.01, 0.1]
    assert Range(0.001, 0.1, log=True).points(1) == [0.01]
    # 1, 1.5, 2, 2.5, 3: halves go to the even number, and what is there twice counts once.
    assert Range(1, 3, integer=True).points(5) == [1, 2, 3]


def test_the_nearest_choice_differs_least() -> None:
    pairs = Dimension(("loss.gamma", "loss.alpha"), Choice(((0.0, 0.75), (2.0, 0.25))), {})
    assert pairs.nearest({"loss.gamma": 1.5, "loss.alpha": 0.5})["loss.gamma"] == 2.0
    names = Choice((("l1", 1.0), ("giou", 2.0), ("giou", 1.0)))
    assert names.nearest(("giou", 1.2)) == ("giou", 1.0)
    assert names.nearest(("iou", 1.0)) == ("l1", 1.0)
