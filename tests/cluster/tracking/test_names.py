"""Names in MLflow: ordinary ones are unchanged, all are taken, and no two become one."""

from __future__ import annotations

import hashlib
import posixpath
import re

from hypothesis import given
from hypothesis import strategies as st

from cluster.tracking.names import LONGEST, mlflow_names


def test_ordinary_names_are_unchanged() -> None:
    names = [
        "train/box",
        "val/AP/tv/monitor",
        "val/AP/猫",
        "val/AP/犬",
        "val/AP/Bär 2",
        "a-b_c.d:e",
    ]
    assert mlflow_names(names) == {name: name for name in names}


def test_a_name_that_mlflow_refuses_keeps_its_readable_part_and_gets_its_digest() -> None:
    def digits(name: str) -> str:
        return hashlib.sha256(name.encode()).hexdigest()[:8]

    for name, readable in {
        "val/AP/a+b": "val/AP/a_b",
        "val/AP/a*b": "val/AP/a_b",
        "val/AP/cup, (small)'s": "val/AP/cup_ _small__s",
        "val/AP/..": "val/AP/_",
        "val/AP/a//b": "val/AP/a/_/b",
        "val/AP//x": "val/AP/_/x",
        "val/AP/x/": "val/AP/x/_",
        "..": "_",
        "": "_",
        "val/AP/Dog\n": "val/AP/Dog_",
        "val/AP/🐱": "val/AP/_",
        # 250 = 241 letters, a dash and 8 digits.
        "x" * 251: "x" * 241,
    }.items():
        assert mlflow_names([name]) == {name: f"{readable}-{digits(name)}"}


def test_names_that_a_database_may_take_for_one_are_kept_apart() -> None:
    for alike in (["Dog", "dog"], ["Dog ", "Dog"], ["Bär", "Bar"], ["\uff44og", "dog"]):
        found = mlflow_names([*alike, "cat"])
        assert found["cat"] == "cat"
        assert all(re.fullmatch(r".+-[0-9a-f]{8}", found[name]) for name in alike)
        assert mlflow_names([*reversed(alike)]) == {name: found[name] for name in alike}


@given(st.lists(st.text(max_size=300) | st.text("aAbB/. ,-\n", max_size=6), max_size=20))
def test_mlflow_takes_every_name_and_no_two_become_one(names: list[str]) -> None:
    found = mlflow_names(names)
    assert set(found) == set(names)
    assert len({name.casefold() for name in found.values()}) == len(found)
    for name in found.values():
        # The rule of mlflow.utils.validation.
        assert re.fullmatch(r"[/\w.\- :]+", name) and len(name) <= LONGEST
        assert posixpath.normpath(name) == name and not name.startswith(("..", "/")) and name != "."
