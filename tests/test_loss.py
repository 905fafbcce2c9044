"""The focal loss against its formula and torchvision's, the box loss by hand, and who carries no loss at all."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import sigmoid_focal_loss

from detector.anchors import BACKGROUND, IGNORED, anchor_grid, match
from detector.batch import Sample, collate
from detector.boxes import encode
from detector.loss import LossSums, detection_loss, focal_term

SETTINGS = dict(gamma=2.0, alpha=0.25, beta=1 / 9)
ANCHORS = torch.cat(anchor_grid(64, 64, base_sizes=(8, 16, 32, 64, 128), scales=(1.0,), ratios=(0.5, 1.0, 2.0)))
CLASSES = 3


def sample(boxes: list[list[float]], labels: list[int], image_id: int = 1) -> Sample:
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    return Sample(image, np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64), (64, 64), image_id)


def outputs(images: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random logits (B, A, K) around 0 and offsets (B, A, 4)."""
    generator = torch.Generator().manual_seed(seed)
    shape = (images, len(ANCHORS))
    return 3 * torch.randn((*shape, CLASSES), generator=generator), 0.3 * torch.randn((*shape, 4), generator=generator)


def loss_of(samples: list[Sample], logits: torch.Tensor, deltas: torch.Tensor, **changed) -> tuple[LossSums, torch.Tensor]:
    batch = collate(samples)
    matches = match(ANCHORS, batch.boxes_BG4, batch.labels_BG)
    sums = detection_loss(logits, deltas, ANCHORS, batch.boxes_BG4, batch.labels_BG, matches.slot_BA, **(SETTINGS | changed))
    return sums, matches.slot_BA


CAT, DOG, FAR = sample([[4, 4, 30, 30]], [0]), sample([[10, 20, 60, 44], [40, 2, 62, 22]], [2, 1]), sample([], [])


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
@pytest.mark.parametrize("positive", [True, False])
def test_focal_term_is_the_formula(gamma, positive):
    logits = torch.linspace(-12, 12, 97, dtype=torch.float64)
    p_t = torch.sigmoid(logits if positive else -logits)
    # Section 3.2: FL(p_t) = -alpha_t (1 - p_t)^gamma log(p_t).
    expected = -(0.25 if positive else 0.75) * (1 - p_t) ** gamma * torch.log(p_t)
    assert torch.allclose(focal_term(logits, positive=positive, gamma=gamma, alpha=0.25), expected, rtol=1e-9, atol=1e-12)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: focal_term(x, positive=positive, gamma=gamma, alpha=0.25), (logits,))


def test_focal_term_by_hand():
    # p = 0.5 at logit 0: positive -0.25 * 0.5^2 * log 0.5 = 0.0433217, negative three times that.
    zero = torch.zeros(())
    assert float(focal_term(zero, positive=True, gamma=2.0, alpha=0.25)) == pytest.approx(0.0625 * math.log(2))
    assert float(focal_term(zero, positive=False, gamma=2.0, alpha=0.25)) == pytest.approx(0.1875 * math.log(2))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("positive", [True, False])
def test_extreme_logits_stay_finite(gamma, positive):
    logits = torch.tensor([-1e4, -100.0, -20, 20, 100, 1e4], requires_grad=True)
    loss = focal_term(logits, positive=positive, gamma=gamma, alpha=0.25)
    loss.sum().backward()
    loss = loss.detach()
    assert torch.isfinite(loss).all() and torch.isfinite(logits.grad).all()
    # Wholly wrong: log p_t is the logit itself. Wholly right: nothing.
    wrong, right = (0, -1) if positive else (-1, 0)
    assert float(loss[wrong]) == pytest.approx(1e4 * (0.25 if positive else 0.75)) and float(loss[right]) == 0.0


