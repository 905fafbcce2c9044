"""Names that people chose, such as those of classes and files, as texts of a plot.

Matplotlib's own font, DejaVu Sans, has no Chinese, Korean or Devanagari. A character that it lacks
is drawn with an installed font that has it; where none has it, its code is written (`\\u732b`).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

FONT = "DejaVu Sans"
_EVERYTHING = "Last Resort"
"""A font of matplotlib with a box for every character."""


def write_name(text: Text, name: str, *, before: str = "", after: str = "", most: int = 40) -> None:
    """Let a text of a plot be a name, between other words, on one line and as it is: `$` begins no
    formula, and a character that cannot be printed is written as its code. A name of more than
    `most` characters is cut.
    """
    pieces: list[str] = []
    fonts = [FONT]
    for piece, font in _pieces(name):
        pieces.append(piece)
        if font not in fonts:
            fonts.append(font)
        if len("".join(pieces)) > most:
            while len("".join(pieces)) > most - 1:
                pieces.pop()
            pieces.append("…")
            break
    text.set_parse_math(False)
    text.set_fontfamily(fonts)
    text.set_text(f"{before}{''.join(pieces)}{after}")


def _pieces(name: str) -> Iterator[tuple[str, str]]:
    """Each character, or its code, with the font to draw it."""
    for character in name:
        font = _font_with(character) if character.isprintable() else None
        if font is None:
            yield character.encode("unicode_escape", "backslashreplace").decode(), FONT
        else:
            yield character, font


@cache
def _font_with(character: str) -> str | None:
    """The family of a font that has the character."""
    fonts = _installed_fonts()
    others = sorted(name for name in fonts if not name.startswith(_EVERYTHING))
    families = (name for name in (FONT, *others) if ord(character) in _characters(fonts[name]))
    return next(families, None)


@cache
def _installed_fonts() -> dict[str, str]:
    """Family -> file, of families with the plain style: matplotlib logs a complaint where it has to
    take another one.
    """
    return {
        entry.name: entry.fname
        for entry in font_manager.fontManager.ttflist
        if (entry.style, entry.stretch) == ("normal", "normal") and entry.weight in (400, "normal")
    }


@cache
def _characters(file: str) -> frozenset[int]:
    """The code points of a font, none where it cannot be drawn at any size."""
    try:
        font = FT2Font(file)
    except (OSError, RuntimeError):
        return frozenset()
    return frozenset(font.get_charmap()) if font.scalable else frozenset()
