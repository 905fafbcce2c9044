"""YOLOv2 (Redmon and Farhadi, YOLO9000, CVPR 2017): DarkNet-19, a passthrough of finer features,
and boxes relative to the cells of one level, stride 32. The loss is that of darknet's region layer
(yolov2.cfg), without the pull of all boxes to their anchors in its first 12,800 images.

The anchors are all `base_sizes` in all `ratios`; the paper has five, found by k-means. Shapes: B
batch, P anchors of a cell, h w cells, K classes, A anchors of all cells, N objects of one image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image

from detector.backbone import NORMS, check_choice
from detector.baseline import Found, Objects, full_precision
from detector.boxes import MAX_LOG_SCALE
from detector.choices import Norm
from detector.decode import DecodeSettings

_STRIDE = 32
_FULL_WIDTH = 256
_STAGES = (
    (32,),
    (64,),
    (128, 64, 128),
    (256, 128, 256),
    (512, 256, 512, 256, 512),
    (1024, 512, 1024, 512, 1024),
)
"""Channels of DarkNet-19's 18 convolutions (Table 6); between stages the resolution halves. Of a
stage the even ones are 3x3, the odd ones 1x1. The 19th is the classifier, which a detector leaves
out.
"""
OBJECT_WEIGHT, NO_OBJECT_WEIGHT = 5.0, 1.0
BACKGROUND_IOU = 0.6
"""A predicted box that overlaps an object more is not trained to be background."""


def yolov2(
    *,
    classes: int,
    norm: Norm = "batch",
    width: int = _FULL_WIDTH,
    base_sizes: Sequence[float] = (32, 64, 128, 256, 512),
    ratios: Sequence[float] = (0.5, 1, 2),
) -> CellDetector:
    """YOLOv2 with the channels of the paper for `width` 256, half of them for 128."""
    shapes = [
        (size / math.sqrt(ratio), size * math.sqrt(ratio))
        for size in base_sizes
        for ratio in ratios
    ]
    return CellDetector(classes, shapes, norm=norm, share=width / _FULL_WIDTH)


def _convolution(channels: int, outputs: int, side: int, norm: Norm) -> nn.Sequential:
    check_choice("norm", norm, NORMS)
    # A narrow network has fewer channels than group normalisation has groups.
    layer = nn.GroupNorm(min(32, outputs), outputs) if norm == "group" else NORMS[norm](outputs)
    return nn.Sequential(
        nn.Conv2d(channels, outputs, side, padding=side // 2, bias=False),
        layer,
        nn.LeakyReLU(0.1, inplace=True),
    )


class DarkNet(nn.Module):
    """DarkNet-19 without its classifier: (B, 3, H, W) -> features of stride 16 and 32."""

    def __init__(self, *, norm: Norm, share: float = 1.0):
        super().__init__()
        stages, channels = [], 3
        for number, widths in enumerate(_STAGES):
            layers: list[nn.Module] = [nn.MaxPool2d(2)] if number else []
            for i, width in enumerate(widths):
                outputs = int(width * share)
                layers.append(_convolution(channels, outputs, 1 if i % 2 else 3, norm))
                channels = outputs
            stages.append(nn.Sequential(*layers))
        self.fine, self.coarse = nn.Sequential(*stages[:-1]), stages[-1]
        self.channels = (int(_STAGES[-2][-1] * share), channels)

    def forward(self, images_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.fine(images_B3HW)
        return fine, self.coarse(fine)


class CellDetector(nn.Module):
    """A `BaselineNetwork`: DarkNet-19 with the layers of yolov2.cfg."""

    shapes_P2: Tensor

    def __init__(
        self, classes: int, shapes: Sequence[tuple[float, float]], *, norm: Norm, share: float
    ):
        super().__init__()
        self.classes = classes
        self.register_buffer("shapes_P2", torch.tensor(shapes), persistent=False)
        self.body = DarkNet(norm=norm, share=share)
        fine, coarse = self.body.channels
        passed = int(64 * share)
        self.deep = nn.Sequential(
            _convolution(coarse, coarse, 3, norm), _convolution(coarse, coarse, 3, norm)
        )
        self.passthrough = nn.Sequential(_convolution(fine, passed, 1, norm), nn.PixelUnshuffle(2))
        self.joined = _convolution(coarse + 4 * passed, coarse, 3, norm)
        self.output = nn.Conv2d(coarse, len(shapes) * (5 + classes), 1)

    def outputs(self, pixels_B3HW: Tensor) -> Tensor:
        """Raw outputs (tx, ty, tw, th, to, class logits), float32 (B, h, w, P, 5 + K)."""
        fine, coarse = self.body(pixels_B3HW)
        joined = self.joined(torch.cat([self.passthrough(fine), self.deep(coarse)], dim=1))
        with torch.autocast(pixels_B3HW.device.type, enabled=False):
            raw = self.output(joined.float())
        return raw.permute(0, 2, 3, 1).unflatten(-1, (-1, 5 + self.classes))

    def boxes(self, raw: Tensor) -> Tensor:
        """Raw outputs -> XYXY px boxes (B, h, w, P, 4) (the paper's section 2, Figure 3)."""
        centres = (raw[..., :2].sigmoid() + _cells(raw)) * _STRIDE
        sides = self.shapes_P2 * raw[..., 2:4].clamp(max=MAX_LOG_SCALE).exp()
        return torch.cat([centres - sides / 2, centres + sides / 2], dim=-1)

    def losses(self, images: ImageList, objects: Sequence[Objects]) -> tuple[Tensor, Tensor]:
        raw = self.outputs(images.tensors)
        with full_precision(images):
            losses = [
                torch.stack(self._image_loss(image, boxes, of_image))
                for image, boxes, of_image in zip(raw, self.boxes(raw), objects, strict=True)
            ]
        classification, box = torch.stack(losses).mean(dim=0)
        return classification, box

    def _image_loss(self, raw: Tensor, boxes: Tensor, objects: Objects) -> tuple[Tensor, Tensor]:
        """Sums over the cells of one image: objectness and class, and coordinates. `raw` is (h, w,
        P, 5 + K), `boxes` (h, w, P, 4).
        """
        rows, columns, _, _ = raw.shape
        overlap_AN = box_iou(boxes.detach().reshape(-1, 4), objects.boxes_N4)
        background_A = overlap_AN.amax(dim=1) <= BACKGROUND_IOU if len(objects.boxes_N4) else None
        objectness_A = raw[..., 4].sigmoid().reshape(-1)
        sides_N2 = objects.boxes_N4[:, 2:] - objects.boxes_N4[:, :2]
        centres_N2 = (objects.boxes_N4[:, :2] + sides_N2 / 2) / _STRIDE
        cells_N2 = centres_N2.floor().long()
        cells_N2 = torch.minimum(cells_N2, cells_N2.new_tensor([columns - 1, rows - 1]))
        anchor_N = _shape_iou(sides_N2, self.shapes_P2).argmax(dim=1)
        flat_N = (cells_N2[:, 1] * columns + cells_N2[:, 0]) * len(self.shapes_P2) + anchor_N
        if background_A is None:
            background_A = torch.ones_like(objectness_A, dtype=torch.bool)
        background_A = background_A.index_fill(0, flat_N, False)
        raw_N = raw.reshape(-1, raw.shape[-1])[flat_N]
        reached_N = overlap_AN[flat_N, torch.arange(len(flat_N), device=flat_N.device)]
        # Darknet's gradients are those of half the squares.
        objectness = (
            OBJECT_WEIGHT * (objectness_A[flat_N] - reached_N).square().sum() / 2
            + NO_OBJECT_WEIGHT * objectness_A[background_A].square().sum() / 2
        )
        classes = nn.functional.cross_entropy(raw_N[:, 5:], objects.labels_N, reduction="sum")
        scale_N2 = (sides_N2 / self.shapes_P2[anchor_N]).clamp(min=1e-6).log()
        wrong_N4 = torch.cat(
            [raw_N[:, :2].sigmoid() - (centres_N2 - cells_N2), raw_N[:, 2:4] - scale_N2], dim=1
        )
        share_N = sides_N2.prod(dim=1) / (rows * columns * _STRIDE**2)
        return objectness + classes, ((2 - share_N)[:, None] * wrong_N4.square()).sum() / 2

    def found(self, images: ImageList, settings: DecodeSettings) -> list[Found]:
        raw = self.outputs(images.tensors)
        with full_precision(images):
            scores = raw[..., 4:5].sigmoid() * raw[..., 5:].softmax(dim=-1)
            return [
                _best(clip_boxes_to_image(boxes.reshape(-1, 4), size), of_image, settings)
                for boxes, of_image, size in zip(
                    self.boxes(raw), scores.flatten(1, 3), images.image_sizes, strict=True
                )
            ]


def _cells(raw: Tensor) -> Tensor:
    """(column, row) of each cell, (h, w, 1, 2)."""
    rows, columns = (torch.arange(extent, device=raw.device) for extent in raw.shape[1:3])
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x, y], dim=-1)[:, :, None]


def _shape_iou(sides_N2: Tensor, shapes_P2: Tensor) -> Tensor:
    """IoU of boxes with a common centre, (N, P)."""
    shared_NP = torch.minimum(sides_N2[:, None], shapes_P2).prod(dim=-1)
    return shared_NP / (sides_N2.prod(-1)[:, None] + shapes_P2.prod(-1) - shared_NP)


def _best(boxes_A4: Tensor, scores_AK: Tensor, settings: DecodeSettings) -> Found:
    """The candidates of the level with the best scores, after NMS."""
    anchor_M, label_M = (scores_AK > settings["score_threshold"]).nonzero(as_tuple=True)
    scores_M = scores_AK[anchor_M, label_M]
    scores_M, best_M = scores_M.topk(min(settings["top_per_level"], len(scores_M)))
    boxes_M4, label_M = boxes_A4[anchor_M[best_M]], label_M[best_M]
    kept = batched_nms(boxes_M4, scores_M, label_M, settings["nms_threshold"])
    kept = kept[: settings["max_detections"]]
    return Found(boxes_M4[kept], scores_M[kept], label_M[kept])
