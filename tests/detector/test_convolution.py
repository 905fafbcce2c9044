"""The weight gradient by products is the convolution's own, whatever the shape."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from detector import convolution
from detector.convolution import Convolution, _ProductGradient, use_products
from detector.model import RetinaNet


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("size", [(7, 5), (1, 4), (3, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_the_convolutions(kernel, size, bias):
    generator = torch.Generator().manual_seed(kernel)
    x = (
        torch.randn(2, 6, *size, generator=generator, dtype=torch.float64)
        .to(memory_format=torch.channels_last)
        .requires_grad_()
    )
    weight = torch.randn(
        4, 6, kernel, kernel, generator=generator, dtype=torch.float64
    ).requires_grad_()
    inputs = [x, weight] + (
        [torch.randn(4, generator=generator, dtype=torch.float64).requires_grad_()] if bias else []
    )
    outer = torch.randn(2, 4, *size, generator=generator, dtype=torch.float64)
    found = _ProductGradient.apply(x, weight, inputs[2] if bias else None)
    expected = torch.conv2d(*inputs, padding=kernel // 2)
    assert torch.allclose(found, expected, rtol=1e-12)
    for one, other in zip(
        torch.autograd.grad(found, inputs, outer),
        torch.autograd.grad(expected, inputs, outer),
        strict=True,
    ):
        assert one.shape == other.shape and torch.allclose(one, other, rtol=1e-10, atol=1e-12)


def test_in_float32_it_is_as_near_to_float64_as_the_convolution():
    generator = torch.Generator().manual_seed(0)
    x, outer = (
        torch.randn(2, 64, 24, 20, generator=generator).to(memory_format=torch.channels_last)
        for _ in range(2)
    )
    exact = nn.grad.conv2d_weight(x.double(), (64, 64, 3, 3), outer.double(), padding=1)
    ours = (convolution._weight_gradient(x, outer, 3) - exact).abs().max()
    theirs = (nn.grad.conv2d_weight(x, (64, 64, 3, 3), outer, padding=1) - exact).abs().max()
    # Sums of 960 products of unit size: 2^-24 times their square root times a few.
    assert float(ours) < 2 * float(theirs) and float(ours) < 1e-4


@pytest.mark.parametrize("slow", [True, False])
def test_products_are_used_where_they_are_faster_and_change_no_name(monkeypatch, slow):
    monkeypatch.setattr(convolution, "SLOW_WEIGHT_GRADIENT", slow)
    layers = nn.ModuleDict(
        {
            "same": nn.Conv2d(4, 4, 3, padding=1),
            "one": nn.Conv2d(4, 4, 1),
            "strided": nn.Conv2d(4, 4, 3, 2, 1),
        }
    )
    layers["grouped"], layers["smaller"] = (
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.Conv2d(4, 4, 3),
    )
    names = list(layers.state_dict())
    use_products(layers)
    assert [name for name, layer in layers.items() if isinstance(layer, Convolution)] == (
        ["same", "one"] if slow else []
    )
    assert list(layers.state_dict()) == names


def test_a_network_has_the_gradients_of_plain_convolutions(monkeypatch):
    found = []
    for slow in (True, False):
        monkeypatch.setattr(convolution, "SLOW_WEIGHT_GRADIENT", slow)
        torch.manual_seed(2)
        network = RetinaNet(classes=2, backbone="resnet18", width=64, norm="frozen").to(
            memory_format=torch.channels_last
        )
        images = torch.randint(
            0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
        )
        logits, offsets = network(images)
        (logits.square().mean() + offsets.square().mean()).backward()
        found.append({name: p.grad for name, p in network.named_parameters()})
    assert len(found[0]) > 50
    for name, gradient in found[1].items():
        assert torch.allclose(
            found[0][name], gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max())
        ), name
