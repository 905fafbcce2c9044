"""Names in a plot: no boxes, no formulas, one line, and no complaint of matplotlib."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.figure import Figure
from PIL import Image

from detector import plot_names
from detector.plot_names import write_name

MISSING = "\u4e00\u732b"
"""Two Chinese characters, which DejaVu Sans lacks."""


@pytest.fixture(autouse=True)
def only_matplotlib_fonts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever is installed on this machine."""
    entries = font_manager.fontManager.ttflist
    shipped = [entry for entry in entries if "mpl-data" in entry.fname]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", shipped)
    forget()
    yield
    forget()


def forget() -> None:
    plot_names._font_with.cache_clear()
    plot_names._installed_fonts.cache_clear()


def written(name: str, **words: str) -> tuple[str, list[str], np.ndarray]:
    """The text of a name, the families of its fonts, and its picture."""
    figure = Figure(figsize=(4, 1))
    text = figure.text(0.1, 0.4, "")
    write_name(text, name, **words)
    sink = io.BytesIO()
    figure.savefig(sink, format="png")
    return text.get_text(), text.get_fontfamily(), np.asarray(Image.open(sink).convert("L"))


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("cat", "cat"),
        ("B\u00e4r \u042f \u05e7\u05d8\u05d4 \u0642\u0637\u0629", None),
        (MISSING, r"\u4e00\u732b"),
        ("a" + MISSING[1], r"a\u732b"),
        ("\U0001f9ff", r"\U0001f9ff"),
        ("a\nb\t\x1b[2J\u202e", r"a\nb\t\x1b[2J\u202e"),
        ("$a_b$ \\frac{", "$a_b$ \\frac{"),
        ("\ud800", r"\ud800"),
        ("x" * 40, None),
        ("x" * 41, "x" * 39 + "\u2026"),
        ("", ""),
    ],
)
def test_a_name_is_drawn_or_its_characters_are_written_as_codes(
    name: str, shown: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    # Warnings are errors here; matplotlib logs about fonts too.
    with caplog.at_level(logging.WARNING, "matplotlib"):
        text, _, picture = written(name)
    assert text == (name if shown is None else shown) and not caplog.records
    assert (picture.min() < 100) == bool(name)


def test_the_words_around_a_long_name_stay() -> None:
    text, _, _ = written("x" * 100, before="(", after=") 0.90")
    assert text == "(" + "x" * 39 + "\u2026) 0.90"


def test_a_code_is_not_cut() -> None:
    # 6 codes of 6 signs are 36 of 40; the seventh does not fit.
    text, _, _ = written("\u732b" * 10)
    assert text == r"\u732b" * 6 + "\u2026"
    # 34 + 6 are 40, and there is one more: the code goes, to make room for the dots.
    text, _, _ = written("x" * 34 + "\u732b" + "y")
    assert text == "x" * 34 + "\u2026"


def test_an_installed_font_draws_what_the_first_one_lacks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pen = TTGlyphPen(None)
    for place in [(0, 0), (0, 800), (800, 800), (800, 0)]:
        (pen.moveTo if place == (0, 0) else pen.lineTo)(place)
    pen.closePath()
    square = pen.glyph()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "square"])
    builder.setupCharacterMap({ord(MISSING[1]): "square"})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "square": square})
    builder.setupHorizontalMetrics({".notdef": (1000, 0), "square": (1000, 0)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Squares", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "squares.ttf")
    font_manager.fontManager.addfont(tmp_path / "squares.ttf")
    with caplog.at_level(logging.WARNING, "matplotlib"):
        text, fonts, picture = written(f"a{MISSING}")
    assert text == "a\\u4e00\u732b" and fonts == ["DejaVu Sans", "Squares"] and not caplog.records
    # The square is a dark area; the strokes of letters at this size are not 8 px wide.
    dark = picture < 60
    assert any(dark[y : y + 8, x : x + 8].all() for y, x in np.argwhere(dark))
