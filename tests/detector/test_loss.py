"""The losses against formulas, derivatives and torchvision; extreme logits and offsets; who carries
no loss; what divides the sums.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import (
    complete_box_iou_loss,
    sigmoid_focal_loss,
)

from detector.anchors import BACKGROUND, IGNORED, anchor_grid, match
from detector.batch import Sample, collate
from detector.box_loss import BOX_LOSSES
from detector.boxes import decode, encode
from detector.choices import BoxLoss, ClassificationLoss, LossSettings
from detector.classification_loss import CLASSIFICATION_LOSSES
from detector.loss import (
    LossSums,
    detection_loss,
    image_weights,
    moving_average,
)
from detector.training_config import LossConfig

CLASSIFICATIONS = tuple(CLASSIFICATION_LOSSES)
BOXES = tuple(BOX_LOSSES)
ANCHORS = torch.cat(
    anchor_grid(64, 64, base_sizes=(8, 16, 32, 64, 128), scales=(1.0,), ratios=(0.5, 1.0, 2.0))
)
CLASSES = 3


def sample(boxes: list[list[float]], labels: list[int], image_id: int = 1) -> Sample:
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    return Sample(
        image,
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(labels, np.int64),
        (64, 64),
        image_id,
    )


def outputs(images: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random logits (B, A, K) around 0 and offsets (B, A, 4)."""
    generator = torch.Generator().manual_seed(seed)
    shape = (images, len(ANCHORS))
    return 3 * torch.randn((*shape, CLASSES), generator=generator), 0.3 * torch.randn(
        (*shape, 4), generator=generator
    )


def loss_of(
    samples: list[Sample], logits: torch.Tensor, deltas: torch.Tensor, **changed
) -> tuple[LossSums, torch.Tensor]:
    batch = collate(samples)
    matches = match(ANCHORS, batch.boxes_BG4, batch.labels_BG)
    sums = detection_loss(
        [logits],
        [deltas],
        ANCHORS,
        batch.boxes_BG4,
        batch.labels_BG,
        matches,
        settings=LossSettings(**changed),
    )
    return sums, matches


CAT, DOG, FAR = (
    sample([[4, 4, 30, 30]], [0]),
    sample([[10, 20, 60, 44], [40, 2, 62, 22]], [2, 1]),
    sample([], []),
)


def one_hot_of(samples: list[Sample], slot_BA: torch.Tensor) -> torch.Tensor:
    batch = collate(samples)
    return (
        F.one_hot(batch.labels_BG.gather(1, slot_BA.clamp(min=0)).clamp(min=0), CLASSES)
        * (slot_BA >= 0)[..., None]
    )


