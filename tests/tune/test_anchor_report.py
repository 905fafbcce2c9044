"""The result of a search as a table, a recipe and a picture."""

from __future__ import annotations

import io

import numpy as np
import pytest
import yaml
from PIL import Image

from detector.image_config import CanvasConfig
from detector.model_config import AnchorConfig, ModelConfig
from tests.support.box_sets import annotations, coco_like
from tune.anchor_report import picture, recipe, table
from tune.anchors import AnchorSearch, Candidate
from tune.placed_boxes import Fit, place_boxes

BEFORE = Fit((60, 30, 0), (30, 30, 0), (30.0, 24.0, 0.0), (0.0, 0.0, 0.0))
AFTER = Fit((60, 30, 0), (57, 30, 0), (42.0, 25.5, 0.0), (0.0, 0.0, 0.0))
SMALLER = AnchorConfig(base_sizes=(16.0, 40.0, 90.0, 180.0, 400.0), scales=(1.0, 1.5))


@pytest.fixture(scope="module")
def search() -> AnchorSearch:
    generator = np.random.default_rng(0)
    given = Candidate(AnchorConfig(), BEFORE, BEFORE)
    best = Candidate(SMALLER, AFTER, AFTER)
    return AnchorSearch(
        given=given,
        best=best,
        confirmed=(best, given),
        price=0.01,
        foreground=0.5,
        tried=100,
        sample=place_boxes(annotations(coco_like(900)), canvas=CanvasConfig(), generator=generator),
    )


def test_the_table_has_recall_by_size_before_and_after(search: AnchorSearch) -> None:
    # 60 of 90, 87 of 90; 54 / 90 and 67.5 / 90.
    assert table(search).splitlines() == [
        "                        before           after",
        "recall all       0.667 (0.667)   0.967 (0.967)",
        "recall small     0.500 (0.500)   0.950 (0.950)",
        "recall medium    1.000 (1.000)   1.000 (1.000)",
        "recall large                 -               -",
        "mean IoU                 0.600           0.750",
        "anchors                      9               6",
    ]


def test_the_recipe_is_what_the_model_takes(search: AnchorSearch) -> None:
    text = recipe(search, data="cells")
    assert ModelConfig.model_validate(yaml.safe_load(text)["model"]).anchors == SMALLER
    assert text.startswith(
        "# Anchors for cells on 1344 x 800 px: recall at IoU 0.5 0.667 -> 0.967, mean IoU 0.600 ->"
        " 0.750, anchors at a position 9 -> 6.\n"
    )


def test_the_picture_shows_something(search: AnchorSearch) -> None:
    with Image.open(io.BytesIO(picture(search))) as image:
        pixels = np.asarray(image.convert("L"))
    assert image.format == "PNG" and pixels.shape[1] > 1000
    assert 0.02 < (pixels < 250).mean() < 0.6
