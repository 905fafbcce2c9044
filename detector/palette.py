"""The colour and the letter of a class: the same on every picture, chart and page."""

from __future__ import annotations

from string import ascii_uppercase

COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#000000",
    "#f0e442",
)
"""Okabe and Ito, Color Universal Design, 2008. Any two differ by 16 (CIE 1976, dE) or more for
people who do not see red, green or blue; the ten colours before differed by 1.8.
"""
DARK = ("#0072b2", "#000000")
"""Those on which words are white."""


def place_of(label: int) -> int:
    """The place in `COLOURS` of the class with this label. Classes above the eighth share colours;
    their letters and names differ.
    """
    return label % len(COLOURS)


def colour_of(label: int) -> str:
    """As #rrggbb."""
    return COLOURS[place_of(label)]


def ink_on(colour: str) -> str:
    """The colour of words on this ground."""
    return "white" if colour in DARK else "black"


def letters_of(label: int) -> str:
    """A, B, .. Z, AA, AB, .. of the labels 0, 1, .."""
    letters = ""
    number = label + 1
    while number:
        number, rest = divmod(number - 1, len(ascii_uppercase))
        letters = ascii_uppercase[rest] + letters
    return letters
