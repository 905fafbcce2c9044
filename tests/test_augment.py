"""Boxes follow their pixels through every augmentation, and nothing but the generator decides."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from detector.augment import PAD_PIXEL, evaluation_sample, fit_scale, place, training_sample
from detector.batch import Sample

RED = (255, 0, 0)
CANVAS = (96, 128)
EVERYTHING = dict(flip=0.5, vertical_flip=0.5, scale_min=0.5, scale_max=2.0, min_visible=0.25)


def painted(height: int, width: int, box: tuple[int, int, int, int]) -> np.ndarray:
    """A blue picture with a red rectangle where the box is."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 2] = 200
    image[box[1] : box[3], box[0] : box[2]] = RED
    return image


def red_extent(image: torch.Tensor) -> np.ndarray:
    """XYXY of the pixels that are more red than blue, half-open."""
    ys, xs = np.nonzero((image[0] > image[2] + 20).numpy() & (image[0] > 140).numpy())
    return np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], np.float32)


def sample_of(image: np.ndarray, boxes, labels=None, *, seed: int = 0, **changed) -> Sample:
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    labels = np.arange(len(boxes)) if labels is None else np.array(labels)
    return training_sample(image, boxes, labels, 7, canvas=CANVAS, generator=np.random.default_rng(seed), **changed)


def test_fit_scale_by_hand():
    # 480 x 640 onto 96 x 128: both 0.2. 480 x 320: min(96 / 480, 128 / 320) = min(0.2, 0.4).
    assert fit_scale(480, 640, CANVAS) == pytest.approx(0.2)
    assert fit_scale(480, 320, CANVAS) == pytest.approx(0.2)


def test_place_without_scaling_keeps_the_pixels_and_pads_below_and_right():
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    out, size, factors = place(image, canvas=CANVAS, scale=1.0)
    assert size == (40, 50) and factors == (1.0, 1.0)
    assert torch.equal(out[:, :40, :50], torch.from_numpy(image).permute(2, 0, 1))
    for channel, value in enumerate(PAD_PIXEL):
        assert (out[channel, 40:] == value).all() and (out[channel, :, 50:] == value).all()


def test_place_cuts_the_offset():
    image = np.random.default_rng(0).integers(0, 256, (120, 200, 3), dtype=np.uint8)
    out, size, _ = place(image, canvas=CANVAS, scale=1.0, offset=(20, 60))
    # 120 - 20 = 100 rows remain, the canvas holds 96; 200 - 60 = 140 columns, it holds 128.
    assert size == CANVAS
    assert torch.equal(out, torch.from_numpy(image[20:116, 60:188]).permute(2, 0, 1))


def test_place_gives_the_factors_that_rounding_leaves():
    _, size, factors = place(np.zeros((101, 67, 3), np.uint8), canvas=CANVAS, scale=0.5)
    # 50.5 and 33.5 round to even: 50 and 34.
    assert size == (50, 34) and factors == (50 / 101, 34 / 67)


@pytest.mark.parametrize("shape", [(1, 300), (300, 1), (1, 1), (97, 129)])
def test_extreme_shapes_fit(shape):
    sample = evaluation_sample(np.full((*shape, 3), 9, np.uint8), 1, canvas=CANVAS)
    assert 1 <= sample.size[0] <= CANVAS[0] and 1 <= sample.size[1] <= CANVAS[1]
    assert CANVAS[0] in sample.size[:1] or CANVAS[1] in sample.size[1:]


def test_same_generator_same_pixels_other_seed_other_pixels():
    image = np.random.default_rng(1).integers(0, 256, (100, 120, 3), dtype=np.uint8)
    one, two = (sample_of(image, [[10, 10, 60, 70]], seed=5, **EVERYTHING) for _ in range(2))
    assert torch.equal(one.image, two.image) and np.array_equal(one.boxes_N4, two.boxes_N4)
    others = [sample_of(image, [[10, 10, 60, 70]], seed=seed, **EVERYTHING) for seed in range(6, 10)]
    assert not any(torch.equal(one.image, other.image) for other in others)


@pytest.mark.parametrize("seed", range(24))
def test_boxes_follow_the_pixels(seed):
    random = np.random.default_rng((99, seed))
    height, width = (int(side) for side in random.integers(60, 200, 2))
    left, top = int(random.integers(0, width - 40)), int(random.integers(0, height - 40))
    box = (left, top, int(random.integers(left + 20, width + 1)), int(random.integers(top + 20, height + 1)))
    sample = sample_of(painted(height, width, box), [box], seed=seed, **(EVERYTHING | {"min_visible": 1e-6}))
    if len(sample.boxes_N4) == 0:
        # Cropped away to less than a pixel: then no more than a sliver of red may be left.
        assert int((sample.image[0] > 140).sum()) <= 2 * max(CANVAS)
        return
    np.testing.assert_allclose(sample.boxes_N4[0], red_extent(sample.image), atol=1.5)


def test_boxes_stay_on_the_picture_and_the_picture_on_the_canvas():
    image = np.zeros((150, 90, 3), np.uint8)
    boxes = [[0, 0, 90, 150], [0, 0, 20, 20], [70, 130, 90, 150], [30, 60, 31, 61]]
    for seed in range(40):
        sample = sample_of(image, boxes, seed=seed, **EVERYTHING)
        height, width = sample.size
        assert height <= CANVAS[0] and width <= CANVAS[1]
        assert (sample.boxes_N4 >= 0).all() and (sample.boxes_N4 <= [width, height, width, height]).all()
        assert (sample.boxes_N4[:, 2:] - sample.boxes_N4[:, :2] >= 1).all()
        assert len(sample.boxes_N4) == len(sample.labels_N)
        assert sample.image.shape == (3, *CANVAS) and sample.image.dtype == torch.uint8
        assert sample.boxes_N4.dtype == np.float32 and sample.labels_N.dtype == np.int64


