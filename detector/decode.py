"""Logits and offsets -> scored boxes: threshold, top-k a level, per-class NMS, batched over images
(section 4.1, Inference).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch
import torchvision
from torch import Tensor

from detector.boxes import area, clip, decode, intersection


@dataclass(frozen=True)
class Detections:
    """The detections of one image, best first."""

    boxes_N4: np.ndarray
    """float32 (N, 4), XYXY px."""
    scores_N: np.ndarray
    """float32 (N,), 0..1."""
    labels_N: np.ndarray
    """int64 (N,), 0..K-1."""

    def reaching(self, lowest_K: np.ndarray) -> Detections:
        """Those whose score is that of their class, or more."""
        kept_N = self.scores_N >= lowest_K[self.labels_N]
        return Detections(self.boxes_N4[kept_N], self.scores_N[kept_N], self.labels_N[kept_N])


class DecodeSettings(TypedDict):
    """Keywords of `decode_detections`; the fields of `DecodeConfig`."""

    score_threshold: float
    """Lower scores are dropped first, 0..1."""
    top_per_level: int
    """Candidates that each pyramid level keeps."""
    nms_threshold: float
    """IoU above which the lower score of a class is removed."""
    max_detections: int
    """Of one image."""


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
    """Detections of each image, XYXY px on the canvas, clipped to the picture's (height, width) px
    on it. Logits and offsets are those of all `anchors`, in the order of the levels.

    Equal scores are ordered by anchor, so the result does not depend on the device's sort.
    """
    batch, _, classes = logits_BAK.shape
    # Only the few logits that pass the threshold become scores and are sorted (sorting all of a
    # level took nine tenths of the time: 80 classes, 512 px, CPU). This limit on logits is a little
    # too low; the exact one, on scores, is applied below.
    limit = (
        math.log(score_threshold / (1 - score_threshold)) - 0.01
        if score_threshold > 0
        else -math.inf
    )
    image_M, anchor_M, label_M = torch.nonzero(logits_BAK > limit, as_tuple=True)
    scores_M = logits_BAK[image_M, anchor_M, label_M].float().sigmoid()
    ends = torch.tensor([len(level_A4) for level_A4 in anchors], device=anchor_M.device).cumsum(0)
    level_M = torch.bucketize(anchor_M, ends, right=True)
    groups = batch * len(anchors)
    best_M, _ = _best_of_each(
        image_M * len(anchors) + level_M,
        scores_M,
        groups=groups,
        most=top_per_level,
        above=score_threshold,
    )
    image_M, anchor_M, label_M, scores_M = (
        column[best_M] for column in (image_M, anchor_M, label_M, scores_M)
    )
    boxes_M4 = decode(deltas_BA4[image_M, anchor_M].float(), torch.cat(list(anchors))[anchor_M])
    boxes_M4 = clip(boxes_M4, sizes_B2[image_M, 0], sizes_B2[image_M, 1])
    nms_M = _suppress(
        boxes_M4, scores_M, label_M, image_M, images=batch, classes=classes, threshold=nms_threshold
    )
    best_M, counts_B = _best_of_each(
        image_M[nms_M], scores_M[nms_M], groups=batch, most=max_detections
    )
    columns = [column[nms_M[best_M]].cpu().numpy() for column in (boxes_M4, scores_M, label_M)]
    ends = counts_B.cumsum(0).tolist()
    return [
        Detections(*(column[start:end] for column in columns))
        for start, end in zip([0, *ends[:-1]], ends, strict=True)
    ]


def _suppress(
    boxes_M4: Tensor,
    scores_M: Tensor,
    label_M: Tensor,
    image_M: Tensor,
    *,
    images: int,
    classes: int,
    threshold: float,
) -> Tensor:
    """The indices of the candidates that NMS keeps, each compared with those of its image and
    class; of equal scores the first is the better. `image_M` must be in rising order.
    """
    if boxes_M4.device.type != "cpu":
        return _suppress_at_once(
            boxes_M4,
            scores_M,
            label_M,
            image_M,
            images=images,
            classes=classes,
            threshold=threshold,
        )
    # Classes are moved apart so that one call serves all of them. In float64, because the move
    # would cost float32 boxes up to 0.06 px (80 classes, 1000 px).
    apart = boxes_M4.amax().double() + 1 if len(boxes_M4) else 0.0
    shifted_M4 = boxes_M4.double() + (label_M * apart)[:, None]
    scores_M = scores_M.double()
    # One call for each image: the cost of a call is quadratic in its candidates. At worst, 40,000
    # candidates of 8 images, this saves 1.7 s of a core.
    counts = torch.bincount(image_M, minlength=images).tolist()
    parts = zip(
        itertools.accumulate(counts, initial=0),
        shifted_M4.split(counts),
        scores_M.split(counts),
        strict=False,
    )
    return torch.cat(
        [
            start + torchvision.ops.nms(boxes_m4, scores_m, threshold)
            for start, boxes_m4, scores_m in parts
        ]
    )


_PAIRS_AT_ONCE = 1 << 26
"""Pairs that `_suppress_at_once` compares at a time, eight bytes each in a few tensors."""


def _suppress_at_once(
    boxes_M4: Tensor,
    scores_M: Tensor,
    label_M: Tensor,
    image_M: Tensor,
    *,
    images: int,
    classes: int,
    threshold: float,
) -> Tensor:
    """`_suppress` for a device that compares many pairs in parallel: over all images, or over all
    classes of all images, whichever compares fewer pairs. G: these groups, g those of a chunk; N:
    the most candidates of one group.

    Greedy NMS is the only set that contains exactly the candidates that no better member overlaps.
    Starting from all candidates, each pass drops those that the last pass's set suppresses: after
    pass n the n best of each group are final, so a set that a pass does not change is the right
    one. Few passes are needed, one more than the longest chain of candidates of which each
    suppresses the next; torchvision's kernel takes 0.3 us a candidate, one by one.
    """
    chosen_M = torch.zeros_like(image_M, dtype=torch.bool)
    if not len(chosen_M):
        return image_M
    ways = ((image_M, images), (image_M * classes + label_M, images * classes))
    sizes = [torch.bincount(group_M, minlength=groups) for group_M, groups in ways]
    mosts = torch.stack([counts.amax() for counts in sizes]).tolist()
    (group_M, groups), counts_G, most = min(
        zip(ways, sizes, mosts, strict=True), key=lambda way: way[0][1] * way[2] ** 2
    )
    order_M = torch.sort(scores_M, descending=True, stable=True)[1]
    order_M = order_M[torch.sort(group_M[order_M], stable=True)[1]]
    rank_GN = torch.arange(most, device=image_M.device).expand(groups, -1)
    exists_GN = rank_GN < counts_G[:, None]
    candidate_GN = order_M[
        ((counts_G.cumsum(0) - counts_G)[:, None] + rank_GN).clamp(max=len(order_M) - 1)
    ]
    at_once = max(1, _PAIRS_AT_ONCE // most**2)
    for exists_gN, candidate_gN in zip(
        exists_GN.split(at_once), candidate_GN.split(at_once), strict=True
    ):
        boxes_gN4, label_gN = boxes_M4[candidate_gN].double(), label_M[candidate_gN]
        shared_gNN = intersection(boxes_gN4, boxes_gN4)
        area_gN = area(boxes_gN4)
        overlap_gNN = shared_gNN / (area_gN[:, :, None] + area_gN[:, None] - shared_gNN) > threshold
        # (g, i, j): the better one i suppresses j.
        suppresses_gNN = (overlap_gNN & (label_gN[:, :, None] == label_gN[:, None])).triu(1)
        chosen_gN, before = exists_gN, None
        while before is None or not torch.equal(chosen_gN, before):
            suppressed_gN = (suppresses_gNN & chosen_gN[:, :, None]).any(dim=1)
            before, chosen_gN = chosen_gN, exists_gN & ~suppressed_gN
        chosen_M[candidate_gN[chosen_gN]] = True
    return chosen_M.nonzero()[:, 0]


def _best_of_each(
    group_M: Tensor, scores_M: Tensor, *, groups: int, most: int, above: float = -math.inf
) -> tuple[Tensor, Tensor]:
    """The indices of the best scores of each group, at most `most` of a group and only those
    `above`: group by group, best first, equal scores in the order given. And their number in each
    group, (groups,), not counting `above`.
    """
    order_M = torch.sort(scores_M, descending=True, stable=True)[1]
    order_M = order_M[torch.sort(group_M[order_M], stable=True)[1]]
    counts = torch.bincount(group_M, minlength=groups)
    rank_M = (
        torch.arange(len(order_M), device=order_M.device)
        - (counts.cumsum(0) - counts)[group_M[order_M]]
    )
    return order_M[(rank_M < most) & (scores_M[order_M] > above)], counts.clamp(max=most)
