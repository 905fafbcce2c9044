"""The learning rate and the moving average as functions of images seen, worked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from detector.model import RetinaNet
from detector.optimizer import MovingAverage, build_optimizer, learning_rate_factor

COSINE = dict(schedule="cosine", warmup=0.1, milestones=())
STEPS = dict(schedule="steps", warmup=0.0, milestones=(2 / 3, 8 / 9))


@pytest.mark.parametrize(
    ("seen", "factor"),
    [
        (0, 0.001),
        (50, 0.001 + 0.999 * 0.5),  # half-way up the warm-up of 100 images: 0.5005
        (100, 1.0),  # the peak
        (550, 0.01 + 0.99 * 0.5),  # half-way down: cos(pi / 2) = 0 -> 0.505
        (1000, 0.01),
        (2000, 0.01),  # beyond the end
    ],
)
def test_cosine_by_hand(seen, factor):
    assert learning_rate_factor(seen, 1000, **COSINE) == pytest.approx(factor)


@pytest.mark.parametrize(("seen", "factor"), [(0, 1.0), (599, 1.0), (600, 0.1), (799, 0.1), (800, 0.01), (900, 0.01)])
def test_steps_by_hand(seen, factor):
    # The paper: 60k and 80k of 90k iterations; here of 900 images.
    assert learning_rate_factor(seen, 900, **STEPS) == pytest.approx(factor)


def test_rate_depends_on_the_share_of_images_alone():
    for share in (0.0, 0.03, 0.1, 0.4, 0.99):
        assert learning_rate_factor(share * 640, 640, **COSINE) == pytest.approx(learning_rate_factor(share * 1e6, 1e6, **COSINE))


def test_warmup_rises_and_the_rest_falls():
    values = [learning_rate_factor(seen, 1000, **COSINE) for seen in range(0, 1001, 10)]
    assert values[:11] == sorted(values[:11]) and values[10:] == sorted(values[10:], reverse=True)
    assert max(values) == 1.0 and min(values) == 0.001


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_norms_and_biases_do_not_decay(name):
    net = RetinaNet(classes=2, backbone="resnet18", width=64, head_norm="group")
    optimizer = build_optimizer(net, name=name, learning_rate=0.1, weight_decay=0.02, momentum=0.8)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for parameter_name, p in net.named_parameters():
        filters = parameter_name.endswith("weight") and p.ndim == 4
        assert decay.pop(id(p)) == (0.02 if filters else 0.0), parameter_name
    assert not decay
    assert all(group["lr"] == 0.1 for group in optimizer.param_groups)


def test_frozen_parameters_are_left_out():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[0].requires_grad_(False)
    optimizer = build_optimizer(net, name="sgd", learning_rate=0.1, weight_decay=0.0, momentum=0.9)
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {id(p) for p in net[1].parameters()}


def test_sgd_update_by_hand():
    net = nn.Linear(1, 1)
    nn.init.constant_(net.weight, 2.0)
    nn.init.constant_(net.bias, 3.0)
    optimizer = build_optimizer(net, name="sgd", learning_rate=0.1, weight_decay=0.5, momentum=0.9)
    for _ in range(2):
        net.weight.grad, net.bias.grad = torch.ones(1, 1), torch.ones(1)
        optimizer.step()
    # weight: g = 1 + 0.5 * 2 = 2 -> 2 - 0.2 = 1.8; then 0.9 * 2 + 1 + 0.5 * 1.8 = 3.7 -> 1.8 - 0.37 = 1.43. bias: 3 - 0.1 - 0.19 = 2.71.
    assert float(net.weight.detach()) == pytest.approx(1.43) and float(net.bias.detach()) == pytest.approx(2.71)


def test_average_by_hand():
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, 0.0)
    average = MovingAverage(net, images=100.0)
    nn.init.constant_(net.weight, 1.0)
    average.update(net, 10)
    # 10 images seen: the constant is 10 / 5 = 2 images, exp(-10 / 2) of the old value stays.
    assert float(average.state["weight"]) == pytest.approx(1 - math.exp(-5))
    old = average.seen = 5000.0
    nn.init.constant_(net.weight, 0.0)
    before = float(average.state["weight"])
    average.update(net, 10)
    # 5,010 seen, a fifth is above 100: exp(-10 / 100).
    assert average.seen == old + 10
    assert float(average.state["weight"]) == pytest.approx(before * math.exp(-0.1))


def test_average_does_not_depend_on_the_batch_size():
    # With the weights standing still and the average grown up, ten updates of 4 images are worth one of 40.
    results = []
    for batch in (4, 40):
        net = nn.Linear(1, 1, bias=False)
        nn.init.constant_(net.weight, 0.0)
        average = MovingAverage(net, images=100.0)
        average.seen = 10_000.0
        nn.init.constant_(net.weight, 1.0)
        for _ in range(40 // batch):
            average.update(net, batch)
        results.append(float(average.state["weight"]))
    assert results[0] == pytest.approx(results[1]) == pytest.approx(1 - math.exp(-0.4))


def test_average_takes_running_statistics_and_counters_along():
    net = nn.BatchNorm1d(2)
    average = MovingAverage(net, images=10.0)
    net.train()(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    average.update(net, 1000)
    # 1,000 images with a constant of at most 10: nothing is left of the start.
    assert torch.allclose(average.state["running_mean"], net.running_mean)
    assert int(average.state["num_batches_tracked"]) == 1
    average.state["running_mean"].zero_()
    assert float(net.running_mean.abs().sum()) > 0  # a copy, not the weights themselves
