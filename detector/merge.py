"""Detections of the views of a picture, and of a view and its mirror image -> those of the picture.
Shapes: N all detections, W whole ones, C cut ones.

A box that ends at a border of a tile inside the picture is cut: the object goes on in the next
tile. Cut boxes lose against whole ones, whatever their scores, where most of a cut box lies within
a whole box of its class: it is a part of an object that another view sees whole. NMS alone would
keep both, because the IoU of a part with its object is small, and a part often has the higher
score. Dropping every cut box would lose the objects that no view sees whole.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torchvision
from torch import Tensor

from detector.boxes import area, intersection
from detector.decode import DecodeSettings, Detections
from detector.tiling import View

_NEAR_PX, _NEAR_SHARE = 1.0, 0.05
"""A box touches a border that is no farther than so many px, or this share of the box's side: a
network is about so exact. A whole box that is taken for a cut one is only lost against a better
view of the same place.
"""
_COVERED = 0.5
"""Share of a cut box that lies within another box of the same object."""
_ROWS_AT_ONCE = 1024
"""Cut boxes that are compared with all whole ones at a time: 2 GiB for 80,000 whole boxes."""


class PictureMerger:
    """Collects the detections of views, in any order, until those of a picture are complete."""

    def __init__(self, decode: DecodeSettings, device: torch.device):
        self._decode, self._device = decode, device
        self._waiting: dict[int, list[tuple[View, Detections]]] = {}

    def add(
        self, image_ids: Sequence[int], views: Sequence[View], found: Sequence[Detections]
    ) -> dict[int, Detections]:
        """Take the detections of views of these images, boxes in px of the view; return those of
        the images that are complete now, boxes in px of the picture.
        """
        complete: dict[int, Detections] = {}
        for image_id, view, detections in zip(image_ids, views, found, strict=True):
            parts = self._waiting.setdefault(image_id, [])
            parts.append((view, detections))
            if len(parts) == view.views:
                complete[image_id] = merge_views(
                    self._waiting.pop(image_id),
                    nms_threshold=self._decode["nms_threshold"],
                    max_detections=self._decode["max_detections"],
                    device=self._device,
                )
        return complete


def merge_views(
    parts: Sequence[tuple[View, Detections]],
    *,
    nms_threshold: float,
    max_detections: int,
    device: torch.device | str = "cpu",
) -> Detections:
    """The detections of all views of a picture, boxes in px of the view -> those of the picture, in
    its px, at most `max_detections`, computed on `device`. They do not depend on the order of the
    parts. Those of a single view are returned as they are.

    Whole boxes first: NMS of each class over all views. Then the cut boxes that no whole box of
    another view covers; of two that cover each other, in two tiles, the one with the better score.
    """
    if len(parts) == 1:
        return parts[0][1]
    parts = sorted(parts, key=lambda part: part[0].number)
    cut_N = np.concatenate([is_cut(found.boxes_N4, view) for view, found in parts])
    view_N = np.repeat([view.number for view, _ in parts], [len(d.scores_N) for _, d in parts])
    joined = _joined([_to_picture(found, view) for view, found in parts])
    boxes_N4, scores_N, labels_N, is_cut_N, views_N = (
        torch.from_numpy(column).to(device)
        for column in (joined.boxes_N4, joined.scores_N, joined.labels_N, cut_N, view_N)
    )
    boxes_N4 = boxes_N4.double()
    whole_W, cut_C = (~is_cut_N).nonzero()[:, 0], is_cut_N.nonzero()[:, 0]
    whole_W = whole_W[
        _class_nms(boxes_N4[whole_W], scores_N[whole_W], labels_N[whole_W], nms_threshold)
    ]
    covered = min(_COVERED, nms_threshold)
    cut_C = cut_C[~_seen_whole(boxes_N4, labels_N, views_N, cut_C, whole_W, covered)]
    cut_C = cut_C[torch.sort(scores_N[cut_C], descending=True, stable=True)[1]]
    cut_C = cut_C[_best_parts(boxes_N4[cut_C], labels_N[cut_C], views_N[cut_C], covered)]
    kept = torch.cat([whole_W, cut_C]).sort()[0]
    best = kept[torch.sort(scores_N[kept], descending=True, stable=True)[1]][:max_detections]
    return _taken(joined, best)


def merge_flipped(
    plain: Detections,
    mirrored: Detections,
    width: float,
    *,
    nms_threshold: float,
    max_detections: int,
    device: torch.device | str = "cpu",
) -> Detections:
    """The detections of a picture of `width` px and of its mirror image, boxes in px of each ->
    those of the picture: NMS of each class over both.
    """
    turned_N4 = mirrored.boxes_N4[:, [2, 1, 0, 3]]
    turned_N4[:, [0, 2]] = np.float32(width) - turned_N4[:, [0, 2]]
    joined = _joined([plain, Detections(turned_N4, mirrored.scores_N, mirrored.labels_N)])
    boxes_N4, scores_N, labels_N = (
        torch.from_numpy(column).to(device)
        for column in (joined.boxes_N4, joined.scores_N, joined.labels_N)
    )
    # NMS returns the best score first.
    kept = _class_nms(boxes_N4.double(), scores_N, labels_N, nms_threshold)
    return _taken(joined, kept[:max_detections])


def is_cut(boxes_N4: np.ndarray, view: View) -> np.ndarray:
    """bool (N,): which of the boxes, XYXY px of the view, touch a border of it that is not one of
    the picture.
    """
    (top, left), (height, width), (bottom, right) = view.corner, view.size, view.picture
    inner = (left > 0, top > 0, left + width < right, top + height < bottom)
    gaps_N4 = np.abs(boxes_N4 - np.array([0, 0, width, height], np.float32))
    sides_N2 = boxes_N4[:, 2:] - boxes_N4[:, :2]
    near_N4 = gaps_N4 <= np.maximum(_NEAR_PX, _NEAR_SHARE * np.tile(sides_N2, 2))
    cut_N4: np.ndarray = near_N4 & np.array(inner)
    return cut_N4.max(axis=1, initial=False)


def _to_picture(found: Detections, view: View) -> Detections:
    """Boxes in px of the view -> px of the picture."""
    top, left = view.corner
    corner_4 = np.array([left, top, left, top], np.float32)
    return Detections(found.boxes_N4 + corner_4, found.scores_N, found.labels_N)


def _joined(found: Sequence[Detections]) -> Detections:
    return Detections(
        np.concatenate([each.boxes_N4 for each in found]),
        np.concatenate([each.scores_N for each in found]),
        np.concatenate([each.labels_N for each in found]),
    )


def _taken(found: Detections, rows: Tensor) -> Detections:
    index = rows.cpu().numpy()
    return Detections(found.boxes_N4[index], found.scores_N[index], found.labels_N[index])


def _class_nms(boxes_N4: Tensor, scores_N: Tensor, labels_N: Tensor, threshold: float) -> Tensor:
    """The indices that NMS of each class keeps, best first; of equal scores the first is the
    better. Boxes in float64. torchvision's kernel needs a bit for each pair of boxes, where
    `decode`'s comparison of all pairs at once needs some 30 bytes: too many for thousands of tiles.
    """
    apart = boxes_N4.amax() + 1 if len(boxes_N4) else 0.0
    shifted_N4 = boxes_N4 + (labels_N * apart)[:, None]
    return torchvision.ops.nms(shifted_N4, scores_N.double(), threshold)


def _seen_whole(
    boxes_N4: Tensor,
    labels_N: Tensor,
    views_N: Tensor,
    cut_C: Tensor,
    whole_W: Tensor,
    covered: float,
) -> Tensor:
    """bool (C,): of which of the cut boxes more than the share `covered` lies within one of the
    whole boxes of its class. In one view they are two objects: there the network has both.
    """
    seen = [torch.zeros_like(cut_C, dtype=torch.bool)[:0]]
    for cut_c in cut_C.split(_ROWS_AT_ONCE):
        shared_cW = intersection(boxes_N4[cut_c], boxes_N4[whole_W])
        inside_cW = shared_cW > covered * area(boxes_N4[cut_c])[:, None]
        same_cW = labels_N[cut_c][:, None] == labels_N[whole_W]
        other_cW = views_N[cut_c][:, None] != views_N[whole_W]
        seen.append((inside_cW & same_cW & other_cW).any(dim=1))
    return torch.cat(seen)


def _best_parts(boxes_C4: Tensor, labels_C: Tensor, views_C: Tensor, covered: float) -> Tensor:
    """bool (C,): greedy NMS of cut boxes, best first, by the share that two boxes of different
    views have of the smaller one: they show different parts of an object, whose IoU is small.
    """
    areas_C = area(boxes_C4)
    kept = torch.ones_like(labels_C, dtype=torch.bool)
    for number in range(len(kept) - 1):
        if kept[number]:
            others = slice(number + 1, None)
            shared_c = intersection(boxes_C4[number : number + 1], boxes_C4[others])[0]
            overlap_c = shared_c > covered * torch.minimum(areas_C[number], areas_C[others])
            same_c = labels_C[others] == labels_C[number]
            kept[others] &= ~(overlap_c & same_c & (views_C[others] != views_C[number]))
    return kept
