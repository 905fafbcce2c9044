"""Vectors and anchors: one becomes the other."""

from __future__ import annotations

import numpy as np
import pytest

from detector.model_config import AnchorConfig
from tune.anchor_genes import AnchorGenes

SIX_RATIOS = AnchorConfig(
    strides=(4, 8), base_sizes=(10.0, 40.0), ratios=(0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
)


@pytest.mark.parametrize("given", [AnchorConfig(), SIX_RATIOS])
def test_the_given_anchors_have_a_vector(given: AnchorConfig) -> None:
    genes = AnchorGenes(given, (min(given.ratios), max(given.ratios)), 800)
    back = genes.decode(genes.encode(np.random.default_rng(0)))
    assert back is not None and back.strides == given.strides
    # Four digits.
    for name in ("base_sizes", "scales", "ratios"):
        assert getattr(back, name) == pytest.approx(getattr(given, name), rel=1e-3)


def test_the_smallest_scale_becomes_part_of_the_base_size() -> None:
    given = AnchorConfig(scales=(2.0, 1.5))
    genes = AnchorGenes(given, (0.5, 2.0), 800)
    back = genes.decode(genes.encode(np.random.default_rng(0)))
    assert back is not None
    assert back.scales == (1.0, 1.333) and back.base_sizes == (48, 96, 192, 384, 768)


@pytest.mark.parametrize("convention", ["exact", "torchvision"])
def test_every_vector_is_anchors_that_the_model_takes(convention: str) -> None:
    given = AnchorConfig.model_validate({"convention": convention})
    genes = AnchorGenes(given, (0.1, 10.0), 800)
    low, high = genes.bounds().T
    generator = np.random.default_rng(0)
    shapes = set()
    for _ in range(500):
        anchors = genes.decode(generator.uniform(low, high))
        # None is the rare case of two equal sizes.
        if anchors is not None:
            shapes.add((len(anchors.scales), len(anchors.ratios)))
            assert anchors.convention == convention and 0.1 <= min(anchors.ratios)
            assert list(anchors.ratios) == sorted(anchors.ratios)
    assert shapes == {(scales, ratios) for scales in range(1, 5) for ratios in range(1, 6)}


def test_what_the_model_refuses_is_no_candidate() -> None:
    genes = AnchorGenes(AnchorConfig(), (0.5, 2.0), 800)
    vector = genes.encode(np.random.default_rng(0))
    # Two levels with the same size.
    vector[1] = vector[0]
    assert genes.decode(vector) is None


def test_sizes_are_searched_around_the_given_ones_up_to_the_largest_object() -> None:
    # The paper's sizes 32 to 512: an eighth to four times, but not above 300 px.
    bounds = 2 ** AnchorGenes(AnchorConfig(), (0.5, 2.0), 300).bounds()[:5]
    assert bounds[:, 0] == pytest.approx([4, 8, 16, 32, 64])
    assert bounds[:, 1] == pytest.approx([128, 256, 300, 300, 512])
