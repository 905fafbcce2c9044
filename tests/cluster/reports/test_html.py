"""Parts of pages: charts and clipped names."""

from __future__ import annotations

import tomllib
from fnmatch import fnmatch
from pathlib import Path

import jinja2
import pytest

from cluster.reports.html import Bar, Histogram, clip, render, round_up


def test_the_top_of_a_chart_is_a_round_number():
    assert [round_up(n) for n in (0, 1, 3, 9, 10, 11, 13, 25, 99, 100, 101, 123_456)] == [
        2,
        2,
        4,
        10,
        10,
        12,
        16,
        30,
        100,
        100,
        120,
        160_000,
    ]
    assert Histogram([Bar("few", 5, "small"), Bar("none", 0, "small")], [], []).top == 6
    assert Histogram([], [], []).top == 2


def test_ticks_outside_the_chart_are_left_out() -> None:
    ticks = [(-0.1, "before"), (0.0, "first"), (0.5, "half"), (1.0, "last"), (1.5, "beyond")]
    visible = Histogram([], ticks, []).visible_ticks
    assert [text for _, text in visible] == ["first", "half", "last"]


def test_no_name_is_cut_short_without_a_sign() -> None:
    assert clip("abc", 3) == "abc" and clip("abcd", 3) == "ab…"


def test_a_value_that_a_template_lacks_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError, match="uri"):
        render("data_report.html.j2")


def test_the_templates_are_packaged() -> None:
    root = Path(__file__).parents[3]
    options = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = options["package-data"]["cluster.reports"]
    templates = [
        f"templates/{path.name}" for path in (root / "cluster/reports/templates").iterdir()
    ]
    assert len(templates) == 8
    assert all(any(fnmatch(name, pattern) for pattern in patterns) for name in templates)
