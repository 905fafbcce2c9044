"""Mosaic and mixup: boxes follow their pixels, and only the generators decide."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from detector.batch import Sample
from detector.mixing import _mixup_of, _mosaic_of, mix
from detector.placement import place_picture
from tests.detector.test_augment import (
    CANVAS,
    RED,
    is_red,
)


def whole(
    colour: tuple[int, int, int],
    box: tuple[int, int, int, int],
    *,
    image_id: int,
    label: int,
    size: tuple[int, int] = CANVAS,
) -> Sample:
    """A grey picture of `size` with a box of that colour, on the canvas."""
    image = np.full((*size, 3), 90, np.uint8)
    image[box[1] : box[3], box[0] : box[2]] = colour
    return Sample(
        place_picture(image, canvas=CANVAS, scale=1.0)[0],
        np.array([box], np.float32),
        np.array([label]),
        size,
        image_id,
    )


def four_of(seed: int) -> list[Sample]:
    """Four pictures of any size on the canvas, each with a red box."""
    random = np.random.default_rng(seed)
    found = []
    for i in range(4):
        size = (int(random.integers(30, 97)), int(random.integers(30, 129)))
        x, y = int(random.integers(0, size[1] - 20)), int(random.integers(0, size[0] - 20))
        found.append(
            whole(
                RED,
                (
                    x,
                    y,
                    int(random.integers(x + 5, size[1] + 1)),
                    int(random.integers(y + 5, size[0] + 1)),
                ),
                image_id=i,
                label=i,
                size=size,
            )
        )
    return found


@pytest.mark.parametrize("seed", range(12))
def test_mosaic_boxes_follow_the_pixels(seed):
    first, *others = four_of(seed)
    sample = _mosaic_of(first, others, generator=np.random.default_rng(seed), min_visible=1e-6)
    expected = np.zeros(CANVAS, bool)
    for x1, y1, x2, y2 in sample.boxes_N4.astype(int):
        expected[y1:y2, x1:x2] = True
    assert np.array_equal(is_red(sample.image), expected)
    assert sample.image.shape == (3, *CANVAS) and sample.image.dtype == torch.uint8
    assert sample.size == CANVAS and sample.image_id == 0
    assert (
        sample.boxes_N4.dtype == np.float32
        and sample.labels_N.dtype == np.int64
        and len(sample.boxes_N4) == len(sample.labels_N)
    )


def test_a_mosaic_has_a_quarter_for_each_and_keeps_the_rule():
    colours = ((250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0))
    first, *others = (
        whole(colour, (0, 0, 128, 96), image_id=i, label=i) for i, colour in enumerate(colours)
    )
    for seed in range(20):
        sample = _mosaic_of(first, others, generator=np.random.default_rng(seed), min_visible=0.2)
        y, x = (
            round(side * (0.25 + 0.5 * share))
            for side, share in zip(CANVAS, np.random.default_rng(seed).random(2), strict=True)
        )
        assert sample.boxes_N4.tolist() == [
            [0, 0, x, y],
            [x, 0, 128, y],
            [0, y, x, 96],
            [x, y, 128, 96],
        ]
        # What is left of a box that filled the canvas is its quarter's share of it.
        quarters = [x * y, (128 - x) * y, x * (96 - y), (128 - x) * (96 - y)]
        assert sample.labels_N.tolist() == [
            i if quarter / (128 * 96) >= 0.2 else -1 for i, quarter in enumerate(quarters)
        ]
        corners = [
            sample.image[:, row, column].tolist()
            for row, column in ((0, 0), (0, -1), (-1, 0), (-1, -1))
        ]
        assert corners == [list(colour) for colour in colours]


@pytest.mark.parametrize("seed", range(6))
def test_mixup_keeps_both_sets_of_objects_with_their_pixels(seed):
    one = whole((240, 90, 90), (5, 8, 50, 60), image_id=1, label=3)
    two = whole((90, 240, 90), (60, 20, 120, 90), image_id=2, label=4)
    sample = _mixup_of(one, two, generator=np.random.default_rng(seed))
    assert sample.image.dtype == torch.uint8 and sample.image_id == 1
    assert sample.labels_N.tolist() == [3, 4] and sample.boxes_N4.tolist() == [
        [5, 8, 50, 60],
        [60, 20, 120, 90],
    ]
    share = 0.4 + 0.2 * np.random.default_rng(seed).random()
    # Red and green over grey: 90 + 150 * share, 90 + 150 * (1 - share).
    assert sample.image[:, 8:60, 5:50].flatten(1).unique(dim=1).flatten().tolist() == [
        round(90 + 150 * share),
        90,
        90,
    ]
    assert sample.image[:, 20:90, 60:120].flatten(1).unique(dim=1).flatten().tolist() == [
        90,
        round(90 + 150 * (1 - share)),
        90,
    ]


def generators(samples: list[Sample], seed: int) -> list[np.random.Generator]:
    return [np.random.default_rng((seed, sample.image_id % 2**63)) for sample in samples]


@pytest.mark.parametrize(
    "options", [dict(mosaic=1.0), dict(mixup=1.0), dict(mosaic=0.5, mixup=0.5)]
)
def test_mixing_depends_on_the_generators_alone_and_leaves_its_input_alone(options):
    samples = four_of(1)
    before = [sample.image.clone() for sample in samples]
    one, two, other = (
        mix(samples, generators=generators(samples, seed), **options) for seed in (5, 5, 6)
    )
    assert all(
        torch.equal(a.image, b.image) and np.array_equal(a.boxes_N4, b.boxes_N4)
        for a, b in zip(one, two, strict=True)
    )
    assert not all(torch.equal(a.image, b.image) for a, b in zip(one, other, strict=True))
    assert [sample.image_id for sample in one] == [0, 1, 2, 3]
    assert all(
        torch.equal(sample.image, image) for sample, image in zip(samples, before, strict=True)
    )


def test_mixup_does_not_change_what_mosaic_draws():
    samples = four_of(2)
    for seed in range(6):
        plain, both = (
            mix(samples, generators=generators(samples, seed), mosaic=0.5, mixup=p)
            for p in (0.0, 1.0)
        )
        for one, two, follower in zip(plain, both, [*samples[1:], samples[0]], strict=True):
            assert np.array_equal(np.concatenate([one.boxes_N4, follower.boxes_N4]), two.boxes_N4)


def test_neighbours_are_taken_in_order_and_fillers_are_not():
    samples = [
        whole(RED, (5, 5, 40, 40), image_id=i, label=i if i >= 0 else 99) for i in (10, 11, -1, 12)
    ]
    mixed = mix(samples, generators=generators(samples, 0), mixup=1.0)
    assert [sample.labels_N.tolist() for sample in mixed] == [[10, 11], [11, 12], [99], [12, 10]]
    tiled = mix(samples, generators=generators(samples, 0), mosaic=1.0, min_visible=1e-6)
    assert [sample.image_id for sample in tiled] == [10, 11, -1, 12] and tiled[2] is samples[2]
    assert all(set(sample.labels_N) <= {10, 11, 12} for i, sample in enumerate(tiled) if i != 2)
    # A picture alone with fillers has nothing to be blended with.
    alone = [samples[0], samples[2]]
    assert mix(alone, generators=generators(alone, 0), mixup=1.0)[0] is samples[0]


def test_mixing_that_is_off_changes_nothing():
    samples = four_of(3)
    assert all(
        a is b
        for a, b in zip(samples, mix(samples, generators=generators(samples, 0)), strict=True)
    )
