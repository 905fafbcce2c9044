"""A folded network is the same function, up to rounding, and detects the same."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from detector.backbone import FrozenBatchNorm
from detector.baselines import build_model
from detector.folding import ConvolutionRelu, fold_batch_norm, for_detecting, fuse_relu
from detector.model import RetinaNet
from tests.detector.toy import toy_backbones


@pytest.fixture(scope="module", autouse=True)
def _toys():
    with toy_backbones():
        yield


def network(seed: int, **parts) -> nn.Module:
    """Weights and statistics away from their start, and a class head that finds something."""
    torch.manual_seed(seed)
    net = build_model(
        **({"classes": 3, "width": 64, "base_sizes": (8, 16, 32, 64, 128), "prior": 0.03} | parts)
    ).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
        elif isinstance(module, FrozenBatchNorm):
            nn.init.uniform_(module.scale, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    if isinstance(net, RetinaNet):
        # A trained network's range: logits around the prior, offsets of a fraction of an anchor.
        with torch.no_grad():
            logits, offsets = net(pictures(1)[0])
            net.class_head.output.weight.mul_(1.5 / logits.std())
            net.box_head.output.weight.mul_(0.3 / offsets.std())
    return net


def pictures(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (2, 3, 96, 128), dtype=torch.uint8, generator=generator)
    return images, torch.tensor([[96.0, 128.0], [80.0, 100.0]])


NETWORKS = pytest.mark.parametrize(
    "parts",
    [
        {"backbone": "toy", "norm": "batch"},
        {"backbone": "toy_bottleneck", "norm": "frozen", "stride_in": "1x1"},
        {"backbone": "toy_bottleneck", "norm": "sync", "head_norm": "group"},
        {"backbone": "toy", "norm": "group"},
    ],
    ids=lambda parts: "-".join(parts.values()),
)


@NETWORKS
def test_the_folded_network_detects_the_same(parts):
    plain = network(3, **parts)
    folded = fold_batch_norm(copy.deepcopy(plain))
    left = [
        m
        for m in folded.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm | FrozenBatchNorm)
    ]
    assert not left
    images, sizes = pictures(5)
    with torch.no_grad():
        for found, expected in zip(folded(images), plain(images), strict=True):
            assert float((found - expected).abs().max()) < 1e-4 * float(expected.abs().max())
    decode = dict(score_threshold=0.05, top_per_level=1000, nms_threshold=0.5, max_detections=100)
    for one, other in zip(
        folded.detect(images, sizes, **decode), plain.detect(images, sizes, **decode), strict=True
    ):
        assert len(one.scores_N) == len(other.scores_N) > 10
        np.testing.assert_array_equal(one.labels_N, other.labels_N)
        np.testing.assert_allclose(one.boxes_N4, other.boxes_N4, atol=1e-3)
        np.testing.assert_allclose(one.scores_N, other.scores_N, atol=1e-5)


@NETWORKS
def test_the_fused_network_is_the_folded_one(parts):
    """Without a GPU its convolutions take the plain way, which is the formula that cuDNN is asked
    for.
    """
    folded = fold_batch_norm(network(3, **parts))
    fused = fuse_relu(copy.deepcopy(folded), torch.float32)
    relus = {
        name: sum(isinstance(m, nn.ReLU) for m in net.modules())
        for name, net in (("folded", folded), ("fused", fused))
    }
    joined = sum(isinstance(m, ConvolutionRelu) for m in fused.modules())
    # Four blocks of two convolutions, or of three in a bottleneck; the stem; and four in each head,
    # where no group normalisation stands between.
    expected = {"toy": 4 * 2 + 1, "toy_bottleneck": 4 * 3 + 1}[parts["backbone"]] * (
        parts["norm"] != "group"
    )
    assert joined == expected + 8 * ("head_norm" not in parts)
    assert relus["fused"] < relus["folded"]
    images, _ = pictures(5)
    with torch.no_grad():
        for found, wanted in zip(fused(images), folded(images), strict=True):
            assert float((found - wanted).abs().max()) < 1e-5 * float(wanted.abs().max())


def test_only_a_gpu_gets_the_fused_network():
    detecting = for_detecting(network(3, backbone="toy"), "cpu", amp=True)
    assert (
        not any(isinstance(m, ConvolutionRelu | nn.BatchNorm2d) for m in detecting.modules())
        and not detecting.training
    )


def test_a_bias_is_folded_too():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU()).double().eval()
    nn.init.normal_(layers[1].running_mean)
    nn.init.normal_(layers[1].bias)
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    expected = layers(x)
    assert torch.allclose(fold_batch_norm(layers)(x), expected, rtol=1e-12) and isinstance(
        layers[1], nn.Identity
    )


@pytest.mark.parametrize("architecture", ["faster_rcnn", "fcos"])
def test_a_baseline_is_folded_in_its_backbone(architecture):
    parts = {
        "architecture": architecture,
        "classes": 3,
        "backbone": "toy",
        "norm": "batch",
        "width": 64,
    }
    plain = network(4, **parts)
    folded = fold_batch_norm(copy.deepcopy(plain))
    images, _ = pictures(6)
    body = torch.rand(images.shape)
    with torch.no_grad():
        for name, level in plain.detector.backbone(body).items():
            assert torch.allclose(folded.detector.backbone(body)[name], level, rtol=1e-4, atol=1e-4)
