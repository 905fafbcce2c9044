"""The box losses by hand, against torchvision, and for extreme offsets."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import (
    complete_box_iou_loss,
    distance_box_iou_loss,
    generalized_box_iou_loss,
)

from detector.box_loss import BOX_LOSSES, ciou_loss, diou_loss, giou_loss, iou_loss
from detector.choices import LossSettings


def test_overlap_losses_by_hand():
    boxes, targets = (
        torch.tensor([[0.0, 0, 4, 2], [0, 0, 2, 2]]),
        torch.tensor([[2.0, 0, 4, 4], [4, 0, 6, 2]]),
    )
    # First pair: shared 2 x 2 = 4, union 8 + 8 - 4 = 12, hull 4 x 4. Second: nothing shared, union
    # 8, hull 6 x 2.
    assert iou_loss(boxes, targets).tolist() == pytest.approx([1 - 4 / 12, 1.0])
    assert giou_loss(boxes, targets).tolist() == pytest.approx([1 - 4 / 12 + 4 / 16, 1 + 4 / 12])
    # Centres (2, 1) and (3, 2), then (1, 1) and (5, 1): squared distances 2 and 16 over the squared
    # diagonals 32 and 40.
    assert diou_loss(boxes, targets).tolist() == pytest.approx([1 - 4 / 12 + 2 / 32, 1.4])
    # Widths over heights 2 and 1/2: v = 4 / pi^2 (atan 0.5 - atan 2)^2, weighed by v / (1 - IoU +
    # v). The squares have v = 0.
    v = 4 / math.pi**2 * (math.atan(0.5) - math.atan(2)) ** 2
    assert ciou_loss(boxes, targets).tolist() == pytest.approx(
        [1 - 4 / 12 + 2 / 32 + v * v / (1 - 4 / 12 + v), 1.4]
    )


@pytest.mark.parametrize(
    ("loss", "theirs"),
    [
        (giou_loss, generalized_box_iou_loss),
        (diou_loss, distance_box_iou_loss),
        (ciou_loss, complete_box_iou_loss),
    ],
)
def test_overlap_losses_and_gradients_are_torchvisions(loss, theirs):
    generator = torch.Generator().manual_seed(0)
    corners, sides = (
        60 * torch.rand(2, 200, 2, generator=generator).double(),
        2 + 40 * torch.rand(2, 200, 2, generator=generator).double(),
    )
    boxes, targets = torch.cat([corners, corners + sides], dim=2)
    ours, other = boxes.clone().requires_grad_(), boxes.clone().requires_grad_()
    found, expected = loss(ours, targets), theirs(other, targets, eps=1e-12)
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-12)
    found.sum().backward()
    expected.sum().backward()
    assert torch.allclose(ours.grad, other.grad, rtol=1e-6, atol=1e-12)


OFFSETS = st.floats(-1e4, 1e4, width=32)


SIDES = st.floats(1.0, 2000.0, width=32)


@given(
    st.lists(st.tuples(OFFSETS, OFFSETS, OFFSETS, OFFSETS, SIDES, SIDES), min_size=1, max_size=8),
    st.sampled_from(sorted(BOX_LOSSES)),
)
@settings(max_examples=150, deadline=None)
def test_box_losses_are_finite_whatever_is_predicted(rows, kind):
    """Also for boxes that collapse to a point or a line, swallow the picture, or lie far outside of
    it.
    """
    table = torch.tensor(rows)
    deltas, sides = table[:, :4].clone().requires_grad_(), table[:, 4:]
    anchors, targets = (
        torch.cat([-sides / 2, sides / 2], dim=1),
        torch.cat([-sides / 3, sides / 2], dim=1),
    )
    loss = BOX_LOSSES[kind](deltas, anchors, targets, LossSettings())
    loss.sum().backward()
    assert torch.isfinite(loss).all() and torch.isfinite(deltas.grad).all()
    # IoU lies in 0..1 and each penalty too, so no kind on boxes goes beyond 3.
    assert float(loss.detach().min()) > -1e-5 and ("l1" in kind or float(loss.detach().max()) < 3)