def test_a_flip_by_hand_and_twice_is_nothing():
    image = np.random.default_rng(3).integers(0, 256, (96, 100, 3), dtype=np.uint8)
    once = sample_of(image, [[10, 20, 40, 60]], flip=1.0)
    # The picture is 100 px wide on the canvas of 128: x -> 100 - x.
    assert once.boxes_N4.tolist() == [[60, 20, 90, 60]]
    twice = sample_of(once.image[:, :96, :100].permute(1, 2, 0).numpy(), once.boxes_N4, flip=1.0)
    assert twice.boxes_N4.tolist() == [[10, 20, 40, 60]]
    assert torch.equal(twice.image[:, :, :100], torch.from_numpy(image).permute(2, 0, 1))
    both = sample_of(image, [[10, 20, 40, 60]], flip=1.0, vertical_flip=1.0)
    # Height 96: y -> 96 - y.
    assert both.boxes_N4.tolist() == [[60, 36, 90, 76]]
    assert torch.equal(both.image[:, :, :100], torch.from_numpy(image).permute(2, 0, 1).flip(1, 2))


def test_the_padding_is_not_flipped_in():
    sample = sample_of(np.full((96, 40, 3), 7, np.uint8), [], flip=1.0, vertical_flip=1.0)
    assert (sample.image[:, :, :40] == 7).all()
    assert (sample.image[0, :, 40:] == PAD_PIXEL[0]).all()


def test_objects_mostly_cropped_away_are_ignored_and_slivers_dropped():
    # Twice the canvas in both directions, nothing drawn but the crop: seed chosen by trying what the offsets are, then worked by hand from them.
    image = np.zeros((96, 128, 3), np.uint8)
    draw = np.random.default_rng(0).random(5)
    # Scaled to 192 x 256: spare rows 96, spare columns 128; offsets int(draw * (spare + 1)).
    y, x = int(draw[1] * 97), int(draw[2] * 129)
    assert (y, x) == (26, 5)
    # On the scaled picture the canvas shows x 5..133, y 26..122. Boxes before scaling, so twice as large after it:
    boxes = [
        [20, 20, 40, 40],  # 40..80 both: wholly visible, moved to 35..75, 14..54
        [60, 20, 80, 40],  # x 120..160, of 40 columns 13 are visible: 0.325 of its area
        [62, 20, 90, 40],  # x 124..180, 9 of 56: 0.16, ignored
        [66, 20, 80, 40],  # x 132..160, 1 of 28 columns: a sliver of exactly 1 px, ignored
        [67, 20, 80, 40],  # x 134..160: gone
    ]
    sample = sample_of(image, boxes, seed=0, scale_min=1.0, scale_max=1.0, min_visible=0.25)
    assert sample.size == (96, 128) and len(sample.labels_N) == 5  # without jitter nothing is cropped
    # A factor of exactly 2 needs both bounds at 2.
    sample = sample_of(image, boxes, seed=0, scale_min=2.0, scale_max=2.0, min_visible=0.25)
    assert sample.labels_N.tolist() == [0, 1, -1, -1]
    assert sample.boxes_N4.tolist() == [[35, 14, 75, 54], [115, 14, 128, 54], [119, 14, 128, 54], [127, 14, 128, 54]]
    strict = sample_of(image, boxes, seed=0, scale_min=2.0, scale_max=2.0, min_visible=0.5)
    assert strict.labels_N.tolist() == [0, -1, -1, -1]


def test_ignore_regions_stay_ignore_regions():
    sample = sample_of(np.zeros((96, 128, 3), np.uint8), [[5, 5, 60, 60], [0, 0, 90, 90]], [-1, 4], flip=1.0)
    assert sample.labels_N.tolist() == [-1, 4]


def test_one_setting_does_not_change_what_another_draws():
    image = np.random.default_rng(4).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    for seed in range(8):
        plain = sample_of(image, [[10, 20, 40, 60]], seed=seed, vertical_flip=0.5)
        # Jitter that has no effect and a horizontal flip that is always made use up their own draws only.
        other = sample_of(image, [[10, 20, 40, 60]], seed=seed, vertical_flip=0.5, flip=1.0, min_visible=0.9)
        assert np.array_equal(plain.boxes_N4[:, [1, 3]], other.boxes_N4[:, [1, 3]])
        assert torch.equal(plain.image, other.image.flip(2))


def test_the_input_is_left_alone():
    image = np.random.default_rng(4).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    image.flags.writeable = False
    boxes, labels = np.array([[10, 20, 40, 60]], np.float32), np.array([3])
    before = boxes.copy()
    training_sample(image, boxes, labels, 1, canvas=CANVAS, generator=np.random.default_rng(0), **EVERYTHING)
    assert np.array_equal(boxes, before)


def test_evaluation_shows_the_whole_picture_as_large_as_fits():
    image = painted(192, 200, (50, 60, 150, 160))
    sample = evaluation_sample(image, 11, canvas=CANVAS)
    # min(96 / 192, 128 / 200) = 0.5.
    assert sample.size == (96, 100) and sample.image_id == 11 and len(sample.labels_N) == 0
    np.testing.assert_allclose(red_extent(sample.image), [25, 30, 75, 80], atol=1)
