"""One training step: it learns, it divides by the positives of all ranks, and it refuses to update on what is not finite."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from detector.batch import Batch, Sample, collate
from detector.model import RetinaNet
from detector.optimizer import build_optimizer
from detector.step import NonFiniteLoss, StepReport, forward_loss, train_step

LOSS = dict(gamma=2.0, alpha=0.25, beta=1 / 9)


def net(**changed) -> RetinaNet:
    torch.manual_seed(3)
    # Small anchors, so that the objects of a 64 x 96 canvas have some.
    settings = {"classes": 2, "backbone": "resnet18", "width": 64, "head_norm": "group", "norm": "frozen", "base_sizes": (8, 16, 32, 64, 128)}
    return RetinaNet(**(settings | changed))


def scene(image_id: int, *boxes: tuple[int, int, int, int]) -> Sample:
    """Grey noise with a bright rectangle for each box; the label is 0 for a wide one and 1 for a tall one."""
    random = np.random.default_rng(abs(image_id))
    pixels = random.integers(80, 120, (64, 96, 3), dtype=np.uint8)
    for x1, y1, x2, y2 in boxes:
        pixels[y1:y2, x1:x2] = 230
    labels = [int(y2 - y1 > x2 - x1) for x1, y1, x2, y2 in boxes]
    return Sample(
        torch.from_numpy(pixels).permute(2, 0, 1), np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64), (64, 96), image_id
    )


SCENES = [scene(11, (4, 6, 36, 20)), scene(12, (30, 10, 44, 50), (2, 40, 26, 52)), scene(13), scene(14, (20, 20, 44, 44))]


def step(network: RetinaNet, batch: Batch, optimizer: torch.optim.Optimizer | None = None, **changed) -> StepReport:
    optimizer = optimizer or torch.optim.SGD(network.parameters(), lr=0.0)
    settings = dict(learning_rate=0.0, clip_norm=1e9, box_weight=1.0, amp_dtype=None, **LOSS)
    return train_step(network, optimizer, batch, torch.cat(network.anchors(64, 96)), **(settings | changed))


def gradients(network: RetinaNet) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in network.named_parameters()}


def test_a_few_steps_learn_two_pictures():
    network = net(norm="batch").train()
    optimizer = build_optimizer(network, name="adamw", learning_rate=1e-3, weight_decay=0.0, momentum=0.9)
    batch = collate(SCENES[:2])
    reports = [step(network, batch, optimizer, learning_rate=1e-3, clip_norm=10.0) for _ in range(15)]
    assert reports[-1].classification < 0.5 * reports[0].classification
    assert reports[-1].box < 0.7 * reports[0].box
    assert all(report.positives == reports[0].positives > 0 for report in reports)


def test_the_report_is_the_sum_over_the_positives():
    network, batch = net(), collate(SCENES)
    classification, box, positives = forward_loss(network, batch, torch.cat(network.anchors(64, 96)), amp_dtype=None, **LOSS)
    report = step(network, batch)
    assert report.positives == float(positives) > 4
    assert report.classification == pytest.approx(float((classification / positives).detach()))
    assert report.box == pytest.approx(float((box / positives).detach()))
    squares = sum(float(gradient.square().sum()) for gradient in gradients(network).values())
    assert report.gradient_norm == pytest.approx(math.sqrt(squares), rel=1e-4)


def test_the_loss_is_classification_plus_weighted_box():
    batch = collate(SCENES)
    found = []
    for box_weight in (1e-9, 1.0, 3.0):
        network = net()
        step(network, batch, box_weight=box_weight)
        found.append(gradients(network))
    name = "box_head.output.weight"
    # The classes do not see the box weight; three times the weight is three times the gradient.
    assert torch.allclose(found[0]["class_head.output.weight"], found[2]["class_head.output.weight"])
    assert torch.allclose(found[2][name], 3 * found[1][name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("cut", [[[0, 1], [2, 3]], [[1], [0, 2, 3]], [[0, 1, 3], [2]]])
def test_ranks_together_have_the_gradient_of_the_whole_batch(cut):
    # DDP takes the mean over ranks. A rank with few or no objects must not weigh more than its images, so all divide by the positives of all.
    whole = net()
    report = step(whole, collate(SCENES))
    shares = [collate([SCENES[i] for i in rank]) for rank in cut]
    anchors = torch.cat(whole.anchors(64, 96))
    with torch.no_grad():
        totals = [torch.stack(forward_loss(whole, share, anchors, amp_dtype=None, **LOSS)) for share in shares]
    mean: dict[str, torch.Tensor] = {}
    for rank, share in enumerate(shares):
        network, other = net(), totals[1 - rank]
        its = step(network, share, ranks=2, sum_over_ranks=lambda own, other=other: own + other)
        assert its.positives == report.positives
        assert its.classification == pytest.approx(report.classification, rel=1e-5) and its.box == pytest.approx(report.box, rel=1e-5)
        for name, gradient in gradients(network).items():
            mean[name] = mean.get(name, 0) + gradient / 2
    for name, gradient in gradients(whole).items():
        assert torch.allclose(mean[name], gradient, rtol=1e-3, atol=1e-6), name


def test_fillers_change_nothing():
    plain, padded = net(), net()
    fillers = [scene(-1, (4, 6, 36, 20)), scene(-1)]
    one, two = step(plain, collate(SCENES)), step(padded, collate(SCENES + fillers))
    assert (one.positives, pytest.approx(one.classification, rel=1e-5)) == (two.positives, two.classification)
    theirs = gradients(padded)
    for name, gradient in gradients(plain).items():
        assert torch.allclose(gradient, theirs[name], rtol=1e-3, atol=1e-6), name


def test_a_batch_without_objects_divides_by_one():
    network, batch = net(), collate([SCENES[2]])
    classification, _, positives = forward_loss(network, batch, torch.cat(network.anchors(64, 96)), amp_dtype=None, **LOSS)
    report = step(network, batch)
    assert float(positives) == report.positives == 0 and report.box == 0
    assert report.classification == pytest.approx(float(classification.detach()))


def test_gradients_do_not_pile_up():
    network, batch = net(), collate(SCENES)
    one, two = step(network, batch), step(network, batch)
    assert two.gradient_norm == pytest.approx(one.gradient_norm, rel=1e-4)


def test_clipping_limits_the_update():
    network = net()
    before = copy.deepcopy(dict(network.named_parameters()))
    report = step(network, collate(SCENES), torch.optim.SGD(network.parameters(), lr=9.0), learning_rate=0.5, clip_norm=0.01)
    moved = math.sqrt(sum(float((p.detach() - before[name].detach()).square().sum()) for name, p in network.named_parameters()))
    # The gradient is cut to 0.01 and multiplied by the rate that the call gives, not the optimiser's.
    assert report.gradient_norm > 0.01
    assert moved == pytest.approx(0.5 * 0.01, rel=1e-2)


def poison_weights(network: RetinaNet) -> None:
    network.class_head.output.bias.data[0] = float("inf")


def poison_gradient(network: RetinaNet) -> None:
    network.pyramid.p7.weight.register_hook(lambda gradient: gradient * float("nan"))


def nothing(network: RetinaNet) -> None:
    pass


@pytest.mark.parametrize(
    ("poison", "sum_over_ranks", "blame"),
    [
        (poison_weights, lambda totals: totals, "this rank's own loss"),
        (poison_gradient, lambda totals: totals, "the gradient"),
        (nothing, lambda totals: totals * torch.tensor([float("nan"), 1.0, 1.0]), "the loss of another rank"),
    ],
    ids=["loss", "gradient", "other rank"],
)
def test_what_is_not_finite_stops_before_the_update(poison, sum_over_ranks, blame):
    network = net()
    optimizer = build_optimizer(network, name="adamw", learning_rate=0.1, weight_decay=0.1, momentum=0.9)
    step(network, collate(SCENES), optimizer, learning_rate=1e-4)
    poison(network)
    before, moments = copy.deepcopy(network.state_dict()), copy.deepcopy(optimizer.state_dict()["state"])
    with pytest.raises(NonFiniteLoss, match=blame) as caught:
        step(network, collate([scene(77, (4, 6, 36, 20)), scene(4321)]), optimizer, learning_rate=0.1, sum_over_ranks=sum_over_ranks)
    assert "[77, 4321]" in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    after = optimizer.state_dict()["state"]
    assert all(torch.equal(after[k][name], value) for k, state in moments.items() for name, value in state.items())


def test_bfloat16_is_close_to_float32():
    full, half = step(net(), collate(SCENES)), step(net(), collate(SCENES), amp_dtype=torch.bfloat16)
    # 8 bits of mantissa: 0.4 % a rounding.
    assert half.classification == pytest.approx(full.classification, rel=0.05)
    assert half.box == pytest.approx(full.box, rel=0.05)
    assert half.positives == full.positives
