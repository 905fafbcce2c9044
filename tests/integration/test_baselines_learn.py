"""Baselines learn to find bright rectangles, wide ones and tall ones, on unseen pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cluster.scoring.evaluate import coco
from detector.baseline_step import baseline_step
from detector.baselines import build_model
from detector.batch import Sample, collate
from detector.metrics import Truth
from detector.optimizer import build_optimizer
from tests.detector.toy import toy_backbones

pytestmark = pytest.mark.integration

CANVAS = (64, 96)
DECODE = dict(score_threshold=0.05, top_per_level=100, nms_threshold=0.5, max_detections=20)
STEPS = {"fcos": 20, "ssd": 20, "dssd": 40, "yolov2": 160}
"""Of 8 pictures each, 20 CPU s in all. A step of Faster R-CNN takes 2 CPU s, and DETR needs many
thousands: tests/detector/test_baselines.py sees their losses fall.
"""


def scene(number: int) -> Sample:
    """Noise with a rectangle in the left half and one in the right half; label 0 where wide, 1
    where tall.
    """
    rng = np.random.default_rng(number)
    pixels = rng.integers(80, 120, (*CANVAS, 3), dtype=np.uint8)
    boxes, labels = [], []
    for left in (0, 48):
        label = int(rng.integers(2))
        width, height = (36, 18) if label == 0 else (18, 36)
        x, y = left + int(rng.integers(48 - width)), int(rng.integers(64 - height))
        pixels[y : y + height, x : x + width] = 230
        boxes.append([x, y, x + width, y + height])
        labels.append(label)
    return Sample(
        torch.from_numpy(pixels).permute(2, 0, 1),
        np.array(boxes, np.float32),
        np.array(labels, np.int64),
        CANVAS,
        number,
    )


def ap50(network, samples: list[Sample]) -> float:
    batch = collate(samples)
    found = network.eval().detect(batch.images, batch.sizes_B2, **DECODE)
    truths = [
        Truth(s.image_id, *CANVAS, s.boxes_N4, s.labels_N, np.zeros(2, bool), np.full(2, 648.0))
        for s in samples
    ]
    detections = {s.image_id: one for s, one in zip(samples, found, strict=True)}
    score = coco(detections, truths, ["wide", "tall"]).summary["AP50"]
    assert score is not None
    return score


@pytest.mark.parametrize("architecture", STEPS)
def test_a_baseline_learns(architecture: str):
    torch.manual_seed(0)
    with toy_backbones():
        network = build_model(
            architecture=architecture,
            classes=2,
            backbone="toy",
            width=64,
            norm="batch",
            base_sizes=(8, 16, 32, 64, 128),
            ratios=(0.5, 1.0, 2.0),
        ).train()
    optimizer = build_optimizer(
        network, name="adamw", learning_rate=1e-3, weight_decay=1e-4, momentum=0.9
    )
    for step in range(STEPS[architecture]):
        baseline_step(
            network,
            optimizer,
            collate([scene(8 * step + i) for i in range(8)]),
            learning_rate=1e-3,
            clip_norm=10.0,
            box_weight=1.0,
            amp_dtype=None,
        )
    assert ap50(network, [scene(10**6 + i) for i in range(16)]) >= 0.3
