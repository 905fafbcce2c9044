"""Parameters and operations: a small network by hand, and the field's published sizes by arithmetic
alone.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from detector.model import RetinaNet
from tests.benchmarks.flops import Flops, convolution_flops

G = 1e9


def net(**changed) -> RetinaNet:
    with torch.device("meta"):
        # The counted networks take P6 from P5 and keep stem and layer1 fixed, as torchvision's
        # first version and the usual fine-tuning do.
        return RetinaNet(**{"norm": "frozen", "frozen_stages": 2, "p6_from": "p5"} | changed)


def test_operations_by_hand():
    with torch.device("meta"):
        fixed, grouped, last = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=4),
            nn.Conv2d(8, 2, 1),
        )
    fixed.requires_grad_(False)
    # 8 x 10 px: 80 places x 8 channels x 27 products; 20 x 8 x (2 x 9); 20 x 2 x 8. Two operations
    # each.
    first, second, third = 2 * 80 * 8 * 27, 2 * 20 * 8 * 18, 2 * 20 * 2 * 8
    # Fixed: forward only. The second has a weight gradient but nothing trained below it. The third
    # has both gradients.
    assert convolution_flops(nn.Sequential(fixed, grouped, last), 8, 10) == Flops(
        first + second + third, first + 2 * second + 3 * third
    )


def test_a_real_network_is_not_run():
    with pytest.raises(ValueError, match="model on cpu.*meta"):
        convolution_flops(nn.Conv2d(3, 1, 1), 8, 8)


@pytest.mark.parametrize(
    ("backbone", "classes", "parameters"),
    [
        ("resnet18", 91, 21.0),
        ("resnet50", 91, 34.0),
        ("resnet101", 91, 53.0),
        ("resnext50_32x4d", 264, 37.1),
        ("resnext101_32x8d", 91, 97.1),
    ],
)
def test_parameters_in_millions(backbone, classes, parameters):
    model = net(backbone=backbone, classes=classes)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == parameters


@pytest.mark.parametrize(
    ("backbone", "classes", "canvas", "forward", "train"),
    [
        ("resnet50", 91, (800, 800), 303.1, 863.9),
        ("resnet50", 91, (800, 1344), None, 1450.6),
        ("resnet50", 91, (640, 640), 193.8, 552.3),
        ("resnet50", 91, (512, 512), 124.0, 353.4),
        ("resnet101", 91, (800, 800), 397.8, 1148.0),
        ("resnet101", 91, (800, 1344), None, 1927.9),
        ("resnext50_32x4d", 264, (800, 800), 402.4, 1161.0),
        ("resnext101_32x8d", 91, (800, 800), 617.5, 1766.8),
        ("resnext101_32x8d", 91, (800, 1344), None, 2967.6),
        ("resnet18", 91, (800, 800), 241.6, 693.7),
    ],
)
def test_operations_in_billions(backbone, classes, canvas, forward, train):
    flops = convolution_flops(net(backbone=backbone, classes=classes), *canvas)
    assert round(flops.train / G, 1) == train
    if forward is not None:
        assert round(flops.forward / G, 1) == forward


def test_a_training_step_that_trains_everything():
    # Nothing fixed: three passes each, but the stem's input is the picture, which needs no
    # gradient: 2 x 400 x 400 x 64 x (3 x 7 x 7) = 3.01 G.
    flops = convolution_flops(net(backbone="resnet50", classes=91, frozen_stages=0), 800, 800)
    assert flops.train == 3 * flops.forward - 2 * 400 * 400 * 64 * 147


@pytest.mark.parametrize("backbone", ["resnet34", "resnet152", "resnext101_64x4d"])
@pytest.mark.parametrize("norm", ["frozen", "group", "sync"])
def test_the_other_backbones_are_wired(backbone, norm):
    model = net(backbone=backbone, classes=2, norm=norm, frozen_stages=0).eval()
    logits, offsets = model(torch.empty(1, 3, 64, 96, device="meta"))
    # 9 x (8 * 12 + 4 * 6 + 2 * 3 + 1 * 2 + 1 * 1) = 9 x 129 = 1161.
    assert logits.shape == (1, 1161, 2) and offsets.shape == (1, 1161, 4)
