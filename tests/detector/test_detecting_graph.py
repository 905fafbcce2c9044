"""The graph that is exported detects what the network detects, in torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from detector.decode import DecodeSettings
from detector.detecting_graph import DetectingGraph, suppress
from detector.model import RetinaNet
from tests.detector.test_export import DECODE, network
from tests.detector.toy import toy_backbones


@pytest.fixture(scope="module")
def model() -> RetinaNet:
    with toy_backbones():
        return network(norm="frozen")


# One image; several; canvases on which the coarsest levels have a single row.
@pytest.mark.parametrize("size", [(1, 160, 160), (3, 160, 224), (2, 64, 96), (2, 32, 32)])
@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"score_threshold": 0.0},
        {"score_threshold": 0.999},
        {"nms_threshold": 0.3},
        {"max_detections": 7},
        {"top_per_level": 3, "max_detections": 1000},
    ],
)
@torch.no_grad()
def test_it_detects_what_the_network_detects(
    model: RetinaNet, size: tuple[int, int, int], changed: DecodeSettings
):
    decode: DecodeSettings = {**DECODE, **changed}
    batch, height, width = size
    images = torch.randint(
        0, 256, (batch, 3, height, width), generator=torch.Generator().manual_seed(1)
    ).to(torch.uint8)
    sizes = torch.tensor([[height - 7 * i, width - 3 * i] for i in range(batch)])
    expected = model.detect(images, sizes.float(), **decode)
    boxes_N4, scores_N, labels_N, image_N = DetectingGraph(model, decode)(images, sizes)
    assert image_N.tolist() == [
        i for i, detections in enumerate(expected) for _ in detections.scores_N
    ]
    assert len(image_N) or decode["score_threshold"] == 0.999
    for found, name in ((boxes_N4, "boxes_N4"), (scores_N, "scores_N"), (labels_N, "labels_N")):
        wanted = np.concatenate([getattr(detections, name) for detections in expected])
        np.testing.assert_allclose(found.numpy(), wanted, atol=1e-4, rtol=0)


def test_candidates_of_a_class_suppress_each_other_alone():
    # IoU of the first two: 8 * 10 / (10 * 10 + 10 * 10 - 80) = 0.67; the third is elsewhere.
    boxes_BM4 = torch.tensor([[[0.0, 0, 10, 10], [2, 0, 12, 10], [40, 0, 50, 10]]])
    one_class_BKM = torch.tensor([[[0.9, 0.8, 0.2], [-1, -1, -1]]])
    two_classes_BKM = torch.tensor([[[0.9, -1, 0.2], [-1, 0.8, -1]]])
    for scores_BKM, limit, most, kept in [
        (one_class_BKM, 0.5, 10, [True, False, True]),
        (one_class_BKM, 0.7, 10, [True, True, True]),
        (one_class_BKM, 0.7, 2, [True, True, False]),
        (two_classes_BKM, 0.5, 10, [True, True, True]),
        (two_classes_BKM, 0.5, 1, [True, True, False]),
    ]:
        assert suppress(boxes_BM4, scores_BKM, 0.1, limit, most).tolist() == [kept]
    assert suppress(boxes_BM4, one_class_BKM, 0.3, 0.5, 10).tolist() == [[True, False, False]]
