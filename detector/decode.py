"""Logits and offsets -> scored boxes: threshold, top-k a level, per-class NMS, batched over images (section 4.1, Inference)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torchvision
from torch import Tensor

from detector.boxes import clip, decode


@dataclass(frozen=True)
class Detections:
    """The detections of one image, best first."""

    boxes_N4: np.ndarray
    """float32 (N, 4), XYXY px."""
    scores_N: np.ndarray
    """float32 (N,), 0..1."""
    labels_N: np.ndarray
    """int64 (N,), 0..K-1."""


@torch.no_grad()
def decode_detections(
    logits_BAK: Tensor,
    deltas_BA4: Tensor,
    anchors: Sequence[Tensor],
    sizes_B2: Tensor,
    *,
    score_threshold: float = 0.05,
    top_per_level: int = 1000,
    nms_threshold: float = 0.5,
    max_detections: int = 100,
) -> list[Detections]:
    """Detections of each image in the frame of the canvas, cut to the picture's (height, width) on it.

    Equal scores are ordered by anchor, so the result does not depend on the device's sort.
    """
    batch, _, classes = logits_BAK.shape
    kept: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    start = 0
    for level_A4 in anchors:
        stop = start + len(level_A4)
        scores_BN = logits_BAK[:, start:stop].float().sigmoid().flatten(1)
        top_scores_BN, index_BN = torch.sort(scores_BN, dim=1, descending=True, stable=True)
        top_scores_BN, index_BN = top_scores_BN[:, :top_per_level], index_BN[:, :top_per_level]
        image_M, place_M = torch.nonzero(top_scores_BN > score_threshold, as_tuple=True)
        index_M = index_BN[image_M, place_M]
        anchor_M = torch.div(index_M, classes, rounding_mode="floor")
        boxes_M4 = decode(deltas_BA4[image_M, start + anchor_M].float(), level_A4[anchor_M])
        boxes_M4 = clip(boxes_M4, sizes_B2[image_M, 0], sizes_B2[image_M, 1])
        kept.append((image_M, boxes_M4, top_scores_BN[image_M, place_M], index_M % classes))
        start = stop
    image_M, boxes_M4, scores_M, labels_M = (torch.cat(parts) for parts in zip(*kept, strict=True))
    # Classes are moved apart so that one call serves them all: in float64, because the move costs float32 boxes up to 0.06 px (80 classes, 1000 px).
    # An image at a time, so that its detections do not depend on its neighbours in the batch, and the quadratic cost stays that of one image.
    apart = boxes_M4.amax().double() + 1 if len(boxes_M4) else 0.0
    shifted_M4 = boxes_M4.double() + (labels_M * apart)[:, None]
    results = []
    for image in range(batch):
        mine = torch.nonzero(image_M == image).flatten()
        mine = mine[torchvision.ops.nms(shifted_M4[mine], scores_M[mine].double(), nms_threshold)][:max_detections]
        results.append(Detections(boxes_M4[mine].cpu().numpy(), scores_M[mine].cpu().numpy(), labels_M[mine].cpu().numpy()))
    return results
