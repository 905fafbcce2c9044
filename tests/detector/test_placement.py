"""A picture on its canvas: scaled, cut and padded, from an array or a JPEG."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from detector.placement import PAD_PIXEL, fit_scale, place_picture
from tests.detector.test_augment import CANVAS, jpeg_of, smooth


def test_fit_scale_by_hand():
    # 480 x 640 onto 96 x 128: both 0.2. 480 x 320: min(96 / 480, 128 / 320) = min(0.2, 0.4).
    assert fit_scale(480, 640, CANVAS) == pytest.approx(0.2)
    assert fit_scale(480, 320, CANVAS) == pytest.approx(0.2)


def test_place_without_scaling_keeps_the_pixels_and_pads_below_and_right():
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    out, size, factors = place_picture(image, canvas=CANVAS, scale=1.0)
    assert size == (40, 50) and factors == (1.0, 1.0)
    assert torch.equal(out[:, :40, :50], torch.from_numpy(image).permute(2, 0, 1))
    for channel, value in enumerate(PAD_PIXEL):
        assert (out[channel, 40:] == value).all() and (out[channel, :, 50:] == value).all()


def test_place_cuts_the_offset():
    image = np.random.default_rng(0).integers(0, 256, (120, 200, 3), dtype=np.uint8)
    out, size, _ = place_picture(image, canvas=CANVAS, scale=1.0, offset=(20, 60))
    # 120 - 20 = 100 rows remain, the canvas holds 96; 200 - 60 = 140 columns, it holds 128.
    assert size == CANVAS
    assert torch.equal(out, torch.from_numpy(image[20:116, 60:188]).permute(2, 0, 1))


def test_place_gives_the_factors_that_rounding_leaves():
    _, size, factors = place_picture(np.zeros((101, 67, 3), np.uint8), canvas=CANVAS, scale=0.5)
    # 50.5 and 33.5 round to even: 50 and 34.
    assert size == (50, 34) and factors == (50 / 101, 34 / 67)


def test_a_placed_picture_is_resized_as_torch_does_it_and_channels_last_as_a_batch():
    for size, scale in (((120, 160), 0.8), ((120, 160), 0.3), ((40, 50), 1.9)):
        image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
        height, width = (round(side * scale) for side in size)
        whole = torch.from_numpy(image).permute(2, 0, 1)[None].contiguous()
        # Rows first; each axis is rounded to whole numbers, so that both at once, columns first,
        # differ by one at the most.
        rows = F.interpolate(whole, size=(height, size[1]), mode="bilinear", antialias=True)
        expected = F.interpolate(rows, size=(height, width), mode="bilinear", antialias=True)
        at_once = F.interpolate(whole, size=(height, width), mode="bilinear", antialias=True)
        assert (expected.int() - at_once.int()).abs().max() <= 1
        # Read-only, backwards in memory, or a part of another: an array is what it shows.
        frozen, backwards, part = (
            image.copy(),
            image[::-1, ::-1].copy()[::-1, ::-1],
            np.pad(image, ((3, 4), (5, 6), (0, 0)))[3:-4, 5:-6],
        )
        frozen.flags.writeable = False
        for given in (image, frozen, backwards, part):
            out, shown, _ = place_picture(given, canvas=(96, 128), scale=scale)
            assert torch.equal(
                out[:, : shown[0], : shown[1]], expected[0, :, : shown[0], : shown[1]]
            )
            assert out[None].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("scale", [0.3, 0.8, 1.0, 1.9])
def test_what_is_cut_off_changes_nothing_of_what_is_left(scale):
    image = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    whole = place_picture(image, canvas=(400, 400), scale=scale)[0]
    spare = [
        max(0, round(side * scale) - room) for side, room in zip((120, 160), CANVAS, strict=True)
    ]
    for offset in ((0, 0), tuple(spare), (spare[0] // 2, 0), (0, spare[1] // 3)):
        out, (height, width), _ = place_picture(image, canvas=CANVAS, scale=scale, offset=offset)
        assert torch.equal(
            out[:, :height, :width],
            whole[:, offset[0] : offset[0] + height, offset[1] : offset[1] + width],
        )


def test_a_placed_picture_is_no_view_of_its_source():
    image = np.zeros((*CANVAS, 3), np.uint8)
    for _ in range(2):
        out, _, _ = place_picture(image, canvas=CANVAS, scale=1.0)
        assert (out == 0).all()
        out[:] = 255
    assert (image == 0).all()
    padding = place_picture(image[:1, :1], canvas=CANVAS, scale=1.0)[0][:, 1:, 1:]
    assert (padding == torch.tensor(PAD_PIXEL).view(3, 1, 1)).all()


@pytest.mark.parametrize("scale", [0.51, 0.8, 1.0, 1.7])
def test_a_jpeg_wanted_above_half_its_size_is_decoded_whole(scale):
    jpeg = jpeg_of(np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8))
    of_jpeg, of_array = (
        place_picture(image, canvas=(320, 352), scale=scale) for image in (jpeg, jpeg.pixels())
    )
    assert torch.equal(of_jpeg[0], of_array[0]) and of_jpeg[1:] == of_array[1:]


@pytest.mark.parametrize("sides", [(768, 1024), (767, 1023), (769, 1025), (601, 803)])
@pytest.mark.parametrize("scale", [0.5, 0.4, 0.25, 0.2, 0.125, 0.1, 0.03])
def test_a_jpeg_decoded_smaller_looks_like_the_whole_one_resized(sides, scale):
    jpeg = jpeg_of(smooth(*sides))
    small, size, factors = place_picture(jpeg, canvas=(512, 512), scale=scale)
    whole, size_of_whole, factors_of_whole = place_picture(
        jpeg.pixels(), canvas=(512, 512), scale=scale
    )
    assert (size, factors) == (size_of_whole, factors_of_whole)
    difference = (small.int() - whole.int()).abs()[:, : size[0], : size[1]].float()
    assert difference.mean() < 1
    # Nor is the border anything else: the last rows and columns.
    assert (
        max(
            difference[:, -1].mean(),
            difference[:, :, -1].mean(),
            difference[:, 0].mean(),
            difference[:, :, 0].mean(),
        )
        < 2
    )


@pytest.mark.parametrize("side", [*range(640, 657), 801, 999, 1001])
@pytest.mark.parametrize("scale", [0.5, 0.37, 0.25, 0.125, 0.1])
def test_a_jpeg_decoded_smaller_keeps_its_edges_where_they_are(side, scale):
    # White from a place on: how much white is left of a line, in px of the canvas, is where the
    # edge is.
    for edge in (0.1, 0.5, 0.97):
        picture = np.zeros((side, side, 3), np.uint8)
        picture[:, round(edge * side) :] = 255
        for turned in (picture, picture.transpose(1, 0, 2)):
            jpeg = jpeg_of(turned)
            small, whole = (
                place_picture(image, canvas=(512, 512), scale=scale)[0]
                for image in (jpeg, jpeg.pixels())
            )
            shown = round(side * scale)
            white = [
                (image[1, :shown, :shown].float().mean() / 255 * shown).item()
                for image in (small, whole)
            ]
            assert white == pytest.approx([(side - round(edge * side)) * shown / side] * 2, abs=0.1)
