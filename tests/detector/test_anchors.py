"""The anchor grid by hand and against torchvision's, and the matching rules against torchvision's
matcher.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from detector.anchors import BACKGROUND, IGNORED, anchor_grid, best_iou, level_shapes, match
from detector.boxes import iou
from detector.model_config import AnchorConfig

SIZES = (32, 64, 128, 256, 512)
OCTAVE = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))


def grid(height: int, width: int, **changed) -> list[torch.Tensor]:
    return anchor_grid(
        height,
        width,
        **{"base_sizes": SIZES, "scales": OCTAVE, "ratios": (0.5, 1.0, 2.0)} | changed,
    )


def random_boxes(generator: torch.Generator, count: int, side: float) -> torch.Tensor:
    """Boxes of 8 px to `side` px on a canvas of that side."""
    corner, sides = (
        torch.rand((count, 2), generator=generator) * side * 0.8,
        8 + torch.rand((count, 2), generator=generator) * side * 0.7,
    )
    return torch.cat([corner, corner + sides], dim=1)


def padded(
    *images: tuple[list[list[float]], list[int]], slots: int = 4
) -> tuple[torch.Tensor, torch.Tensor]:
    """(boxes, labels) of each image -> boxes_BG4 and labels_BG with zeros and -1 in the slots that
    stay free.
    """
    boxes, labels = torch.zeros(len(images), slots, 4), torch.full((len(images), slots), -1)
    for i, (its_boxes, its_labels) in enumerate(images):
        if its_boxes:
            boxes[i, : len(its_boxes)], labels[i, : len(its_labels)] = (
                torch.tensor(its_boxes),
                torch.tensor(its_labels),
            )
    return boxes, labels


def test_level_shapes_by_hand():
    # 800: /8 = 100, /16 = 50, /32 = 25, /64 = 12.5 -> 13, /128 = 6.25 -> 7. 1344: 168, 84, 42, 21,
    # 10.5 -> 11.
    assert level_shapes(800, 1344) == [(100, 168), (50, 84), (25, 42), (13, 21), (7, 11)]


def test_grid_by_hand():
    p3, *_ = grid(64, 64, scales=(1.0,), ratios=(1.0, 4.0))
    # 8 x 8 positions, 2 anchors each. Side 32: +-16. Ratio 4 (height / width): width 32 / 2 = 16,
    # height 32 * 2 = 64.
    assert p3.shape == (128, 4)
    assert torch.equal(p3[:2], torch.tensor([[-16.0, -16, 16, 16], [-8, -32, 8, 32]]))
    # Second position of the first row: 8 px to the right. Second row: 16 anchors on, 8 px down.
    assert torch.equal(p3[2], torch.tensor([-8.0, -16, 24, 16]))
    assert torch.equal(p3[16], torch.tensor([-16.0, -8, 16, 24]))


def test_order_at_a_position_is_ratio_then_scale():
    first = grid(64, 64, scales=(1.0, 2.0), ratios=(1.0, 4.0))[0][:4]
    sides = first[:, 2:] - first[:, :2]
    # (width, height): ratio 1 at 32 and 64, then ratio 4 at 32 (16 x 64) and 64 (32 x 128).
    assert torch.equal(sides, torch.tensor([[32.0, 32], [64, 64], [16, 64], [32, 128]]))


def test_count_on_the_paper_canvas():
    # 9 x (100 * 168 + 50 * 84 + 25 * 42 + 13 * 21 + 7 * 11) = 9 x 22,400 = 201,600.
    assert sum(len(level) for level in grid(800, 1344)) == 201_600


@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 160), (320, 448), (800, 1344)])
@pytest.mark.parametrize("strides", [(8, 16, 32, 64, 128), (4, 8, 16, 32, 64)])
def test_same_grid_as_torchvision(height, width, strides):
    # torchvision's RetinaNet cuts its sizes to whole pixels (32, 40, 50 on P3, 512, 645, 812 on
    # P7), and takes side // rows for the stride.
    sizes = tuple((size, int(size * 2 ** (1 / 3)), int(size * 2 ** (2 / 3))) for size in SIZES)
    ours = grid(height, width, strides=strides, convention="torchvision")
    for level, ((rows, columns), its_sizes) in enumerate(
        zip(level_shapes(height, width, strides=strides), sizes, strict=True)
    ):
        generator = AnchorGenerator(sizes=(its_sizes,), aspect_ratios=((0.5, 1.0, 2.0),))
        image = ImageList(torch.zeros(1, 3, height, width), [(height, width)])
        (expected,) = generator(image, [torch.zeros(1, 1, rows, columns)])
        assert torch.equal(ours[level], expected)


def test_whole_and_exact_pixels_by_hand():
    # 10 x 2^(1/3) = 12.599 px: cut to 12, halves of 6. Ratio 2 makes it 12 / sqrt 2 = 8.49 wide,
    # half 4.24 -> 4, and 16.97 high, half 8.49 -> 8.
    settings = dict(strides=(8,), base_sizes=(10,), scales=(2 ** (1 / 3),), ratios=(1.0, 2.0))
    assert anchor_grid(8, 8, **settings, convention="torchvision")[0].tolist() == [
        [-6, -6, 6, 6],
        [-4, -8, 4, 8],
    ]
    # Exactly: half of 12.599 is 6.2996; 12.599 / sqrt 2 / 2 = 4.4545, 12.599 x sqrt 2 / 2 = 8.9090.
    # Each has 12.599^2 = 158.74 px^2.
    exact = anchor_grid(8, 8, **settings)[0]
    assert torch.allclose(
        exact[:, 2:], torch.tensor([[6.2996, 6.2996], [4.4545, 8.9090]]), atol=1e-4
    )
    assert torch.allclose(4 * exact[:, 2] * exact[:, 3], torch.tensor([158.74, 158.74]), atol=1e-2)


def test_six_anchors_of_table_1c():
    anchors = AnchorConfig(scales=(1, 1.4142))
    levels = anchor_grid(800, 1344, **anchors.model_dump())
    # 2 scales x 3 ratios at 22,400 positions.
    assert sum(len(level) for level in levels) == 6 * 22_400


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"strides": (8, 16, 64, 128, 256)}, "anchors.strides .*double from level to level"),
        ({"strides": (16, 32, 64, 128)}, "anchors.strides .*begin at 4 or 8"),
        ({"strides": (8, 16, 32, 64, 128, 256)}, "anchors.strides .*up to 128"),
        ({"strides": ()}, "strides"),
        (
            {"strides": (8, 16, 32)},
            (
                r"anchors.base_sizes .*5 entries for the 3 levels of anchors.strides \(8, 16,"
                r" 32\).*one size a stride"
            ),
        ),
        ({"base_sizes": (32, 64, 128, 256)}, "4 entries for the 5 levels"),
        ({"base_sizes": (32, 64, 64, 256, 512)}, "must grow"),
        (
            {"base_sizes": (0, 64, 128, 256, 512)},
            "anchors.base_sizes 0,64,128,256,512: must all be above 0",
        ),
        ({"ratios": (0.5, -1.0)}, "anchors.ratios 0.5,-1: must all be above 0"),
        ({"scales": ()}, "scales"),
        ({"ratios": ()}, "ratios"),
        # A side of 2 x sqrt(1 / 9) = 0.67 px, half of which is rounded to 0.
        (
            {"base_sizes": (2, 4, 8, 16, 32), "ratios": (1.0, 9.0), "convention": "torchvision"},
            "0.666667 px is rounded to nothing.*convention exact",
        ),
    ],
)
def test_inconsistent_anchors_are_refused(settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        AnchorConfig(**settings)


def test_every_anchor_that_is_admitted_has_an_area():
    # The smallest sizes that pass: 3 px, ratio 2: 3 / sqrt 2 = 2.12, half 1.06 -> 1 px on each
    # side.
    for changed in (
        {"base_sizes": (3, 4, 8, 16, 32), "convention": "torchvision"},
        {"base_sizes": (0.5, 1, 2, 4, 8)},
    ):
        anchors = torch.cat(anchor_grid(64, 64, **AnchorConfig(**changed).model_dump()))
        assert (anchors[:, 2:] > anchors[:, :2]).all()


def test_a_canvas_that_does_not_halve_is_refused():
    with pytest.raises(
        ValueError, match="canvas width 80: must be a multiple of 32.*the next one is 96"
    ):
        grid(64, 80)
    # Without C5 the coarsest feature has a stride of 16, and 80 is five of them.
    assert level_shapes(64, 80, strides=(8, 16)) == [(8, 10), (4, 5)]


@pytest.mark.parametrize("seed", range(6))
def test_matches_like_torchvision(seed):
    generator = torch.Generator().manual_seed(seed)
    anchors = torch.cat(grid(128, 128))
    counts = [1, 3, 7]
    boxes_BG4, labels_BG = torch.zeros(3, 8, 4), torch.full((3, 8), -1)
    for i, count in enumerate(counts):
        boxes_BG4[i, :count] = random_boxes(generator, count, 128)
        labels_BG[i, :count] = torch.randint(0, 5, (count,), generator=generator)
    ours = match(anchors, boxes_BG4, labels_BG)
    matcher = Matcher(0.5, 0.4, allow_low_quality_matches=True)
    for i, count in enumerate(counts):
        theirs = matcher(box_iou(boxes_BG4[i, :count], anchors))
        assert (BACKGROUND, IGNORED) == (Matcher.BELOW_LOW_THRESHOLD, Matcher.BETWEEN_THRESHOLDS)
        assert torch.equal(ours[i], theirs)


# Anchors and objects of 1 to 64 px a side on a canvas of 96 px; eighths of a pixel, so that equal
# overlaps are equal in float32 too.
EIGHTHS = st.tuples(
    st.integers(0, 512), st.integers(0, 512), st.integers(8, 512), st.integers(8, 512)
)
BOX = EIGHTHS.map(lambda b: [b[0] / 8, b[1] / 8, (b[0] + b[2]) / 8, (b[1] + b[3]) / 8])


@settings(deadline=None, max_examples=60)
@given(st.lists(BOX, min_size=1, max_size=12), st.lists(BOX, min_size=1, max_size=4))
def test_every_object_is_given_its_best_anchor(anchors, objects):
    anchors_A4 = torch.tensor(anchors)
    boxes_BG4, labels_BG = padded((objects, [0] * len(objects)))
    slots = match(anchors_A4, boxes_BG4, labels_BG)[0]
    overlaps_AG = iou(anchors_A4, torch.tensor(objects))
    for g in range(len(objects)):
        best = overlaps_AG[:, g].max()
        for a in torch.nonzero((overlaps_AG[:, g] == best) & (best > 0)).flatten().tolist():
            # Another object may have it only where it overlaps that one at least as much.
            assert slots[a] >= 0 and overlaps_AG[a, slots[a]] == overlaps_AG[a].max() >= best
    taken = slots >= 0
    assert (overlaps_AG[taken, slots[taken]] == overlaps_AG[taken].amax(dim=1)).all()
    # What no rule claims stays as its overlap says.
    assert (overlaps_AG[slots == BACKGROUND] < 0.4).all()
    between = overlaps_AG[slots == IGNORED].amax(dim=1)
    assert ((between >= 0.4) & (between < 0.5)).all()


# 0 to 300 px a side on canvases of 64 to 192 px, also beside them.
PLACE = st.floats(-100, 300, width=32)
SIDE = st.floats(0, 300, width=32)
ANYWHERE = st.tuples(PLACE, PLACE, SIDE, SIDE).map(lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]])


@settings(deadline=None, max_examples=150)
@given(
    boxes=st.lists(ANYWHERE, min_size=1, max_size=8),
    sides=st.tuples(st.integers(2, 6), st.integers(2, 6)),
    convention=st.sampled_from(["exact", "torchvision"]),
    strides=st.sampled_from([(8, 16, 32, 64, 128), (4, 8, 16, 32, 64)]),
    anchors=st.sampled_from(
        [
            {},
            {"scales": (1.0,), "ratios": (0.2, 1.0, 5.0)},
            {"base_sizes": (9, 21, 50, 51, 700), "scales": (1.0, 1.7)},
        ]
    ),
)
def test_best_iou_is_that_of_the_whole_grid(boxes, sides, convention, strides, anchors):
    height, width = 32 * sides[0], 32 * sides[1]
    geometry = {
        "base_sizes": SIZES,
        "scales": OCTAVE,
        "ratios": (0.5, 1.0, 2.0),
        "convention": convention,
        "strides": strides,
    } | anchors
    boxes_N4 = torch.tensor(boxes)
    whole_grid = iou(boxes_N4, torch.cat(anchor_grid(height, width, **geometry))).amax(dim=1)
    assert torch.allclose(best_iou(boxes_N4, height, width, **geometry), whole_grid, atol=1e-5)


def test_best_iou_by_hand():
    one = dict(base_sizes=(32,), strides=(8,), scales=(1.0,), ratios=(1.0,))
    # Anchors of 32 x 32 every 8 px. The box's centre, (22, 16), is 2 px from the column at 24:
    # overlap 30 x 32 = 960, union 2 x 1024 - 960 = 1088.
    boxes = [[6.0, 0, 38, 32], [8, 8, 40, 40], [20, 20, 28, 28], [-99, -99, -98, -98], [5, 5, 5, 9]]
    # An anchor itself; 8 x 8 inside one: 64 / 1024; beyond all; no area.
    assert best_iou(torch.tensor(boxes), 64, 64, **one).tolist() == pytest.approx(
        [960 / 1088, 1, 0.0625, 0, 0]
    )


def test_best_iou_does_not_depend_on_the_chunks(monkeypatch):
    boxes = random_boxes(torch.Generator().manual_seed(3), 50, 128)
    anchors = dict(base_sizes=SIZES, scales=OCTAVE, ratios=(0.5, 1.0, 2.0))
    whole = best_iou(boxes, 128, 128, **anchors)
    monkeypatch.setattr("detector.anchors._CHUNK_BOXES", 7)
    assert torch.equal(best_iou(boxes, 128, 128, **anchors), whole)
    assert best_iou(torch.zeros(0, 4), 128, 128, **anchors).shape == (0,)


def test_thresholds_by_hand():
    # One box of 10 x 10. Anchors: itself; 10 x 6 inside (IoU 0.6); 10 x 4.5 inside (0.45, between);
    # 10 x 3 inside (0.3); far away.
    anchors = torch.tensor(
        [[0.0, 0, 10, 10], [0, 0, 10, 6], [0, 0, 10, 4.5], [0, 0, 10, 3], [50, 50, 60, 60]]
    )
    boxes, labels = padded(([[0.0, 0, 10, 10]], [2]))
    matches = match(anchors, boxes, labels)
    assert matches.tolist() == [[0, 0, IGNORED, BACKGROUND, BACKGROUND]]
    assert int((matches >= 0).sum()) == 2


def test_the_thresholds_themselves():
    # IoU exactly 0.5 is positive, exactly 0.4 is between (both representable: 5 / 10 and 4 / 10 of
    # one box).
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 4]])
    boxes, labels = padded(([[0.0, 0, 10, 10]], [0]))
    assert match(anchors, boxes, labels).tolist() == [[0, 0, IGNORED]]


def test_an_object_that_no_anchor_fits_gets_its_best_ones():
    # A box of 4 x 4 inside two anchors of 16 x 16 that overlap it equally (16 / 256) and one that
    # touches a corner of it.
    anchors = torch.tensor([[0.0, 0, 16, 16], [-4, -4, 12, 12], [7, 7, 23, 23]])
    boxes, labels = padded(([[4.0, 4, 8, 8]], [1]))
    matches = match(anchors, boxes, labels)
    assert matches.tolist() == [[0, 0, BACKGROUND]]
    assert int((matches >= 0).sum()) == 2


def test_background_below_a_crowd_is_ignored():
    # The region covers the first anchor wholly, 6 of 10 columns of the second, 4 of 10 of the
    # third; the fourth is an object's own.
    anchors = torch.tensor([[0.0, 0, 10, 10], [14, 0, 24, 10], [16, 0, 26, 10], [10, 0, 20, 10]])
    boxes, labels = padded(([[0.0, 0, 20, 10], [10.0, 0, 20, 10]], [-1, 0]))
    slots = match(anchors, boxes, labels)[0].tolist()
    # Second anchor: IoU with the object 6 / 14 = 0.43 is between; take it without the object to see
    # the region alone.
    assert slots[0] == IGNORED and slots[3] == 1
    alone = match(anchors, *padded(([[0.0, 0, 20, 10]], [-1])))[0].tolist()
    assert alone == [IGNORED, IGNORED, BACKGROUND, IGNORED]


def test_an_anchor_is_ignored_when_a_region_covers_more_than_half_of_it():
    # 5 of 10 columns: exactly the half. A column of an eighth of a px more is above it.
    anchors = torch.tensor([[0.0, 0, 10, 10]])
    for right, slot in ((5.0, BACKGROUND), (5.125, IGNORED)):
        assert match(anchors, *padded(([[0.0, 0, right, 10]], [-1]))).tolist() == [[slot]]


def test_empty_truth_and_padding_are_background():
    anchors = torch.cat(grid(64, 64))
    matches = match(anchors, *padded(([], []), ([], [])))
    assert (matches == BACKGROUND).all()
    assert int((matches >= 0).sum()) == 0


@pytest.mark.parametrize("images", [0, 1, 2, 3])
def test_matches_do_not_depend_on_how_many_images_are_matched_at_a_time(monkeypatch, images):
    generator = torch.Generator().manual_seed(2)
    corners, sides = (
        60 * torch.rand(5, 7, 2, generator=generator),
        4 + 50 * torch.rand(5, 7, 2, generator=generator),
    )
    boxes, labels = (
        torch.cat([corners, corners + sides], dim=2),
        torch.randint(-1, 3, (5, 7), generator=generator),
    )
    anchors = torch.cat(
        anchor_grid(96, 96, base_sizes=(8, 16, 32, 64, 128), scales=(1.0,), ratios=(0.5, 1.0, 2.0))
    )
    together = match(anchors, boxes, labels)
    assert all((together == kind).any() for kind in (BACKGROUND, IGNORED)) and (together >= 0).any()
    monkeypatch.setattr("detector.anchors._CHUNK_PAIRS", images * 7 * len(anchors))
    assert torch.equal(match(anchors, boxes, labels), together)


def test_padding_never_matches_and_images_do_not_mix():
    anchors = torch.cat(grid(64, 64))
    boxes, labels = padded(([[0.0, 0, 40, 40]], [0]), ([], []), slots=16)
    both = match(anchors, boxes, labels)
    assert (both[1] == BACKGROUND).all()
    assert set(both[0].unique().tolist()) <= {0, BACKGROUND, IGNORED}
    alone = match(anchors, *padded(([[0.0, 0, 40, 40]], [0]), slots=1))
    assert torch.equal(both[0], alone[0])
    assert int((both >= 0).sum()) == int((alone >= 0).sum()) > 0


def test_every_object_on_a_canvas_has_an_anchor():
    # The promise of low-quality matches: a box from 2 px to the whole canvas, wherever it lies, is
    # somebody's.
    anchors = torch.cat(grid(128, 128))
    for side in (2.0, 5.0, 20.0, 60.0, 128.0):
        corner = (128 - side) * math.pi / 7
        boxes, labels = padded(([[corner, corner / 2, corner + side, corner / 2 + side]], [0]))
        assert int((match(anchors, boxes, labels) >= 0).sum()) >= 1, side
