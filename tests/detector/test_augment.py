"""Boxes follow their pixels through every augmentation, and nothing but the generator decides."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from detector.augment import _iou_window, training_sample
from detector.batch import Sample, empty_canvases
from detector.image import Jpeg, decode_image, open_image
from detector.placement import PAD_PIXEL, evaluation_sample, place_picture

RED = (255, 0, 0)
CANVAS = (96, 128)
EVERYTHING = dict(
    flip=0.5,
    vertical_flip=0.5,
    scale_min=0.5,
    scale_max=2.0,
    min_visible=0.25,
    iou_crop=0.5,
    photometric=0.5,
)
OPTIONS = {
    "flips": dict(flip=0.5, vertical_flip=0.5),
    "scale jitter": dict(scale_min=0.5, scale_max=2.0),
    "large-scale jitter": dict(scale_min=0.1, scale_max=2.0),
    "short sides": dict(short_sides=(40, 90), long_side=120),
    "iou crop": dict(iou_crop=1.0),
    "photometric": dict(photometric=1.0),
    "everything": EVERYTHING,
}


def painted(height: int, width: int, box: tuple[int, int, int, int]) -> np.ndarray:
    """A blue picture with a red rectangle where the box is."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 2] = 200
    image[box[1] : box[3], box[0] : box[2]] = RED
    return image


def is_red(image: torch.Tensor) -> np.ndarray:
    """(H, W) where red is well above blue: neither the background nor the padding, whose red is 20
    above its blue; also with jittered colours.
    """
    return (image[0].int() - image[2].int() > 30).numpy()


def red_extent(image: torch.Tensor) -> np.ndarray:
    """XYXY of the pixels that are red, half-open."""
    ys, xs = np.nonzero(is_red(image))
    return np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], np.float32)


def jpeg_of(pixels: np.ndarray) -> Jpeg:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "JPEG", quality=95, subsampling=0)
    return open_image(sink.getvalue())


