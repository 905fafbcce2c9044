"""The learning rate and the moving average as functions of images seen, worked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from detector.model import RetinaNet
from detector.optimizer import MovingAverage, build_optimizer, learning_rate_factor
from detector.training_config import OptimizerConfig

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


@pytest.mark.parametrize(
    ("seen", "factor"), [(0, 1.0), (599, 1.0), (600, 0.1), (799, 0.1), (800, 0.01), (900, 0.01)]
)
def test_steps_by_hand(seen, factor):
    # The paper: 60k and 80k of 90k iterations; here of 900 images.
    assert learning_rate_factor(seen, 900, **STEPS) == pytest.approx(factor)


def test_constant_keeps_the_peak():
    # Half-way up the warm-up of 100 images, then the peak until the end and beyond.
    values = [
        learning_rate_factor(seen, 1000, schedule="constant", warmup=0.1, milestones=(0.5,))
        for seen in (50, 100, 700, 1000, 2000)
    ]
    assert values == pytest.approx([0.5005, 1, 1, 1, 1])


@pytest.mark.parametrize(
    "milestones", [(0.9, 0.5), (0.5, 0.5), (0.0, 0.5), (0.5, 1.0), (60_000, 80_000)]
)
def test_milestones_are_growing_shares(milestones):
    with pytest.raises(
        ValueError, match="optimizer.milestones .* must grow, each above 0 and below 1"
    ):
        OptimizerConfig(milestones=milestones)


@pytest.mark.parametrize("schedule", [COSINE, STEPS])
def test_two_batch_sizes_pass_through_the_same_rates(schedule):
    small, large = (
        {seen: learning_rate_factor(seen, 960, **schedule) for seen in range(0, 960, batch)}
        for batch in (8, 64)
    )
    assert len(large) == 15 and large == {seen: small[seen] for seen in large}


def test_rate_depends_on_the_share_of_images_alone():
    for share in (0.0, 0.03, 0.1, 0.4, 0.99):
        assert learning_rate_factor(share * 640, 640, **COSINE) == pytest.approx(
            learning_rate_factor(share * 1e6, 1e6, **COSINE)
        )


def test_warmup_rises_and_the_rest_falls():
    values = [learning_rate_factor(seen, 1000, **COSINE) for seen in range(0, 1001, 10)]
    assert values[:11] == sorted(values[:11]) and values[10:] == sorted(values[10:], reverse=True)
    assert max(values) == 1.0 and min(values) == 0.001


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_norms_and_biases_do_not_decay(name):
    net = RetinaNet(classes=2, backbone="resnet18", width=64, head_norm="group")
    optimizer = build_optimizer(net, name=name, learning_rate=0.1, weight_decay=0.02, momentum=0.8)
    decay = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    for parameter_name, p in net.named_parameters():
        filters = parameter_name.endswith("weight") and p.ndim == 4
        assert decay.pop(id(p)) == (0.02 if filters else 0.0), parameter_name
    assert not decay
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.1]


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_frozen_parameters_have_no_optimizer_state_and_do_not_change(name):
    net = nn.Sequential(nn.Linear(2, 2), nn.GroupNorm(1, 2), nn.Linear(2, 2))
    net[0].requires_grad_(False)
    optimizer = build_optimizer(net, name=name, learning_rate=0.1, weight_decay=0.5, momentum=0.9)
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {
        id(p) for p in (*net[1].parameters(), *net[2].parameters())
    }
    before = [p.clone() for p in net.parameters()]
    net(torch.tensor([[1.0, 2.0], [5.0, 3.0]])).square().sum().backward()
    optimizer.step()
    assert [torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True)] == [
        True,
        True,
        False,
        False,
        False,
        False,
    ]


def test_a_network_with_nothing_to_train_is_refused():
    with pytest.raises(ValueError, match="Linear: all 2 parameters are frozen"):
        build_optimizer(
            nn.Linear(1, 1).requires_grad_(False),
            name="sgd",
            learning_rate=0.1,
            weight_decay=0.0,
            momentum=0.9,
        )


@pytest.mark.parametrize("name", ["adamw", "sgd"])
@pytest.mark.parametrize(("device", "fused"), [("cpu", True), ("meta", None)])
def test_fused_where_the_device_has_it(name, device, fused):
    net = nn.Linear(2, 2, device=device)
    optimizer = build_optimizer(net, name=name, learning_rate=0.1, weight_decay=0.1, momentum=0.9)
    assert optimizer.defaults["fused"] is fused
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()  # torch refuses here, not earlier, where a fused kernel is missing


def test_adamw_update_by_hand():
    net = nn.Linear(1, 1)
    nn.init.constant_(net.weight, 2.0)
    nn.init.constant_(net.bias, 3.0)
    optimizer = build_optimizer(
        net, name="adamw", learning_rate=0.1, weight_decay=0.5, momentum=0.9
    )
    for _ in range(2):
        net.weight.grad, net.bias.grad = torch.full((1, 1), 7.0), torch.full((1,), -7.0)
        optimizer.step()
    # A steady gradient moves by the rate: 0.1 a step. The weight first shrinks by 0.1 * 0.5: 2 ->
    # 1.9 - 0.1 = 1.8 -> 1.71 - 0.1 = 1.61; the bias not.
    assert float(net.weight.detach()) == pytest.approx(1.61, rel=1e-5) and float(
        net.bias.detach()
    ) == pytest.approx(3.2, rel=1e-5)


def test_sgd_update_by_hand():
    net = nn.Linear(1, 1)
    nn.init.constant_(net.weight, 2.0)
    nn.init.constant_(net.bias, 3.0)
    optimizer = build_optimizer(net, name="sgd", learning_rate=0.1, weight_decay=0.5, momentum=0.9)
    for _ in range(2):
        net.weight.grad, net.bias.grad = torch.ones(1, 1), torch.ones(1)
        optimizer.step()
    # weight: g = 1 + 0.5 * 2 = 2 -> 2 - 0.2 = 1.8; then 0.9 * 2 + 1 + 0.5 * 1.8 = 3.7 -> 1.8 - 0.37
    # = 1.43. bias: 3 - 0.1 - 0.19 = 2.71.
    assert float(net.weight.detach()) == pytest.approx(1.43) and float(
        net.bias.detach()
    ) == pytest.approx(2.71)


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
    # With the weights standing still and the average grown up, ten updates of 4 images are worth
    # one of 40.
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


def test_the_average_includes_running_statistics_and_counters():
    net = nn.BatchNorm1d(2)
    average = MovingAverage(net, images=10.0)
    net.train()(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    average.update(net, 1000)
    # 1,000 images with a constant of at most 10: nothing is left of the start.
    assert torch.allclose(average.state["running_mean"], net.running_mean)
    assert int(average.state["num_batches_tracked"]) == 1
    average.state["running_mean"].zero_()
    assert float(net.running_mean.abs().sum()) > 0  # a copy, not the weights themselves
