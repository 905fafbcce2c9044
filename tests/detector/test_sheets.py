"""A sheet shows every picture, and its boxes where they are."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from detector.sheets import SheetPicture, draw_sheet

NOTHING = (np.empty((0, 4), np.float32), np.empty(0, np.int64))


def decoded(sheet: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(sheet))
    assert image.format == "JPEG"
    return np.asarray(image).astype(int)


def flat(value: int, height: int = 60, width: int = 80) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def test_every_picture_is_on_the_sheet_once() -> None:
    values = (10, 60, 110, 160, 210)
    pictures = [SheetPicture(flat(value), f"{value}.jpg", "", *NOTHING) for value in values]
    sheet = decoded(draw_sheet(pictures, [], heading="five", columns=3))
    # Each fills about 4.2 x 3.15 of 12.6 x 7.2 inches, 15 %; JPEG moves a grey by a little.
    for value in values:
        assert 0.13 < (np.abs(sheet - value).max(axis=2) < 3).mean() < 0.16
    # Two rows of three are wider than high.
    assert sheet.shape[1] > sheet.shape[0]


def test_a_box_is_drawn_where_it_is_in_the_colour_of_its_class() -> None:
    # The left half of the picture, and the first colour is blue.
    boxes = np.array([[5.0, 20.0, 40.0, 55.0]], np.float32)
    picture = SheetPicture(flat(0), "a", "", boxes, np.array([0]))
    sheet = decoded(draw_sheet([picture], ["cat"], heading="", columns=1))
    blue = (sheet[..., 2] > 120) & (sheet[..., 0] < 60)
    rows, columns = np.nonzero(blue)
    inside = np.flatnonzero((sheet < 40).all(axis=2).any(axis=0))
    left, right = inside[0], inside[-1]
    # px of the picture to those of the sheet.
    scale = (right - left) / 80
    assert abs(columns.min() - left - 5 * scale) < 4
    assert abs(columns.max() - left - 40 * scale) < 4
    # The name stands above the box: 35 px of the picture are its height without it.
    assert 35 * scale < rows.max() - rows.min() < 45 * scale


def test_dashed_boxes_are_white_and_have_no_name() -> None:
    dashed = np.array([[10.0, 10.0, 70.0, 50.0]], np.float32)
    picture = SheetPicture(flat(120), "", "", *NOTHING, dashed_M4=dashed)
    sheet = decoded(draw_sheet([picture], [], heading="", columns=1))
    height = sheet.shape[0]
    band = sheet[height // 2 - 20 : height // 2 + 20, 20:-20]
    assert (band > 230).all(axis=2).any() and (band < 60).all(axis=2).any()


def test_names_that_are_formulas_and_pictures_of_any_shape_are_drawn() -> None:
    boxes = np.array([[0.0, 0.0, 5.0, 5.0]] * 40, np.float32)
    strange = [
        SheetPicture(flat(9, height, width), "$_{x", "$", boxes, np.arange(40), np.ones(40))
        for height, width in ((1, 500), (500, 1), (60, 80))
    ]
    names = ["$\\frac{", "猫", "_x", "\n", *(f"{number}" * 50 for number in range(36))]
    assert decoded(draw_sheet(strange, names, heading="x", columns=4)).shape[2] == 3


def test_a_sheet_of_nothing_is_a_heading() -> None:
    assert decoded(draw_sheet([], [], heading="nothing", columns=4)).size
