"""SSD and DSSD: default boxes, matching and hard negative mining by hand; shapes of the levels."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.models.detection.image_list import ImageList

from detector.baseline import Objects
from detector.ssd import DefaultBoxes, ShotDetector, dssd, ssd
from tests.detector.toy import toy_backbones

SIZES = (8.0, 16.0, 32.0, 64.0, 128.0)


@pytest.fixture(scope="module", autouse=True)
def _toys():
    with toy_backbones():
        yield


def network(build) -> ShotDetector:
    torch.manual_seed(0)
    return build(classes=2, backbone="toy", width=64, base_sizes=SIZES, ratios=(1.0, 4.0))


def canvas(height: int, width: int, images: int = 1) -> ImageList:
    return ImageList(torch.zeros(images, 3, height, width), [(height, width)] * images)


def test_default_boxes_of_one_level_by_hand():
    levels = [torch.zeros(1, 1, *shape) for shape in ((16, 12), (8, 6), (4, 3), (2, 2), (1, 1))]
    (boxes_A4,) = DefaultBoxes(SIZES, (1.0, 4.0))(canvas(128, 96), levels)
    assert len(boxes_A4) == 3 * (16 * 12 + 8 * 6 + 4 * 3 + 2 * 2 + 1)
    # The third level, stride 32, second row and first column: its centre is (16, 48). Size 32 with
    # ratio 1; ratio 4 is 16 wide and 64 high; the square is sqrt(32 * 64) = 45.25 wide.
    start = 3 * (16 * 12 + 8 * 6 + 3)
    half = math.sqrt(32 * 64) / 2
    expected = [
        [0, 32, 32, 64],
        [8, 16, 24, 80],
        [16 - half, 48 - half, 16 + half, 48 + half],
    ]
    torch.testing.assert_close(boxes_A4[start : start + 3], torch.tensor(expected))
    # The last square: sqrt(128 * 256).
    side = boxes_A4[-1, 2] - boxes_A4[-1, 0]
    assert side.item() == pytest.approx(math.sqrt(128 * 256))


@pytest.mark.parametrize("build", [ssd, dssd])
def test_levels_have_the_strides_of_the_boxes(build):
    # 96 is no multiple of 64: the coarser levels round up.
    levels = network(build).backbone(torch.zeros(1, 3, 128, 96))
    shapes = [tuple(level.shape[2:]) for level in levels]
    assert shapes == [(16, 12), (8, 6), (4, 3), (2, 2), (1, 1)]
    channels = [32, 32, 128, 128, 128] if build is ssd else [256] * 5
    assert [level.shape[1] for level in levels] == channels


def test_a_dilated_stage_sees_what_the_strided_one_sees():
    # The stage of stride 32, computed at stride 16, has the same values at every second position.
    from detector.trunk import residual

    for stride_in in ("3x3", "1x1"):
        torch.manual_seed(0)
        strided = residual("resnet50", (16, 32), {"stride_in": stride_in}).eval().layer4
        dilated = residual("resnet50", (16, 32), {"stride_in": stride_in}, dilated=True).eval()
        dilated.layer4.load_state_dict(strided.state_dict())
        features = torch.randn(1, 1024, 12, 12)
        with torch.no_grad():
            wanted, found = strided(features), dilated.layer4(features)
        assert found.shape[2:] == (12, 12)
        torch.testing.assert_close(found[:, :, ::2, ::2], wanted, rtol=1e-3, atol=1e-4)


def test_three_background_boxes_count_for_each_positive_one():
    detector = network(ssd)
    images = canvas(64, 64)
    boxes_A4 = DefaultBoxes(SIZES, (1.0, 4.0))(images, detector.backbone(images.tensors))[0]
    # One object equal to the box of the second level at row 1, column 1: centre (24, 24).
    index = 3 * (8 * 8) + 3 * (1 * 4 + 1)
    object_14 = boxes_A4[index : index + 1]
    assert object_14.tolist() == [[16, 16, 32, 32]]
    logits_AK = torch.zeros(1, len(boxes_A4), 3)
    # All are sure of background but five, which say class 1 with 1, 2, 3, 4 and 5.
    logits_AK[..., 0] = 9.0
    logits_AK[0, :5, 1] = torch.tensor([10.0, 11.0, 12.0, 13.0, 14.0])
    outputs = {"cls_logits": logits_AK, "bbox_regression": torch.zeros(1, len(boxes_A4), 4)}
    detector.head.forward = lambda levels: outputs
    classification, box = detector.losses(images, [Objects(object_14, torch.tensor([1]))])
    # No other box has an IoU above 1/2 with it, so one is positive: its logits are 9, 0, 0.
    positive = math.log(math.exp(9) + 2)
    hardest = sum(math.log(math.exp(9) + math.exp(x) + 1) - 9 for x in (12, 13, 14))
    assert classification.item() == pytest.approx(positive + hardest, rel=1e-5)
    assert box.item() == 0
