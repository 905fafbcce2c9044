"""Classes are matched by name and never by place."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from cluster.errors import UsageError
from cluster.shards.classes import ClassMatch, match_classes, read_class_map

MODEL = ("cat", "dog", "bird")


def match(data: tuple[str, ...], **given: str) -> ClassMatch:
    return match_classes(
        data, MODEL, subject="data /d", of="the model m", remedy="do it right", given=given or None
    )


def refusal(data: tuple[str, ...], **given: str) -> str:
    with pytest.raises(UsageError) as caught:
        match(data, **given)
    return str(caught.value)


@pytest.mark.parametrize("data", list(itertools.permutations(MODEL)))
def test_an_object_keeps_its_class_whatever_the_order(data: tuple[str, ...]) -> None:
    found = match(data)
    labels = found.relabel(np.arange(3))
    assert [found.names[label] for label in labels] == list(data)
    assert found.moves == (data != MODEL)
    assert found.notes("data") == (
        ("data has its classes in another order; they are matched by name",) if found.moves else ()
    )


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            ("cat", "dog"),
            "data /d: its 2 classes are not the 3 of the model m; only in the second: 'bird'; do it"
            " right",
        ),
        (
            ("cat", "Dog ", "bird"),
            "data /d: its 3 classes are not the 3 of the model m; only in the first: 'Dog ' (near:"
            " 'dog'); only in the second: 'dog' (near: 'Dog '); do it right",
        ),
        ((*MODEL, "cow"), "its 4 classes are not the 3 of the model m; only in the first: 'cow';"),
        (("cat", "cat", "dog"), "data /d: has two classes of the name 'cat'"),
        (
            (),
            "its 0 classes are not the 3 of the model m; only in the second: 'cat', 'dog', 'bird'",
        ),
        (
            (*MODEL, *(f"class {n}" for n in range(9))),
            "only in the first: 'class 0', 'class 1', 'class 2', 'class 3', 'class 4' and 4 more",
        ),
    ],
)
def test_other_classes_are_refused_by_name(data: tuple[str, ...], words: str) -> None:
    assert words in refusal(data)


def test_a_map_renames_merges_and_leaves_out() -> None:
    data = ("kitty", "dog", "puppy", "car")
    found = match(data, kitty="cat", puppy="dog", car="")
    assert found.relabel(np.array([0, 1, 2, 3, 1])).tolist() == [0, 1, 1, -1, 1]
    (note,) = found.notes("data")
    assert "3 of its 4 classes are matched with the 3 of the model, 1 are left out" in note
    # Classes that keep their names need no line, and the model may know more.
    assert match(("dog",), dog="dog").labels == (1,)


def test_a_map_that_does_not_fit_is_refused() -> None:
    assert "--classes: 'kity' is no class of data /d (near: 'kitty'); it has 'kitty'" in refusal(
        ("kitty",), kity="cat"
    )
    assert "only in the first: 'cta' (near: 'cat')" in refusal(("kitty",), kitty="cta")
    # A class that the map does not name must have its counterpart too.
    assert "only in the first: 'car'" in refusal(("kitty", "car"), kitty="cat")


def test_a_class_of_the_model_may_be_called_null() -> None:
    found = match_classes(("a",), ("null",), subject="d", of="m", remedy="r", given={"a": "null"})
    assert found.labels == (0,)


def test_names_in_the_file_are_text(tmp_path: Path) -> None:
    (tmp_path / "map.yaml").write_text("no: yes\n02146: 1.0\ncar:\nbus: ~\n", encoding="utf-8")
    found = read_class_map(str(tmp_path / "map.yaml"))
    assert found == {"no": "yes", "02146": "1.0", "car": "", "bus": "~"}


@pytest.mark.parametrize(
    "text", ["- a\n", "a: [b]\n", "a: {b: c}\n", "just words", "", "a: b: c\n"]
)
def test_a_file_that_is_no_map_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "map.yaml").write_text(text)
    with pytest.raises(UsageError, match=r"^--classes \S+map.yaml: "):
        read_class_map(str(tmp_path / "map.yaml"))