@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, 0.25), (0.5, 0.6)])
def test_sum_and_gradient_are_those_of_torchvision_on_one_hot_targets(gamma, alpha):
    logits, deltas = (x.double() for x in outputs(2))
    logits.requires_grad_()
    sums, slot_BA = loss_of([CAT, DOG], logits, deltas, gamma=gamma, alpha=alpha)
    sums.classification_B.sum().backward()
    theirs = logits.detach().clone().requires_grad_()
    expected = (
        sigmoid_focal_loss(
            theirs, one_hot_of([CAT, DOG], slot_BA).double(), alpha=alpha, gamma=gamma
        )
        * (slot_BA != IGNORED)[..., None]
    )
    expected.sum().backward()
    assert (slot_BA >= 0).any() and (slot_BA == IGNORED).any() and (slot_BA == BACKGROUND).any()
    assert torch.allclose(sums.classification_B, expected.sum(dim=(1, 2)), rtol=1e-6)
    assert torch.allclose(logits.grad, theirs.grad, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("kind", ["balanced_cross_entropy", "cross_entropy"])
def test_cross_entropies_are_pytorchs_and_have_no_gamma(kind):
    logits, deltas = (x.double() for x in outputs(2))
    logits.requires_grad_()
    sums, slot_BA = loss_of([CAT, DOG], logits, deltas, classification=kind, gamma=3.0, alpha=0.3)
    sums.classification_B.sum().backward()
    theirs, target = (
        logits.detach().clone().requires_grad_(),
        one_hot_of([CAT, DOG], slot_BA).double(),
    )
    weight = (
        0.3 * target + 0.7 * (1 - target)
        if kind == "balanced_cross_entropy"
        else torch.ones_like(target)
    ) * (slot_BA != IGNORED)[..., None]
    expected = F.binary_cross_entropy_with_logits(theirs, target, weight=weight, reduction="none")
    expected.sum().backward()
    assert torch.allclose(sums.classification_B, expected.sum(dim=(1, 2)), rtol=1e-6)
    assert torch.allclose(logits.grad, theirs.grad, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("classification", CLASSIFICATIONS)
def test_the_gradient_of_the_whole_loss_is_its_slope(classification, box):
    """Finite differences in float64, over two images of six anchors of which one is ignored and one
    background.
    """
    generator = torch.Generator().manual_seed(1)
    anchors = torch.tensor(
        [
            [0.0, 0, 20, 10],
            [4, 2, 24, 14],
            [30, 30, 40, 60],
            [0, 0, 64, 64],
            [8, 8, 16, 16],
            [50, 50, 60, 60],
        ]
    )
    boxes = torch.tensor([[[2.0, 1, 25, 12], [29, 33, 42, 58]], [[1, 3, 60, 62], [0, 0, 0, 0]]])
    slots = torch.tensor(
        [
            [0, 0, 1, IGNORED, BACKGROUND, BACKGROUND],
            [BACKGROUND, IGNORED, BACKGROUND, 0, BACKGROUND, IGNORED],
        ]
    )
    labels = torch.tensor([[1, 0], [1, -1]])
    logits = (3 * torch.randn(2, 6, 2, generator=generator)).double().requires_grad_()
    deltas = (0.2 * torch.randn(2, 6, 4, generator=generator)).double().requires_grad_()

    def both(logits: torch.Tensor, deltas: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(
            detection_loss(
                [logits],
                [deltas],
                anchors,
                boxes,
                labels,
                slots,
                settings=LossSettings(classification=classification, box=box),
            )
        )

    if box != "ciou":
        assert torch.autograd.gradcheck(both, (logits, deltas))
        return
    # The weight of the aspect term is a constant of the gradient (section 3 of its paper), which
    # finite differences would not respect.
    both(logits, deltas)[1].sum().backward()
    image, anchor = torch.nonzero(slots >= 0, as_tuple=True)
    picked = deltas.detach().clone().requires_grad_()
    theirs = complete_box_iou_loss(
        decode(picked[image, anchor], anchors[anchor].double()),
        boxes[image, slots[image, anchor]].double(),
        eps=1e-12,
    )
    theirs.sum().backward()
    assert torch.allclose(deltas.grad, picked.grad, rtol=1e-6, atol=1e-12)


def test_extreme_logits_keep_the_whole_loss_finite():
    logits, deltas = outputs(2)
    for classification in CLASSIFICATIONS:
        extreme = (logits.sign() * 1e4).requires_grad_()
        sums, _ = loss_of([CAT, DOG], extreme, deltas, gamma=0.5, classification=classification)
        sums.classification_B.sum().backward()
        assert torch.isfinite(sums.classification_B).all() and torch.isfinite(extreme.grad).all()


def test_half_precision_outputs_are_summed_in_float32():
    logits, deltas = (x.bfloat16() for x in outputs(2))
    half, _ = loss_of([CAT, DOG], logits, deltas)
    full, _ = loss_of([CAT, DOG], logits.float(), deltas.float())
    assert half.classification_B.dtype == half.box_B.dtype == torch.float32
    assert torch.equal(half.classification_B, full.classification_B) and torch.equal(
        half.box_B, full.box_B
    )


def test_offset_losses_by_hand():
    anchors = torch.tensor([[0.0, 0, 10, 10], [100, 100, 110, 110]])
    boxes, labels = torch.tensor([[[1.0, 0, 11, 10]]]), torch.tensor([[0]])
    slots = torch.tensor([[0, BACKGROUND]])
    logits, deltas = torch.zeros(1, 2, 1), torch.tensor([[[0.1, 0.5, 0.0, -0.2], [9.0, 9, 9, 9]]])
    # Target (0.1, 0, 0, 0). beta 0.4: |0| -> 0; |0.5| -> 0.5 - 0.2 = 0.3; 0; |0.2| -> 0.5 * 0.04 /
    # 0.4 = 0.05. The background has no box loss.
    inputs = [logits], [deltas], anchors, boxes, labels, slots
    sums = detection_loss(*inputs, settings=LossSettings(beta=0.4))
    assert float(sums.box_B) == pytest.approx(0.35)
    # One positive and one negative logit at 0: (0.0625 + 0.1875) log 2.
    assert float(sums.classification_B) == pytest.approx(0.25 * math.log(2))
    sums = detection_loss(*inputs, settings=LossSettings(box="l1"))
    assert float(sums.box_B) == pytest.approx(0.7)


@pytest.mark.parametrize("kind", BOXES)
def test_the_right_box_has_no_loss(kind):
    batch = collate([CAT, DOG])
    slot_BA = match(ANCHORS, batch.boxes_BG4, batch.labels_BG)
    logits, _ = outputs(2)
    targets = torch.stack(
        [
            encode(boxes[slots.clamp(min=0)], ANCHORS)
            for boxes, slots in zip(batch.boxes_BG4, slot_BA, strict=True)
        ]
    )
    sums, _ = loss_of([CAT, DOG], logits, targets.nan_to_num(), box=kind)
    # Offsets are exact; a decoded box is off by roundings of 64 px.
    assert float(sums.box_B.abs().max()) <= (0.0 if "l1" in kind else 1e-4)


@given(
    st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=6, max_size=6),
    st.floats(0, 10),
    st.floats(0.01, 0.99),
    st.sampled_from(CLASSIFICATIONS),
)
@settings(max_examples=150, deadline=None)
def test_classification_losses_are_finite_for_any_logits(values, gamma, alpha, kind):
    logits = torch.tensor(values).reshape(1, 3, 2).requires_grad_()
    anchors, boxes = torch.tensor([[0.0, 0, 10, 10]] * 3), torch.tensor([[[1.0, 0, 11, 10]]])
    slots = torch.tensor([[0, BACKGROUND, IGNORED]])
    sums = detection_loss(
        [logits],
        [torch.zeros(1, 3, 4)],
        anchors,
        boxes,
        torch.tensor([[1]]),
        slots,
        settings=LossSettings(classification=kind, gamma=gamma, alpha=alpha),
    )
    sums.classification_B.sum().backward()
    assert torch.isfinite(sums.classification_B).all() and torch.isfinite(logits.grad).all()
    assert float(logits.grad[0, 2].abs().max()) == 0.0


@given(
    st.integers(0, 2**31),
    st.permutations(range(5)),
    st.sampled_from(CLASSIFICATIONS),
    st.sampled_from(BOXES),
)
@settings(max_examples=40, deadline=None)
def test_the_order_of_the_boxes_does_not_matter(seed, order, classification, box):
    random = np.random.default_rng(seed)
    corners, sides = random.uniform(0, 40, (5, 2)), random.uniform(4, 24, (5, 2))
    boxes, labels = (
        np.concatenate([corners, corners + sides], axis=1),
        random.integers(-1, CLASSES, 5),
    )
    logits, deltas = outputs(1, seed)
    kinds = dict(classification=classification, box=box)
    one, _ = loss_of([sample(boxes.tolist(), labels.tolist())], logits, deltas, **kinds)
    two, _ = loss_of(
        [sample(boxes[order].tolist(), labels[order].tolist())], logits, deltas, **kinds
    )
    assert torch.allclose(one.classification_B, two.classification_B, rtol=1e-5)
    assert torch.allclose(one.box_B, two.box_B, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("classification", CLASSIFICATIONS)
def test_ignored_anchors_carry_nothing(classification, box):
    logits, deltas = outputs(1)
    crowd = sample([[0, 0, 40, 64], [50, 10, 62, 30]], [-1, 1])
    logits.requires_grad_()
    deltas.requires_grad_()
    sums, slot_BA = loss_of([crowd], logits, deltas, classification=classification, box=box)
    (sums.classification_B + sums.box_B).sum().backward()
    ignored = slot_BA[0] == IGNORED
    assert ignored.any()
    assert (
        float(logits.grad[0, ignored].abs().max()) == 0.0
        and float(deltas.grad[0, ignored].abs().max()) == 0.0
    )
    assert float(logits.grad[0, ~ignored].abs().min()) > 0.0
    assert (deltas.grad[0, slot_BA[0] >= 0] != 0).any() and float(
        deltas.grad[0, slot_BA[0] < 0].abs().max()
    ) == 0.0


@pytest.mark.parametrize("side", [64, 320])
def test_fillers_carry_nothing(side):
    # On a small canvas the anchors of P7, up to 1,149 px long, reach far beyond any box that one
    # would draw around the picture.
    anchors = torch.cat(
        anchor_grid(
            side,
            side,
            base_sizes=(32, 64, 128, 256, 512),
            scales=(1.0, 1.26, 1.59),
            ratios=(0.5, 1.0, 2.0),
        )
    )
    image = torch.zeros(3, side, side, dtype=torch.uint8)
    batch = collate(
        [Sample(image, np.array([[4, 4, 30, 30]], np.float32), np.array([0]), (side, side), -1)]
    )
    matches = match(anchors, batch.boxes_BG4, batch.labels_BG)
    assert int((matches >= 0).sum()) == 0
    assert (matches == IGNORED).all()


def test_each_image_has_its_own_sums_and_fillers_have_none():
    logits, deltas = outputs(4)
    filler = sample([[4, 4, 30, 30]], [0], image_id=-1)
    together, _ = loss_of([CAT, DOG, FAR, filler], logits, deltas)
    alone = [
        loss_of([one], logits[i : i + 1], deltas[i : i + 1])[0]
        for i, one in enumerate([CAT, DOG, FAR])
    ]
    assert together.classification_B.tolist() == pytest.approx(
        [*(float(one.classification_B) for one in alone), 0.0], rel=1e-5
    )
    assert together.box_B.tolist() == pytest.approx(
        [*(float(one.box_B) for one in alone), 0.0], rel=1e-5
    )
    assert float(alone[2].box_B) == 0.0 and float(alone[2].classification_B) > 0


def weights(
    normalizer: str, positives: list[float], images: int, average: float = 50.0
) -> list[float]:
    own = torch.tensor(positives)
    totals = dict(
        positives=own.sum(), images=torch.tensor(float(images)), average=torch.tensor(average)
    )
    return image_weights(own, **totals, normalizer=normalizer).tolist()


def test_image_weights_by_hand():
    assert weights("batch", [3.0, 0.0, 7.0], 3) == pytest.approx([0.1] * 3)
    assert weights("moving_average", [3.0, 0.0, 7.0], 3) == pytest.approx([0.02] * 3)
    # Own positives times three images; the one without objects is divided by one and three.
    assert weights("image", [3.0, 0.0, 7.0], 3) == pytest.approx([1 / 9, 1 / 3, 1 / 21])
    # Nothing but fillers, or no object at all.
    assert weights("image", [0.0], 0) == weights("batch", [0.0], 1) == [1.0]


def test_the_moving_average_by_hand():
    # 0.9 * 100 + 0.1 * 40 = 94; a batch without objects counts as one: 0.9 * 94 + 0.1 = 84.7.
    assert float(moving_average(100.0, torch.tensor(40.0))) == pytest.approx(94.0)
    assert float(moving_average(94.0, torch.tensor(0.0))) == pytest.approx(84.7)


def test_the_normalizer_image_gives_torchvisions_loss():
    samples = [CAT, DOG, FAR, sample([[2, 30, 20, 62], [30, 4, 60, 60]], [1, 1])]
    logits, deltas = outputs(4)
    sums, slot_BA = loss_of(samples, logits, deltas, box="l1")
    positives_B = (slot_BA >= 0).sum(dim=1).float()
    totals = dict(positives=positives_B.sum(), images=torch.tensor(4.0), average=torch.tensor(1.0))
    weights_B = image_weights(positives_B, **totals, normalizer="image")

    targets = [
        {"boxes": torch.from_numpy(s.boxes_N4), "labels": torch.from_numpy(s.labels_N)}
        for s in samples
    ]
    # The two count background and ignored anchors alike: -1 and -2.
    matched = list(slot_BA)
    head = RetinaNetHead(in_channels=8, num_anchors=3, num_classes=CLASSES)
    theirs = head.compute_loss(
        targets, {"cls_logits": logits, "bbox_regression": deltas}, [ANCHORS] * 4, matched
    )
    assert len(set(positives_B.tolist())) > 2
    assert float((weights_B * sums.classification_B).sum()) == pytest.approx(
        float(theirs["classification"]), rel=1e-5
    )
    assert float((weights_B * sums.box_B).sum()) == pytest.approx(
        float(theirs["bbox_regression"]), rel=1e-5
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"classification": "cross_entropy", "gamma": 3.0},
            (
                "loss.gamma 3: .* loss.classification is cross_entropy; leave it at 2, or set .* to"
                " focal"
            ),
        ),
        ({"classification": "balanced_cross_entropy", "gamma": 0.0}, "loss.gamma 0: does nothing"),
        ({"classification": "cross_entropy", "alpha": 0.5}, "loss.alpha 0.5: does nothing"),
        (
            {"box": "giou", "beta": 1.0},
            "loss.beta 1: .* loss.box is giou; leave it at 0.1111, or set loss.box to smooth_l1",
        ),
        ({"box": "huber"}, "smooth_l1"),
        ({"normalizer": "none"}, "moving_average"),
    ],
)
def test_settings_without_effect_are_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        LossConfig(**fields)


