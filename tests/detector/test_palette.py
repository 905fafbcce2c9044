"""Classes keep their colour and letter, and can be told apart by people who see less colours."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from detector.palette import COLOURS, colour_of, ink_on, letters_of

SEEN = {
    "all colours": np.eye(3),
    "no red": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "no green": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "no blue": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
"""Linear RGB as it is seen (Machado, Oliveira and Fernandes, IEEE TVCG 2009, severity 1)."""
XYZ = [
    [0.4124564, 0.3575761, 0.1804375],
    [0.2126729, 0.7151522, 0.0721750],
    [0.0193339, 0.1191920, 0.9503041],
]


def linear(colour: str) -> np.ndarray:
    values = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(linear_3: np.ndarray) -> np.ndarray:
    xyz = np.array(XYZ) @ np.clip(linear_3, 0, 1) / [0.95047, 1, 1.08883]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("seen", SEEN)
def test_any_two_colours_differ_for_everybody(seen: str) -> None:
    colours = [lab(np.array(SEEN[seen]) @ linear(colour)) for colour in COLOURS]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(colours, 2)) > 16


def test_words_can_be_read_on_each_colour() -> None:
    """With a contrast of 4.5 to 1, the least that WCAG 2 asks for."""
    for colour in COLOURS:
        luminance = float(np.array(XYZ[1]) @ linear(colour))
        contrast = {"white": 1.05 / (luminance + 0.05), "black": (luminance + 0.05) / 0.05}
        assert contrast[ink_on(colour)] > 4.5, colour


def test_a_class_has_one_colour_and_one_name_of_letters() -> None:
    assert [letters_of(label) for label in (0, 25, 26, 51, 52, 701, 702)] == [
        *("A", "Z", "AA", "AZ", "BA", "ZZ", "AAA"),
    ]
    assert len({letters_of(label) for label in range(1203)}) == 1203
    assert colour_of(3) == colour_of(11) == COLOURS[3]
