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
        # Few pass the threshold: sorting all of a level instead took nine tenths of the time (80 classes, 512 px, CPU).
        image_M, index_M = torch.nonzero(scores_BN > score_threshold, as_tuple=True)
        scores_M = scores_BN[image_M, index_M]
        best_M, _ = best_of_each(image_M, scores_M, images=batch, most=top_per_level)
        image_M, index_M, scores_M = image_M[best_M], index_M[best_M], scores_M[best_M]
        anchor_M = torch.div(index_M, classes, rounding_mode="floor")
        boxes_M4 = decode(deltas_BA4[image_M, start + anchor_M].float(), level_A4[anchor_M])
        boxes_M4 = clip(boxes_M4, sizes_B2[image_M, 0], sizes_B2[image_M, 1])
        kept.append((image_M, boxes_M4, scores_M, index_M % classes))
        start = stop
    image_M, boxes_M4, scores_M, labels_M = (torch.cat(parts) for parts in zip(*kept, strict=True))
    # Images and classes are moved apart so that one call serves them all: in float64, because the move costs float32 boxes up to 0.06 px (80 classes,
    # 1000 px) and here they lie thousands of classes off. The call's cost is quadratic in the batch's candidates: at worst, 40,000 of 8 images, 1.7 s
    # more on a CPU core than image by image; a trained network has hundreds.
    apart = boxes_M4.amax().double() + 1 if len(boxes_M4) else 0.0
    shifted_M4 = boxes_M4.double() + ((image_M * classes + labels_M) * apart)[:, None]
    kept_M = torchvision.ops.nms(shifted_M4, scores_M.double(), nms_threshold)
    best_M, counts_B = best_of_each(image_M[kept_M], scores_M[kept_M], images=batch, most=max_detections)
    columns = [column[kept_M[best_M]].cpu().numpy() for column in (boxes_M4, scores_M, labels_M)]
    ends = counts_B.cumsum(0).tolist()
    return [Detections(*(column[start:end] for column in columns)) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def best_of_each(image_M: Tensor, scores_M: Tensor, *, images: int, most: int) -> tuple[Tensor, Tensor]:
    """Where the best scores of each image are, at most `most` of it: image by image, best first, equal scores in the order given. And how many of
    each, (B,).
    """
    order_M = torch.sort(scores_M, descending=True, stable=True)[1]
    order_M = order_M[torch.sort(image_M[order_M], stable=True)[1]]
    counts_B = torch.bincount(image_M, minlength=images)
    place_M = torch.arange(len(order_M), device=order_M.device) - (counts_B.cumsum(0) - counts_B)[image_M[order_M]]
    return order_M[place_M < most], counts_B.clamp(max=most)
