"""The tiles of a picture cover it and overlap as asked; what they show is the picture."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from detector.batch import collate
from detector.choices import ViewSettings
from detector.image import ImageError, Jpeg, open_image
from detector.merge import is_cut, merge_views
from detector.model import RetinaNet
from detector.predict import Predictor
from detector.tiling import Picture, View, views_of

SIDES = st.integers(1, 3000)
TILES = st.integers(64, 1500)
OVERLAPS = st.floats(0, 0.9)


@settings(deadline=None)
@given(SIDES, SIDES, TILES, OVERLAPS)
def test_tiles_cover_every_pixel_and_overlap_as_asked(
    height: int, width: int, tile: int, overlap: float
) -> None:
    whole, *tiles = views_of(height, width, ViewSettings(tile, overlap))
    assert whole.is_whole and whole.size == (height, width)
    assert [view.number for view in tiles] == list(range(1, whole.views))
    assert bool(tiles) == (max(height, width) > tile)
    for axis, side in enumerate((height, width)) if tiles else ():
        starts = sorted({view.corner[axis] for view in tiles})
        length = min(tile, side)
        assert {view.size[axis] for view in tiles} == {length}
        # The first begins and the last ends at a border; neighbours share the overlap at least.
        assert starts[0] == 0 and starts[-1] + length == side
        shared = [start + length - after for start, after in itertools.pairwise(starts)]
        assert all(tile * overlap <= pixels < tile for pixels in shared)
        # No tile is needless: without one of them the others would overlap less.
        if len(starts) > 1:
            room = (len(starts) - 2) * (tile - int(np.ceil(tile * overlap))) + tile
            assert room < side
    rows = {view.corner[0] for view in tiles}
    assert len(tiles) == len(rows) * len({view.corner[1] for view in tiles})


def test_tiles_by_hand() -> None:
    # 0.2 of 1024 are 205 px, so tiles are at most 819 px apart: (2048 - 1024) / 819 = 1.25, two
    # gaps of 512 px. A side of 1000 px needs one tile.
    corners = [view.corner for view in views_of(1000, 2048, ViewSettings(1024, 0.2))[1:]]
    assert corners == [(0, 0), (0, 512), (0, 1024)]
    assert {v.size for v in views_of(1000, 2048, ViewSettings(1024))[1:]} == {(1000, 1024)}
    # An overlap of nothing: three tiles side by side.
    corners = [view.corner for view in views_of(64, 192, ViewSettings(64, 0))[1:]]
    assert corners == [(0, 0), (0, 64), (0, 128)]
    # No larger than a tile, or no tile asked for: the whole picture alone.
    assert views_of(1024, 1024, ViewSettings(1024)) == [View((1024, 1024), size=(1024, 1024))]
    assert views_of(5000, 5000, ViewSettings()) == [View((5000, 5000), size=(5000, 5000))]


def encoded(pixels_HW3: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels_HW3).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_tiles_show_the_pixels_of_the_picture(kind: str) -> None:
    pixels_HW3 = np.random.default_rng(0).integers(0, 256, (150, 210, 3), np.uint8)
    data = encoded(pixels_HW3, kind)
    image = open_image(data)
    decoded_HW3 = image.pixels() if isinstance(image, Jpeg) else image
    for picture in (Picture(data), Picture(image)):
        whole, *tiles = views_of(150, 210, ViewSettings(64, 0.1))
        covered = np.zeros((150, 210), bool)
        for view in tiles:
            (top, left), (height, width) = view.corner, view.size
            place = slice(top, top + height), slice(left, left + width)
            np.testing.assert_array_equal(picture.part(view), decoded_HW3[place])
            covered[place] = True
        assert covered.all()
        # What `open_image` gives, so that the whole picture is seen as without tiles.
        part = picture.part(whole)
        assert isinstance(part, Jpeg) == (kind == "JPEG") and part.shape == (150, 210, 3)


def test_a_damaged_picture_is_an_image_error() -> None:
    data = encoded(np.zeros((150, 210, 3), np.uint8), "JPEG")[:300]
    with pytest.raises(ImageError):
        Picture(data).part(views_of(150, 210, ViewSettings(64))[1])


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    """An untrained network whose scores differ, so that it detects something everywhere."""
    torch.manual_seed(0)
    model = RetinaNet(classes=2, backbone="resnet18", width=64, base_sizes=(8, 16, 32, 64, 128))
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    return Predictor(
        model.to(memory_format=torch.channels_last),
        canvases=[(96, 96)],
        decode={
            "score_threshold": 0.0,
            "top_per_level": 100,
            "nms_threshold": 0.5,
            "max_detections": 20,
        },
        amp=False,
        batch_size=4,
    )


def pictures(count: int, side: int) -> list[np.ndarray]:
    random = np.random.default_rng(1)
    return [random.integers(0, 256, (side, side + 7 * n, 3), np.uint8) for n in range(count)]


def detected(
    predictor: Predictor, images: list[np.ndarray], views: ViewSettings
) -> dict[int, dict[str, np.ndarray]]:
    samples = (predictor.view_samples(image, i, views) for i, image in enumerate(images))
    found = predictor.detect_views(samples, views)
    return {image_id: vars(each) for image_id, each in found.items()}


def test_without_a_larger_picture_nothing_changes_to_the_last_bit(predictor: Predictor) -> None:
    images = pictures(6, 90)
    expected = predictor(images)
    for views in (ViewSettings(), ViewSettings(tile=125)):
        found = detected(predictor, images, views)
        assert len(found) == 6
        for image_id, each in found.items():
            for name, column in vars(expected[image_id]).items():
                np.testing.assert_array_equal(each[name], column)
    # One of them is larger than this tile.
    assert detected(predictor, images, ViewSettings(tile=124)).keys() == set(range(6))


def test_tiles_of_four_copies_find_the_same_boxes_shifted(predictor: Predictor) -> None:
    (image,) = pictures(1, 80)
    samples = predictor.view_samples(np.tile(image, (2, 2, 1)), 0, ViewSettings(80, overlap=0))
    tiles = [view for _, view in samples[1:]]
    assert [view.corner for view in tiles] == [(0, 0), (0, 80), (80, 0), (80, 80)]
    alone = predictor([image] * 4)[0]
    # A batch of four too, because a convolution of another number of pictures rounds differently.
    found = predictor.detect(
        collate([sample for sample, _ in samples[1:]]), [view.size for view in tiles]
    )
    for each in found:
        for name, column in vars(each).items():
            np.testing.assert_array_equal(column, getattr(alone, name))
    merged = merge_views(list(zip(tiles, found, strict=True)), nms_threshold=0.5, max_detections=80)
    expected: list[tuple[float, ...]] = []
    for view in tiles:
        top, left = view.corner
        whole = ~is_cut(alone.boxes_N4, view)
        moved_N4 = alone.boxes_N4[whole] + np.array([left, top, left, top], np.float32)
        expected += map(tuple, moved_N4.tolist())
    # Tiles without an overlap have no whole box in common.
    assert len(expected) > 4 and set(expected) <= set(map(tuple, merged.boxes_N4.tolist()))


def test_a_mirrored_picture_has_mirrored_detections(predictor: Predictor) -> None:
    """With flip both pictures are seen in the same two ways."""
    images = pictures(4, 90)
    views = ViewSettings(flip=True)
    found = detected(predictor, images, views)
    turned = detected(predictor, [image[:, ::-1].copy() for image in images], views)
    plain = detected(predictor, images, ViewSettings())
    for image_id, image in enumerate(images):
        boxes_N4 = turned[image_id]["boxes_N4"][:, [2, 1, 0, 3]]
        boxes_N4[:, [0, 2]] = image.shape[1] - boxes_N4[:, [0, 2]]
        np.testing.assert_allclose(boxes_N4, found[image_id]["boxes_N4"], atol=1e-2)
        np.testing.assert_array_equal(turned[image_id]["labels_N"], found[image_id]["labels_N"])
        assert found[image_id]["scores_N"].sum() > plain[image_id]["scores_N"].sum()