def smooth(height: int, width: int, *, seed: int = 0) -> np.ndarray:
    """A picture without detail below some 48 px: in detail JPEG's scaling and a resize differ, as
    two ways of resizing do.
    """
    coarse = torch.rand(
        (1, 3, height // 48 + 2, width // 48 + 2), generator=torch.Generator().manual_seed(seed)
    )
    return (
        (255 * F.interpolate(coarse, size=(height, width), mode="bilinear"))[0]
        .permute(1, 2, 0)
        .byte()
        .numpy()
    )


def sample_of(image: np.ndarray | Jpeg, boxes, labels=None, *, seed: int = 0, **changed) -> Sample:
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    labels = np.arange(len(boxes)) if labels is None else np.array(labels)
    return training_sample(
        image, boxes, labels, 7, canvas=CANVAS, generator=np.random.default_rng(seed), **changed
    )


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_sample_written_into_a_batch_is_the_same(options):
    batch = empty_canvases(3, CANVAS)
    for size in ((300, 200), (97, 331), (96, 128), (192, 256), (50, 60)):
        image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
        for seed in range(6):
            batch[:] = 77
            alone, drawn = (
                sample_of(image, [[5, 5, 40, 40]], seed=seed, out=out, **options)
                for out in (None, batch[1])
            )
            assert torch.equal(drawn.image, alone.image) and torch.equal(batch[1], alone.image)
            assert drawn.image.data_ptr() == batch[1].data_ptr()
            # Nothing beside it is touched.
            assert (batch[0] == 77).all() and (batch[2] == 77).all()


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_boxes_do_not_depend_on_how_the_jpeg_is_decoded(options):
    jpeg = jpeg_of(smooth(400, 500))
    whole = jpeg.pixels()
    boxes, labels = [[10, 10, 110, 90], [300, 200, 500, 400], [0, 0, 500, 400]], [0, 1, -1]
    for seed in range(8):
        one, again, of_whole = (
            sample_of(image, boxes, labels, seed=seed, **options) for image in (jpeg, jpeg, whole)
        )
        assert torch.equal(one.image, again.image)
        assert (
            np.array_equal(one.boxes_N4, of_whole.boxes_N4)
            and np.array_equal(one.labels_N, of_whole.labels_N)
            and one.size == of_whole.size
        )


def test_training_without_augmentation_and_evaluation_show_the_same_pixels():
    for size in ((768, 1024), (300, 200), (97, 331), (50, 60)):
        jpeg = jpeg_of(smooth(*size))
        of_training, of_evaluation = (
            sample_of(jpeg, []),
            evaluation_sample(jpeg, 7, canvases=[CANVAS]),
        )
        assert (
            torch.equal(of_training.image, of_evaluation.image)
            and of_training.size == of_evaluation.size
        )
    # The first of them is decoded at an eighth, and that is to be seen.
    jpeg = jpeg_of(np.random.default_rng(0).integers(0, 256, (768, 1024, 3), dtype=np.uint8))
    assert not torch.equal(sample_of(jpeg, []).image, sample_of(decode_image(jpeg.data), []).image)


@pytest.mark.parametrize("shape", [(1, 300), (300, 1), (1, 1), (97, 129)])
def test_extreme_shapes_fit(shape):
    sample = evaluation_sample(np.full((*shape, 3), 9, np.uint8), 1, canvases=[CANVAS])
    assert 1 <= sample.size[0] <= CANVAS[0] and 1 <= sample.size[1] <= CANVAS[1]
    assert CANVAS[0] in sample.size[:1] or CANVAS[1] in sample.size[1:]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_same_generator_same_pixels_other_seed_other_pixels(options):
    image = np.random.default_rng(1).integers(0, 256, (100, 120, 3), dtype=np.uint8)
    one, two = (sample_of(image, [[10, 10, 110, 90]], seed=5, **options) for _ in range(2))
    assert torch.equal(one.image, two.image) and np.array_equal(one.boxes_N4, two.boxes_N4)
    others = [sample_of(image, [[10, 10, 110, 90]], seed=seed, **options) for seed in range(6, 14)]
    assert len({sample.image.numpy().tobytes() for sample in others}) >= 3


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("seed", range(12))
def test_boxes_follow_the_pixels(seed, options):
    random = np.random.default_rng((99, seed))
    height, width = (int(side) for side in random.integers(60, 200, 2))
    left, top = int(random.integers(0, width - 40)), int(random.integers(0, height - 40))
    box = (
        left,
        top,
        int(random.integers(left + 20, width + 1)),
        int(random.integers(top + 20, height + 1)),
    )
    sample = sample_of(
        painted(height, width, box), [box], seed=seed, **(options | {"min_visible": 1e-6})
    )
    if len(sample.boxes_N4) == 0:
        # Cropped away to less than a pixel: then no more than a sliver of red may be left.
        assert int(is_red(sample.image).sum()) <= 2 * max(CANVAS)
        return
    np.testing.assert_allclose(sample.boxes_N4[0], red_extent(sample.image), atol=1.5)


def test_boxes_stay_on_the_picture_and_the_picture_on_the_canvas():
    image = np.zeros((150, 90, 3), np.uint8)
    boxes = [[0, 0, 90, 150], [0, 0, 20, 20], [70, 130, 90, 150], [30, 60, 31, 61]]
    for seed in range(40):
        sample = sample_of(image, boxes, seed=seed, **EVERYTHING)
        height, width = sample.size
        assert height <= CANVAS[0] and width <= CANVAS[1]
        assert (sample.boxes_N4 >= 0).all() and (
            sample.boxes_N4 <= [width, height, width, height]
        ).all()
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


@pytest.mark.parametrize(
    "flips", [dict(flip=1.0), dict(vertical_flip=1.0), dict(flip=1.0, vertical_flip=1.0)]
)
def test_flipped_twice_is_identity(flips):
    # 60 x 128 on 96 x 128: as large as fits without scaling, with padding below.
    image = np.random.default_rng(8).integers(0, 256, (60, 128, 3), dtype=np.uint8)
    boxes, labels = [[3, 5, 40, 60], [100.5, 0, 128, 7.25]], [2, -1]
    once = sample_of(image, boxes, labels, **flips)
    assert not np.array_equal(once.boxes_N4, boxes)
    twice = sample_of(
        once.image[:, :60].permute(1, 2, 0).numpy(), once.boxes_N4, once.labels_N, **flips
    )
    assert twice.boxes_N4.tolist() == boxes and twice.labels_N.tolist() == labels
    assert torch.equal(twice.image, place_picture(image, canvas=CANVAS, scale=1.0)[0])


def test_the_padding_is_not_flipped_in_and_keeps_its_colour():
    sample = sample_of(np.full((96, 40, 3), 7, np.uint8), [], flip=1.0, vertical_flip=1.0)
    assert (sample.image[:, :, :40] == 7).all()
    jittered = sample_of(
        np.full((96, 40, 3), 100, np.uint8), [], flip=1.0, vertical_flip=1.0, photometric=1.0
    )
    assert not (jittered.image[:, :, :40] == 100).all()
    for one in (sample, jittered):
        assert (one.image[:, :, 40:] == torch.tensor(PAD_PIXEL).view(3, 1, 1)).all()


def test_objects_mostly_cropped_away_are_ignored_and_slivers_dropped():
    # Twice the canvas in both directions, nothing drawn but the crop: seed chosen by trying what
    # the offsets are, then worked by hand from them.
    image = np.zeros((96, 128, 3), np.uint8)
    draw = np.random.default_rng(0).random(5)
    # Scaled to 192 x 256: spare rows 96, spare columns 128; offsets int(draw * (spare + 1)).
    y, x = int(draw[1] * 97), int(draw[2] * 129)
    assert (y, x) == (26, 5)
    # On the scaled picture the canvas shows x 5..133, y 26..122. Boxes before scaling, so twice as
    # large after it:
    boxes = [
        [20, 20, 40, 40],  # 40..80 both: wholly visible, moved to 35..75, 14..54
        [60, 20, 80, 40],  # x 120..160, of 40 columns 13 are visible: 0.325 of its area
        [62, 20, 90, 40],  # x 124..180, 9 of 56: 0.16, ignored
        [66, 20, 80, 40],  # x 132..160, 1 of 28 columns: a sliver of exactly 1 px, ignored
        [67, 20, 80, 40],  # x 134..160: gone
    ]
    sample = sample_of(image, boxes, seed=0, scale_min=1.0, scale_max=1.0, min_visible=0.25)
    assert (
        sample.size == (96, 128) and len(sample.labels_N) == 5
    )  # without jitter nothing is cropped
    # A factor of exactly 2 needs both bounds at 2.
    sample = sample_of(image, boxes, seed=0, scale_min=2.0, scale_max=2.0, min_visible=0.25)
    assert sample.labels_N.tolist() == [0, 1, -1, -1]
    assert sample.boxes_N4.tolist() == [
        [35, 14, 75, 54],
        [115, 14, 128, 54],
        [119, 14, 128, 54],
        [127, 14, 128, 54],
    ]
    strict = sample_of(image, boxes, seed=0, scale_min=2.0, scale_max=2.0, min_visible=0.5)
    assert strict.labels_N.tolist() == [0, -1, -1, -1]


def test_ignore_regions_stay_ignore_regions():
    sample = sample_of(
        np.zeros((96, 128, 3), np.uint8), [[5, 5, 60, 60], [0, 0, 90, 90]], [-1, 4], flip=1.0
    )
    assert sample.labels_N.tolist() == [-1, 4]


def test_one_setting_does_not_change_what_another_draws():
    image = np.random.default_rng(4).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    for seed in range(8):
        plain = sample_of(image, [[10, 20, 40, 60]], seed=seed, vertical_flip=0.5)
        # Jitter that has no effect and a horizontal flip that is always made use up their own draws
        # only.
        other = sample_of(
            image, [[10, 20, 40, 60]], seed=seed, vertical_flip=0.5, flip=1.0, min_visible=0.9
        )
        assert np.array_equal(plain.boxes_N4[:, [1, 3]], other.boxes_N4[:, [1, 3]])
        assert torch.equal(plain.image, other.image.flip(2))


def test_a_setting_without_effect_still_makes_its_draws():
    image = np.random.default_rng(4).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    geometry = dict(flip=0.5, vertical_flip=0.5, scale_min=0.5, scale_max=2.0)
    for seed in range(8):
        plain = sample_of(image, [], seed=seed, **geometry)
        # Without an object the IoU crop leaves the picture whole; without strengths the colours
        # stay.
        still = dict(
            iou_crop=1.0, photometric=1.0, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0
        )
        assert torch.equal(plain.image, sample_of(image, [], seed=seed, **geometry, **still).image)
        # The colours do not move the boxes.
        boxes = [
            sample_of(
                image, [[10, 20, 40, 60]], seed=seed, iou_crop=0.5, photometric=p, **geometry
            ).boxes_N4
            for p in (0.0, 1.0)
        ]
        assert np.array_equal(*boxes)


def test_large_scale_jitter_is_even_in_the_logarithm():
    image = np.zeros((96, 128, 3), np.uint8)
    heights = [
        sample_of(image, [[0, 0, 128, 96]], seed=seed, scale_min=0.1, scale_max=2.0).size[0]
        for seed in range(400)
    ]
    # Between 0.1 * 96 = 9.6 and the canvas. log(1 / 0.1) / log(2 / 0.1) = 0.77 of the pictures are
    # smaller than the canvas, half of those 307 below 96 * sqrt(0.1) = 30 px.
    assert 10 <= min(heights) <= 12 and max(heights) == 96
    assert 0.70 < np.mean(np.array(heights) < 96) < 0.84
    assert 25 < np.median([h for h in heights if h < 96]) < 36


def test_short_sides_by_hand():
    image = np.zeros((48, 80, 3), np.uint8)
    sizes = {
        sample_of(image, [], seed=seed, short_sides=(60, 70), long_side=110).size
        for seed in range(150)
    }
    # 60 / 48 * 80 = 100. From 67 / 48 * 80 = 111.7 on the longer side is held at 110, the shorter
    # one is 66.
    assert sizes == {(60, 100), (61, 102), (62, 103), (63, 105), (64, 107), (65, 108), (66, 110)}
    # The canvas is 128 wide, and 70 / 48 * 80 = 117 fits it; of a picture three times as wide as
    # high 128 is the most: 43 high.
    assert max(
        sample_of(image, [], seed=seed, short_sides=(60, 70), long_side=120).size
        for seed in range(60)
    ) == (70, 117)
    assert sample_of(np.zeros((40, 120, 3), np.uint8), [], short_sides=(60, 70)).size == (43, 128)


def test_the_window_of_the_iou_crop_has_the_promised_properties():
    random = np.random.default_rng(0)
    cropped = 0
    for _ in range(300):
        height, width = random.integers(1, 300, 2)
        corners = np.sort(random.random((3, 2, 2)), axis=1) * [width, height]
        objects = corners.reshape(3, 4).astype(np.float32)
        minimum = float(random.choice([0.0, 0.1, 0.3, 0.5, 0.7, 0.9]))
        x1, y1, x2, y2 = _iou_window(
            (height, width), objects, minima=(minimum,), draw=random.random(161)
        )
        assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height
        if (x2 - x1, y2 - y1) == (width, height):
            continue
        cropped += 1
        assert max(x2 - x1, y2 - y1) <= 2 * min(x2 - x1, y2 - y1)
        overlap = np.prod(
            np.minimum(objects[:, 2:], [x2, y2]) - np.maximum(objects[:, :2], [x1, y1]), axis=1
        )
        meets = (np.minimum(objects[:, 2:], [x2, y2]) > np.maximum(objects[:, :2], [x1, y1])).all(
            axis=1
        )
        union = (x2 - x1) * (y2 - y1) + np.prod(objects[:, 2:] - objects[:, :2], axis=1) - overlap
        assert (meets & (overlap >= minimum * union - 1e-3)).any()
    assert cropped > 100


def test_the_iou_crop_returns_the_whole_picture_without_a_valid_window():
    draw = np.random.default_rng(0).random(161)
    assert _iou_window((100, 60), np.zeros((0, 4), np.float32), minima=(0.0,), draw=draw) == (
        0,
        0,
        60,
        100,
    )
    # No window of at least 0.3 of each side has an IoU of 0.9 with an object of 4 x 4 px.
    assert _iou_window(
        (100, 60), np.array([[30, 30, 34, 34]], np.float32), minima=(0.9,), draw=draw
    ) == (0, 0, 60, 100)


def test_an_iou_crop_cuts_boxes_by_the_rule():
    image = np.zeros((96, 128, 3), np.uint8)
    labels = [
        sample_of(
            image, [[0, 0, 128, 96]], seed=seed, iou_crop=1.0, iou_minima=(0.1,), min_visible=0.5
        ).labels_N
        for seed in range(60)
    ]
    shares = [
        np.prod(
            np.subtract(
                *np.array(
                    _iou_window(
                        (96, 128), np.array([[0, 0, 128, 96]], np.float32), minima=(0.1,), draw=d
                    )
                ).reshape(2, 2)[::-1]
            )
        )
        for d in (np.random.default_rng(seed).random(5 + 162)[6:] for seed in range(60))
    ]
    # The object is the picture, so what is visible of it is the window's share of 128 x 96 px.
    assert [label.tolist() for label in labels] == [
        [-1 if share / (128 * 96) < 0.5 else 0] for share in shares
    ]
    assert {-1, 0} <= {int(label[0]) for label in labels}


def test_photometric_jitter_by_hand():
    image = np.full((96, 128, 3), 100, np.uint8)
    strengths = dict(contrast=0.0, saturation=0.0, hue=0.0)
    shades = {
        int(
            sample_of(
                image, [], seed=seed, photometric=1.0, brightness=0.2, **strengths
            ).image.unique()
        )
        for seed in range(60)
    }
    # One shade each, from 80 to 120.
    assert min(shades) >= 80 and max(shades) <= 120 and len(shades) > 20
    # A grey picture has no saturation and no hue to change.
    grey = sample_of(
        image, [], photometric=1.0, brightness=0.0, contrast=0.0, saturation=1.0, hue=0.5
    )
    # torchvision's saturation cuts off after the point.
    assert 99 <= grey.image.min() and grey.image.max() <= 100
    half = sum(
        not (sample_of(image, [], seed=seed, photometric=0.5, brightness=0.9).image == 100).all()
        for seed in range(60)
    )
    assert 15 < half < 45


@pytest.mark.parametrize(
    ("box", "label", "complaint"),
    [
        (
            [1, 2, float("nan"), 9],
            0,
            r"image_id 7, \[1.0, 2.0, nan, 9.0\]: coordinates must be finite",
        ),
        ([1, float("-inf"), 5, 9], 0, "coordinates must be finite"),
        ([1, 2, 5, 9], -2, "labels of image_id 7, -2: must be at least -1"),
    ],
)
def test_non_finite_boxes_and_invalid_labels_are_refused(box, label, complaint):
    with pytest.raises(ValueError, match=complaint):
        sample_of(np.zeros((20, 20, 3), np.uint8), [[0, 0, 5, 5], box], [1, label])


def test_the_input_is_left_alone():
    image = np.random.default_rng(4).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    image.flags.writeable = False
    boxes, labels = np.array([[10, 20, 40, 60]], np.float32), np.array([3])
    before = boxes.copy()
    training_sample(
        image, boxes, labels, 1, canvas=CANVAS, generator=np.random.default_rng(0), **EVERYTHING
    )
    assert np.array_equal(boxes, before)


def test_evaluation_shows_the_whole_picture_as_large_as_fits():
    image = painted(192, 200, (50, 60, 150, 160))
    sample = evaluation_sample(image, 11, canvases=[CANVAS])
    # min(96 / 192, 128 / 200) = 0.5.
    assert sample.size == (96, 100) and sample.image_id == 11 and len(sample.labels_N) == 0
    np.testing.assert_allclose(red_extent(sample.image), [25, 30, 75, 80], atol=1)