def test_the_code_has_the_losses_of_the_configuration():
    assert set(CLASSIFICATION_LOSSES) == set(get_args(ClassificationLoss))
    assert set(BOX_LOSSES) == set(get_args(BoxLoss))
    # The same fields with the same defaults.
    assert LossConfig().model_dump() == asdict(LossSettings())
    # What --help prints explains every choice.
    for field, choices in (("classification", ClassificationLoss), ("box", BoxLoss)):
        description = LossConfig.model_fields[field].description or ""
        assert set(get_args(choices)) <= set(re.findall(r"\w+", description))


def test_settings_with_an_effect_are_accepted():
    assert LossConfig(classification="balanced_cross_entropy", alpha=0.5, box="l1").gamma == 2.0
    again = LossConfig(classification="cross_entropy", box="ciou", normalizer="moving_average")
    assert LossConfig.model_validate(again.model_dump(mode="json")) == again


@pytest.mark.parametrize("classification", CLASSIFICATIONS)
def test_levels_one_by_one_are_the_whole(classification):
    logits, deltas = outputs(3)
    whole, matches = loss_of([CAT, DOG, FAR], logits, deltas, classification=classification)
    batch = collate([CAT, DOG, FAR])
    sizes = [len(ANCHORS) - 100, 90, 10]
    levels = logits.split(sizes, dim=1), deltas.split(sizes, dim=1)
    sums = detection_loss(
        *levels,
        ANCHORS,
        batch.boxes_BG4,
        batch.labels_BG,
        matches,
        settings=LossSettings(classification=classification),
    )
    for one, other in zip(sums, whole, strict=True):
        assert torch.allclose(one, other, rtol=1e-5)
