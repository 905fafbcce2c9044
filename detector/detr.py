"""DETR (Carion et al., End-to-End Object Detection with Transformers, ECCV 2020): 100 queries, six
layers of encoder and decoder, Hungarian matching. The layers are those of the authors' code.

Shapes: B batch, Q queries, C channels, P positions of the features, N objects of one image. Boxes
inside are (centre x, centre y, width, height) as shares of the picture's width and height.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Unpack

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_convert, clip_boxes_to_image, generalized_box_iou

from detector.baseline import Found, Objects, full_precision
from detector.choices import BackboneName
from detector.decode import DecodeSettings
from detector.transformer import Decoder, Encoder
from detector.trunk import Residual, residual

QUERIES = 100
L1_WEIGHT, GIOU_WEIGHT = 5.0, 2.0
NO_OBJECT_WEIGHT = 0.1
_TEMPERATURE = 10_000


def detr(
    *,
    classes: int,
    backbone: BackboneName = "resnet50",
    width: int = 256,
    **trunk: Unpack[Residual],
) -> QueryDetector:
    """DETR on C5, stride 32."""
    return QueryDetector(classes, backbone, width, trunk, dilated=False)


def detr_dc5(
    *,
    classes: int,
    backbone: BackboneName = "resnet50",
    width: int = 256,
    **trunk: Unpack[Residual],
) -> QueryDetector:
    """DETR on C5 at stride 16, whose last stage is dilated."""
    return QueryDetector(classes, backbone, width, trunk, dilated=True)


class QueryDetector(nn.Module):
    """A `BaselineNetwork`. Class K means no object. The losses of all six decoder layers count the
    same, and are divided by the objects of the batch.
    """

    def __init__(
        self, classes: int, backbone: BackboneName, width: int, trunk: Residual, *, dilated: bool
    ):
        super().__init__()
        self.body = residual(backbone, (32,), trunk, dilated=dilated)
        self.project = nn.Conv2d(self.body.channels[0], width, 1)
        self.encoder, self.decoder = Encoder(width), Decoder(width)
        for parameter in [*self.encoder.parameters(), *self.decoder.parameters()]:
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
        self.queries = nn.Embedding(QUERIES, width)
        self.classes = nn.Linear(width, classes + 1)
        self.boxes = nn.Sequential(
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, 4),
        )

    def outputs(self, images: ImageList) -> tuple[Tensor, Tensor]:
        """Class logits (layers, B, Q, K + 1) and boxes (layers, B, Q, 4) of each decoder layer."""
        (features,) = self.body(images.tensors)
        padding_Bhw = _padding(images, features)
        with full_precision(images):
            features_BPC = self.project(features.float()).flatten(2).transpose(1, 2)
            places_BPC = place_code(padding_Bhw, features_BPC.shape[-1])
            padding_BP = padding_Bhw.flatten(1)
            memory_BPC = self.encoder(features_BPC, places_BPC, padding_BP)
            queries_BQC = self.queries.weight.expand(len(features), -1, -1)
            layers = self.decoder(queries_BQC, memory_BPC, places_BPC, padding_BP)
            return self.classes(layers), self.boxes(layers).sigmoid()

    def losses(self, images: ImageList, objects: Sequence[Objects]) -> tuple[Tensor, Tensor]:
        logits, boxes = self.outputs(images)
        shares = [
            Objects(_shares(boxes_N4, size), labels_N)
            for (boxes_N4, labels_N), size in zip(objects, images.image_sizes, strict=True)
        ]
        with full_precision(images):
            layers = [
                torch.stack(layer_loss(*layer, shares)) for layer in zip(logits, boxes, strict=True)
            ]
        classification, box = torch.stack(layers).sum(dim=0)
        return classification, box

    def found(self, images: ImageList, settings: DecodeSettings) -> list[Found]:
        logits, boxes = self.outputs(images)
        scores_BQ, labels_BQ = logits[-1].softmax(dim=-1)[..., :-1].max(dim=-1)
        found = []
        for scores_Q, labels_Q, boxes_Q4, size in zip(
            scores_BQ, labels_BQ, boxes[-1], images.image_sizes, strict=True
        ):
            order = scores_Q.argsort(descending=True, stable=True)[: settings["max_detections"]]
            order = order[scores_Q[order] > settings["score_threshold"]]
            height, width = size
            boxes_N4 = box_convert(boxes_Q4[order], "cxcywh", "xyxy")
            boxes_N4 = boxes_N4 * boxes_N4.new_tensor([width, height, width, height])
            found.append(
                Found(clip_boxes_to_image(boxes_N4, size), scores_Q[order], labels_Q[order])
            )
        return found


def _shares(boxes_N4: Tensor, size: tuple[int, int]) -> Tensor:
    """XYXY px boxes as (centre x, centre y, width, height) in shares of the picture."""
    height, width = size
    shares_N4 = boxes_N4 / boxes_N4.new_tensor([width, height, width, height])
    return box_convert(shares_N4, "xyxy", "cxcywh")


def _padding(images: ImageList, features: Tensor) -> Tensor:
    """Which positions of the features lie outside their picture, bool (B, h, w)."""
    rows, columns = features.shape[2:]
    stride_y, stride_x = (
        canvas / cells
        for canvas, cells in zip(images.tensors.shape[2:], (rows, columns), strict=True)
    )
    y, x = (torch.arange(n, device=features.device) for n in (rows, columns))
    sizes_B2 = torch.tensor(images.image_sizes, device=features.device)
    outside_y_Bh = y * stride_y >= sizes_B2[:, :1]
    outside_x_Bw = x * stride_x >= sizes_B2[:, 1:]
    return outside_y_Bh[:, :, None] | outside_x_Bw[:, None]


def place_code(padding_Bhw: Tensor, channels: int) -> Tensor:
    """Sines and cosines of each position's share of its picture's height and width, float32 (B, h *
    w, C): the first half of the channels for y, the second for x.
    """
    inside_Bhw = (~padding_Bhw).float()
    half = channels // 2
    pairs = torch.arange(half, device=padding_Bhw.device) // 2
    periods = _TEMPERATURE ** (2 * pairs / half)
    codes = []
    for axis in (1, 2):
        counted = inside_Bhw.cumsum(axis)
        last = counted.narrow(axis, counted.shape[axis] - 1, 1)
        angles = (counted / (last + 1e-6) * 2 * math.pi)[..., None] / periods
        codes.append(torch.stack([angles[..., 0::2].sin(), angles[..., 1::2].cos()], -1).flatten(3))
    return torch.cat(codes, dim=-1).flatten(1, 2)


@torch.no_grad()
def assign(logits_QK: Tensor, boxes_Q4: Tensor, objects: Objects) -> tuple[Tensor, Tensor]:
    """The queries and the objects of one image that belong together at the least cost, two int64
    (N,): the cost is -p(class) + 5 L1 - 2 GIoU.
    """
    costs_QN = (
        -logits_QK.softmax(dim=-1)[:, objects.labels_N]
        + L1_WEIGHT * torch.cdist(boxes_Q4, objects.boxes_N4, p=1)
        - GIOU_WEIGHT * generalized_box_iou(_corners(boxes_Q4), _corners(objects.boxes_N4))
    )
    # A network that is no longer finite is reported by the step, not by the assignment.
    pairs = linear_sum_assignment(costs_QN.nan_to_num(1e4, 1e4, -1e4).cpu().numpy())
    query_N, object_N = (torch.as_tensor(side, device=logits_QK.device) for side in pairs)
    return query_N, object_N


def layer_loss(
    logits_BQK: Tensor, boxes_BQ4: Tensor, objects: Sequence[Objects]
) -> tuple[Tensor, Tensor]:
    """Classification and box loss of one decoder layer, for `objects` in shares of their pictures.
    Queries without an object weigh 0.1 in the mean cross entropy.
    """
    no_object = logits_BQK.shape[-1] - 1
    target_BQ = logits_BQK.new_full(logits_BQK.shape[:2], no_object, dtype=torch.int64)
    weights_K = logits_BQK.new_ones(no_object + 1)
    weights_K[no_object] = NO_OBJECT_WEIGHT
    box = boxes_BQ4.sum() * 0.0
    for target_Q, logits_QK, boxes_Q4, of_image in zip(
        target_BQ, logits_BQK, boxes_BQ4, objects, strict=True
    ):
        if not len(of_image.labels_N):
            continue
        query_N, object_N = assign(logits_QK, boxes_Q4, of_image)
        target_Q[query_N] = of_image.labels_N[object_N]
        mine_N4, true_N4 = boxes_Q4[query_N], of_image.boxes_N4[object_N]
        overlap_N = generalized_box_iou(_corners(mine_N4), _corners(true_N4)).diagonal()
        box = box + L1_WEIGHT * (mine_N4 - true_N4).abs().sum()
        box = box + GIOU_WEIGHT * (1 - overlap_N).sum()
    count = max(1, sum(len(of_image.labels_N) for of_image in objects))
    classification = nn.functional.cross_entropy(
        logits_BQK.flatten(0, 1), target_BQ.flatten(), weights_K
    )
    return classification, box / count


def _corners(boxes_N4: Tensor) -> Tensor:
    return box_convert(boxes_N4, "cxcywh", "xyxy")
