"""YOLOv2: parameters and operations as published, boxes and loss against plain formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torchvision.models.detection.image_list import ImageList

from detector.baseline import Objects
from detector.yolo import CellDetector, DarkNet, yolov2


def small() -> CellDetector:
    torch.manual_seed(0)
    return yolov2(classes=2, width=64, norm="group", base_sizes=(16, 64), ratios=(1.0,))


def test_the_network_of_coco_has_the_numbers_of_its_published_file():
    with torch.device("meta"):
        network = yolov2(classes=80, ratios=(1.0,))
    weights = sum(p.numel() for p in network.parameters())
    statistics = sum(b.numel() for name, b in network.named_buffers() if "running" in name)
    # yolov2.weights of pjreddie.com has 203,934,260 bytes: 16 of a header, then float32 numbers.
    assert weights + statistics == (203_934_260 - 16) / 4


def test_darknet_needs_the_published_operations():
    # DarkNet-19 needs 5.58 billion operations for 224 x 224 (section 3, Training for
    # classification), two a multiplication. Its classifier is a 1x1 convolution at 7 x 7.
    counted = []
    with torch.device("meta"):
        network = DarkNet(norm="batch")
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(
                    lambda layer, _, out: counted.append(
                        layer.weight.numel() * out.shape[2] * out.shape[3]
                    )
                )
        fine, coarse = network(torch.zeros(1, 3, 224, 224))
    assert (fine.shape[1:], coarse.shape[1:]) == ((512, 14, 14), (1024, 7, 7))
    assert len(counted) == 18
    assert 2 * (sum(counted) + 1024 * 1000 * 7 * 7) / 1e9 == pytest.approx(5.58, abs=0.01)


def test_boxes_by_hand():
    raw = torch.zeros(1, 2, 3, 2, 7)
    raw[0, 1, 2, 1, :4] = torch.tensor([math.log(3), 0.0, math.log(2), math.log(0.5)])
    # Column 2, row 1: the centre is (2 + 0.75, 1 + 0.5) cells = (88, 48) px, the sides are 64 * 2
    # and 64 / 2 px.
    box = small().boxes(raw)[0, 1, 2, 1]
    torch.testing.assert_close(box, torch.tensor([24.0, 32.0, 152.0, 64.0]))


def test_loss_by_hand():
    network = small()
    raw = torch.zeros(1, 2, 3, 2, 7)
    raw[..., 4] = -20.0  # objectness 0
    # The object's centre (40, 44) lies in column 1, row 1; its sides 80 and 40 are nearest to the
    # anchor of 64 px. The prediction there is that anchor in the middle of the cell.
    raw[0, 1, 1, 1, 4:] = torch.tensor([0.0, math.log(3), 0.0])
    # A confident box elsewhere is background: half the square of sigmoid(0) = 1/2.
    raw[0, 0, 2, 0, 4] = 0.0
    network.outputs = lambda pixels: raw
    images = ImageList(torch.zeros(1, 3, 64, 96), [(64, 96)])
    objects = [Objects(torch.tensor([[0.0, 24.0, 80.0, 64.0]]), torch.tensor([1]))]
    classification, box = network.losses(images, objects)
    # The predicted box is [16, 16, 80, 80]: it shares 64 * 40 of 4096 + 3200 - 2560 px2.
    reached = 2560 / (4096 + 3200 - 2560)
    objectness = 5 * (0.5 - reached) ** 2 / 2 + 0.5**2 / 2
    assert classification.item() == pytest.approx(objectness + math.log(4), rel=1e-5)
    # The centre in the cell is (40 / 32 - 1, 44 / 32 - 1) = (0.25, 0.375). Small boxes weigh more.
    wrong = 0.25**2 + 0.125**2 + math.log(80 / 64) ** 2 + math.log(40 / 64) ** 2
    assert box.item() == pytest.approx((2 - 3200 / (64 * 96)) * wrong / 2, rel=1e-5)


def test_a_background_box_that_overlaps_an_object_has_no_loss():
    network = small()
    raw = torch.full((1, 2, 3, 2, 7), -20.0)
    raw[..., :4] = 0.0
    # A confident box at the left edge of column 1: [0, 16, 64, 80].
    raw[0, 1, 1, 1, 0], raw[0, 1, 1, 1, 4] = -20.0, 0.0
    network.outputs = lambda pixels: raw
    images = ImageList(torch.zeros(1, 3, 64, 96), [(64, 96)])
    losses = [
        network.losses(images, [Objects(torch.tensor([[x, 16.0, x + 64, 80.0]]), labels)])[0].item()
        for labels in [torch.tensor([0])]
        for x in (-1.0, -1.0 - 16.0)
    ]
    # The middles of both objects are in column 0, whose anchor has objectness 0 against its IoU,
    # and two equal classes cost log 2. The confident box has IoU 63 / 65 with the first object and
    # 47 / 81, below 0.6, with the second.
    responsible = [
        5 * ((64 - d) * 64 / (2 * 4096 - (64 - d) * 64)) ** 2 / 2 + math.log(2) for d in (15, 1)
    ]
    assert losses == pytest.approx([responsible[0], responsible[1] + 0.125], rel=1e-4)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_a_narrow_network_has_a_share_of_the_channels(norm):
    with torch.device("meta"):
        narrow, whole = (DarkNet(norm=norm, share=share) for share in (0.25, 1.0))
    assert narrow.channels == (128, 256) and whole.channels == (512, 1024)