@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, 0.25), (0.5, 0.6)])
def test_sum_and_gradient_are_those_of_torchvision_on_one_hot_targets(gamma, alpha):
    logits, deltas = outputs(2)
    logits.requires_grad_()
    sums, slot_BA = loss_of([CAT, DOG], logits, deltas, gamma=gamma, alpha=alpha)
    sums.classification.backward()
    batch = collate([CAT, DOG])
    labels_BA = batch.labels_BG.gather(1, slot_BA.clamp(min=0))
    one_hot = F.one_hot(labels_BA, CLASSES) * (slot_BA >= 0)[..., None]
    theirs = logits.detach().clone().requires_grad_()
    expected = (sigmoid_focal_loss(theirs, one_hot.float(), alpha=alpha, gamma=gamma) * (slot_BA != IGNORED)[..., None]).sum()
    expected.backward()
    assert (slot_BA >= 0).any() and (slot_BA == IGNORED).any() and (slot_BA == BACKGROUND).any()
    assert float(sums.classification.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert torch.allclose(logits.grad, theirs.grad, atol=1e-5)


def test_extreme_logits_keep_the_whole_loss_finite():
    logits, deltas = outputs(2)
    extreme = (logits.sign() * 1e4).requires_grad_()
    sums, _ = loss_of([CAT, DOG], extreme, deltas, gamma=0.5)
    sums.classification.backward()
    assert torch.isfinite(sums.classification) and torch.isfinite(extreme.grad).all()


def test_half_precision_outputs_are_summed_in_float32():
    logits, deltas = (x.bfloat16() for x in outputs(2))
    half, _ = loss_of([CAT, DOG], logits, deltas)
    full, _ = loss_of([CAT, DOG], logits.float(), deltas.float())
    assert half.classification.dtype == half.box.dtype == torch.float32
    assert torch.equal(half.classification, full.classification) and torch.equal(half.box, full.box)


def test_box_loss_by_hand():
    anchors = torch.tensor([[0.0, 0, 10, 10], [100, 100, 110, 110]])
    boxes, labels = torch.tensor([[[1.0, 0, 11, 10]]]), torch.tensor([[0]])
    slots = torch.tensor([[0, BACKGROUND]])
    logits, deltas = torch.zeros(1, 2, 1), torch.tensor([[[0.1, 0.5, 0.0, -0.2], [9.0, 9, 9, 9]]])
    # Target (0.1, 0, 0, 0). beta 0.4: |0| -> 0; |0.5| -> 0.5 - 0.2 = 0.3; 0; |0.2| -> 0.5 * 0.04 / 0.4 = 0.05. The background has no box loss.
    sums = detection_loss(logits, deltas, anchors, boxes, labels, slots, gamma=2.0, alpha=0.25, beta=0.4)
    assert float(sums.box) == pytest.approx(0.35)
    # One positive and one negative logit at 0: (0.0625 + 0.1875) log 2.
    assert float(sums.classification) == pytest.approx(0.25 * math.log(2))


def test_exact_offsets_have_no_box_loss():
    batch = collate([CAT, DOG])
    slot_BA = match(ANCHORS, batch.boxes_BG4, batch.labels_BG).slot_BA
    logits, _ = outputs(2)
    targets = torch.stack([encode(boxes[slots.clamp(min=0)], ANCHORS) for boxes, slots in zip(batch.boxes_BG4, slot_BA, strict=True)])
    sums, _ = loss_of([CAT, DOG], logits, targets.nan_to_num())
    assert float(sums.box) == 0.0


def test_ignored_anchors_carry_nothing():
    logits, deltas = outputs(1)
    crowd = sample([[0, 0, 40, 64], [50, 10, 62, 30]], [-1, 1])
    logits.requires_grad_()
    deltas.requires_grad_()
    sums, slot_BA = loss_of([crowd], logits, deltas)
    (sums.classification + sums.box).backward()
    ignored = slot_BA[0] == IGNORED
    assert ignored.any()
    assert float(logits.grad[0, ignored].abs().max()) == 0.0 and float(deltas.grad[0, ignored].abs().max()) == 0.0
    assert float(logits.grad[0, ~ignored].abs().min()) > 0.0


@pytest.mark.parametrize("side", [64, 320])
def test_fillers_carry_nothing(side):
    # On a small canvas the anchors of P7, up to 1,149 px long, reach far beyond any box that one would draw around the picture.
    anchors = torch.cat(anchor_grid(side, side, base_sizes=(32, 64, 128, 256, 512), scales=(1.0, 1.26, 1.59), ratios=(0.5, 1.0, 2.0)))
    image = torch.zeros(3, side, side, dtype=torch.uint8)
    batch = collate([Sample(image, np.array([[4, 4, 30, 30]], np.float32), np.array([0]), (side, side), -1)])
    matches = match(anchors, batch.boxes_BG4, batch.labels_BG)
    assert float(matches.positives) == 0
    assert (matches.slot_BA == IGNORED).all()


def test_sums_add_over_images_and_fillers_add_nothing():
    logits, deltas = outputs(4)
    filler = sample([[4, 4, 30, 30]], [0], image_id=-1)
    together, _ = loss_of([CAT, DOG, FAR, filler], logits, deltas)
    alone = [loss_of([one], logits[i : i + 1], deltas[i : i + 1])[0] for i, one in enumerate([CAT, DOG, FAR])]
    assert float(together.classification) == pytest.approx(sum(float(one.classification) for one in alone), rel=1e-5)
    assert float(together.box) == pytest.approx(sum(float(one.box) for one in alone), rel=1e-5)
    assert float(alone[2].box) == 0.0 and float(alone[2].classification) > 0
