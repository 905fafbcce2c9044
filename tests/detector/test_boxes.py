"""Laws of box arithmetic, on boxes that hypothesis draws, and numbers worked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.boxes import MAX_LOG_SCALE, area, clip, decode, encode, intersection, iou

# Coordinates on a grid of 1/8 px, so that sums and differences are exact in float32 and the laws
# hold to rounding of products alone.
COORDINATE = st.integers(-400, 8000).map(lambda eighths: eighths / 8)
SIDE = st.integers(8, 8000).map(lambda eighths: eighths / 8)


def box_lists(most: int = 6) -> st.SearchStrategy[torch.Tensor]:
    """Tensors (N, 4) of boxes with sides of at least 1 px."""
    one = st.tuples(COORDINATE, COORDINATE, SIDE, SIDE).map(
        lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
    )
    return st.lists(one, min_size=1, max_size=most).map(torch.tensor)


@settings(deadline=None)
@given(box_lists(1), box_lists(1))
def test_decode_inverts_encode(box, anchor):
    # A ratio of sides above 1000 / 16 is more than decode may give back.
    sides, anchor_sides = box[:, 2:] - box[:, :2], anchor[:, 2:] - anchor[:, :2]
    reachable = bool((sides / anchor_sides <= 1000 / 16).all())
    back = decode(encode(box.double(), anchor.double()), anchor.double())
    if reachable:
        assert torch.allclose(back, box.double(), atol=1e-6)
    else:
        # The wider side is held at 62.5 anchor sides.
        assert float(((back[:, 2:] - back[:, :2]) / anchor_sides).max()) == pytest.approx(62.5)


@settings(deadline=None)
@given(box_lists(), box_lists())
def test_iou_is_symmetric_and_a_share(left, right):
    forth, back = iou(left, right), iou(right, left)
    assert torch.equal(forth, back.T)
    assert float(forth.min()) >= 0 and float(forth.max()) <= 1
    assert torch.equal(iou(left, left).diagonal(), torch.ones(len(left)))


@settings(deadline=None)
@given(box_lists(), st.integers(1, 700), st.integers(1, 700))
def test_clip_stays_on_the_picture_and_changes_nothing_twice(boxes, height, width):
    cut = clip(boxes, height, width)
    assert float(cut.min()) >= 0
    assert float(cut[:, [0, 2]].max()) <= width and float(cut[:, [1, 3]].max()) <= height
    assert torch.equal(clip(cut, height, width), cut)
    inside = (boxes[:, :2] >= 0).all(dim=1) & (boxes[:, 2] <= width) & (boxes[:, 3] <= height)
    assert torch.equal(cut[inside], boxes[inside])


def test_iou_by_hand():
    left = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    right = torch.tensor([[5.0, 5, 15, 15], [0, 0, 10, 5], [10, 0, 20, 10]])
    # 5 x 5 = 25 shared of 100 + 100 - 25 = 175; the upper half: 50 of 100; side by side: touching
    # is no overlap.
    expected = torch.tensor([[25 / 175, 0.5, 0], [0, 0, 0]])
    assert torch.allclose(iou(left, right), expected)
    assert torch.equal(intersection(left, right)[0], torch.tensor([25.0, 50, 0]))
    assert torch.equal(area(right), torch.tensor([100.0, 50, 100]))


def test_boxes_without_area_overlap_nothing():
    point = torch.tensor([[3.0, 3, 3, 3]])
    assert float(iou(point, point)) == 0.0
    assert float(iou(point, torch.tensor([[0.0, 0, 10, 10]]))) == 0.0


def test_iou_broadcasts_over_images():
    anchors = torch.tensor([[0.0, 0, 10, 10]])
    boxes = torch.tensor([[[0.0, 0, 10, 10]], [[0, 0, 5, 10]]])
    # One anchor against one box in each of two images: the box itself, and its left half.
    assert torch.equal(iou(anchors, boxes), torch.tensor([[[1.0]], [[0.5]]]))


def test_encode_by_hand():
    anchor = torch.tensor([[0.0, 0, 10, 20]])
    box = torch.tensor([[5.0, 5, 25, 15]])
    # Centres (5, 10) -> (15, 10): 10 / 10 = 1 anchor width, 0 heights. Sides 10 x 20 -> 20 x 10:
    # log 2 and log 1/2.
    assert torch.allclose(
        encode(box, anchor), torch.tensor([[1.0, 0.0, math.log(2), -math.log(2)]])
    )


def test_decode_by_hand():
    anchor = torch.tensor([[0.0, 0, 10, 20]])
    deltas = torch.tensor([[0.5, -0.25, math.log(2), 0.0]])
    # Centre (5 + 0.5 * 10, 10 - 0.25 * 20) = (10, 5); sides 20 x 20.
    assert torch.allclose(decode(deltas, anchor), torch.tensor([[0.0, -5, 20, 15]]))


def test_decode_of_a_huge_offset_is_finite():
    boxes = decode(torch.tensor([[0.0, 0, 1e30, 1e30]]), torch.tensor([[0.0, 0, 16, 16]]))
    # 16 px times exp(MAX_LOG_SCALE) = 1000 / 16: a side of 1000 px around (8, 8).
    assert torch.allclose(boxes, torch.tensor([[-492.0, -492, 508, 508]]))
    assert math.exp(MAX_LOG_SCALE) == pytest.approx(62.5)


def test_clip_takes_a_size_for_each_box():
    boxes = torch.tensor([[-5.0, -5, 100, 100], [-5.0, -5, 100, 100]])
    cut = clip(boxes, torch.tensor([40.0, 50]), torch.tensor([30.0, 200]))
    assert torch.equal(cut, torch.tensor([[0.0, 0, 30, 40], [0, 0, 100, 50]]))
