"""torchvision's Faster R-CNN and FCOS with this project's batches, backbone, pyramid and
detections: what RetinaNet is compared with, untuned.

Shapes: B batch, G ground-truth slots. Crowds and other ignore regions (label -1) are left out:
these detectors have no notion of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FasterRCNN
from torchvision.models.detection.fcos import FCOS
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import initLevelMapper

from detector.backbone import DEEPEST_STRIDE, Backbone, Pyramid, check_choice
from detector.batch import Batch
from detector.decode import Detections
from detector.loss import FIRST_AVERAGE
from detector.model import PIXEL_MEAN, PIXEL_STD, RetinaNet
from detector.step import Statistics, StepReport, split, update, without_reduction

POOLED_STRIDES = (4, 8, 16, 32)
"""The levels from which Faster R-CNN cuts its regions; proposals also come from a coarser one,
stride 64.
"""
DENSE_STRIDES = (8, 16, 32, 64, 128)
SHARED_PARTS = ("classes", "backbone", "norm", "frozen_stages", "stride_in", "width")
PARTS = {"faster_rcnn": (*SHARED_PARTS, "base_sizes", "ratios"), "fcos": (*SHARED_PARTS, "p6_from")}
"""Which keywords of `RetinaNet` each baseline has a use for."""


def build_model(*, architecture: str = "retinanet", **parts: Any) -> RetinaNet | Baseline:
    """The network of a description: `parts` are the keywords of `RetinaNet`, of which a baseline
    takes those in `PARTS`.
    """
    if architecture == "retinanet":
        return RetinaNet(**parts)
    check_choice("architecture", architecture, ("retinanet", *PARTS))
    return Baseline(
        architecture, **{name: parts[name] for name in PARTS[architecture] if name in parts}
    )


class Features(nn.Module):
    """Our backbone and pyramid in the form that torchvision's detectors take: (B, 3, H, W) ->
    float32 levels by name, finest first.
    """

    def __init__(
        self,
        backbone: str,
        *,
        strides: Sequence[int],
        width: int,
        p6_from: str,
        pooled: bool,
        **body: Any,
    ):
        super().__init__()
        self.body = Backbone(
            backbone, strides=[stride for stride in strides if stride <= DEEPEST_STRIDE], **body
        )
        self.pyramid = Pyramid(self.body.channels, strides=strides, width=width, p6_from=p6_from)
        self.out_channels = width
        self.pooled = pooled

    def forward(self, images_B3HW: Tensor) -> dict[str, Tensor]:
        levels = {
            str(i): level.float() for i, level in enumerate(self.pyramid(self.body(images_B3HW)))
        }
        if self.pooled:
            levels["pool"] = nn.functional.max_pool2d(
                levels[str(len(levels) - 1)], kernel_size=1, stride=2
            )
        return levels


class Baseline(nn.Module):
    """One of torchvision's detectors, from scratch. Called in training mode it gives losses, by
    `detect` detections; both on batches of one canvas.

    Backbone and pyramid run under the caller's autocast; what follows stays in float32: torchvision
    computes anchors and boxes in the dtype of the features, and bfloat16 places a corner at 800 px
    to within 2 px. Faster R-CNN's losses draw samples from torch's global generator.
    """

    def __init__(
        self,
        architecture: str,
        *,
        classes: int,
        backbone: str = "resnet50",
        norm: str = "batch",
        frozen_stages: int = 0,
        stride_in: str = "3x3",
        width: int = 256,
        p6_from: str = "p5",
        base_sizes: Sequence[float] = (32, 64, 128, 256, 512),
        ratios: Sequence[float] = (0.5, 1, 2),
    ):
        super().__init__()
        if classes < 1:
            raise ValueError(
                f"classes {classes}: must be at least 1; does the data set have categories?"
            )
        self.classes = classes
        trunk = dict(
            norm=norm,
            frozen_stages=frozen_stages,
            stride_in=stride_in,
            width=width,
            p6_from=p6_from,
        )
        if architecture == "faster_rcnn":
            pool = MultiScaleRoIAlign(
                [str(i) for i in range(len(POOLED_STRIDES))], output_size=7, sampling_ratio=2
            )
            # torchvision infers the scales from the first pictures that come along, but on a canvas
            # the features cover more than a picture.
            pool.scales, pool.map_levels = (
                [1 / stride for stride in POOLED_STRIDES],
                initLevelMapper(2, 5),
            )
            anchors = AnchorGenerator(
                tuple((size,) for size in base_sizes), (tuple(ratios),) * len(base_sizes)
            )
            features = Features(backbone, strides=POOLED_STRIDES, pooled=True, **trunk)
            self.detector = FasterRCNN(
                features, classes + 1, rpn_anchor_generator=anchors, box_roi_pool=pool
            )
        else:
            self.detector = FCOS(
                Features(backbone, strides=DENSE_STRIDES, pooled=False, **trunk), classes
            )
        # Label 0 of Faster R-CNN is the background.
        self.first_label = 1 if architecture == "faster_rcnn" else 0
        self.register_buffer(
            "pixel_mean", torch.tensor(PIXEL_MEAN).view(1, 3, 1, 1), persistent=False
        )
        self.register_buffer(
            "pixel_std", torch.tensor(PIXEL_STD).view(1, 3, 1, 1), persistent=False
        )

    def forward(
        self, images_B3HW: Tensor, sizes_B2: Tensor, boxes_BG4: Tensor, labels_BG: Tensor
    ) -> Tensor:
        """The fields of a `Batch` -> float32 (2,): its classification and its box loss, each a mean
        in the way of its detector.
        """
        objects = [
            (boxes[labels >= 0], labels[labels >= 0])
            for boxes, labels in zip(boxes_BG4, labels_BG, strict=True)
        ]
        targets = [
            {"boxes": boxes, "labels": labels + self.first_label} for boxes, labels in objects
        ]
        _, losses = self.run(images_B3HW, sizes_B2, targets)
        # torchvision's names: loss_box_reg, loss_rpn_box_reg, bbox_regression, bbox_ctrness;
        # loss_classifier, loss_objectness, classification.
        box = sum(loss for name, loss in losses.items() if "box" in name)
        return torch.stack([sum(losses.values()) - box, box])

    @torch.no_grad()
    def detect(
        self,
        images_B3HW: Tensor,
        sizes_B2: Tensor,
        *,
        score_threshold: float,
        top_per_level: int,
        nms_threshold: float,
        max_detections: int,
    ) -> list[Detections]:
        """Detections of each image in the frame of the canvas, cut to the picture's (height, width)
        on it: `decode_detections` for this network.

        `top_per_level` has no counterpart in Faster R-CNN, which keeps the 1000 best proposals of
        an image. The network must be in evaluation mode.
        """
        assert not self.training
        last = self.detector.roi_heads if self.first_label else self.detector
        last.score_thresh, last.nms_thresh, last.detections_per_img = (
            score_threshold,
            nms_threshold,
            max_detections,
        )
        last.topk_candidates = top_per_level
        found, _ = self.run(images_B3HW, sizes_B2, None)
        columns = [(f["boxes"], f["scores"], f["labels"] - self.first_label) for f in found]
        return [Detections(*(column.cpu().numpy() for column in image)) for image in columns]

    def run(
        self, images_B3HW: Tensor, sizes_B2: Tensor, targets: list[dict[str, Tensor]] | None
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """(detections, losses) of torchvision's modules without its own resizing and normalising;
        boxes are cut to the pictures, not the canvas.
        """
        pixels = ((images_B3HW - self.pixel_mean) / self.pixel_std).contiguous(
            memory_format=torch.channels_last
        )
        images = ImageList(
            pixels, [(int(height), int(width)) for height, width in sizes_B2.tolist()]
        )
        features = self.detector.backbone(pixels)
        with torch.autocast(pixels.device.type, enabled=False):
            if self.first_label:
                proposals, region_losses = self.detector.rpn(images, features, targets)
                found, head_losses = self.detector.roi_heads(
                    features, proposals, images.image_sizes, targets
                )
                return found, region_losses | head_losses
            levels = list(features.values())
            outputs, anchors = (
                self.detector.head(levels),
                self.detector.anchor_generator(images, levels),
            )
            counts = [level.shape[2] * level.shape[3] for level in levels]
            if targets is not None:
                return [], self.detector.compute_loss(targets, outputs, anchors, counts)
            by_level = {name: list(output.split(counts, dim=1)) for name, output in outputs.items()}
            return self.detector.postprocess_detections(
                by_level, [list(a.split(counts)) for a in anchors], images.image_sizes
            ), {}


def baseline_step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    *,
    learning_rate: float,
    clip_norm: float,
    box_weight: float,
    amp_dtype: torch.dtype | None,
    accumulate: int = 1,
    sum_over_ranks: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    ranks: int = 1,
) -> StepReport:
    """`train_step` for a `Baseline`, which may be wrapped in DDP: each part of the batch weighs as
    many images as it has, fillers not counted.

    The report's positives are the objects of the global batch. What is not finite is left out as in
    `train_step`; of images, those of a part are blamed together. torchvision's detectors ask their
    device for numbers, and so does this.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    real_B = batch.image_ids >= 0
    counts = torch.stack([real_B.sum(), (batch.labels_BG >= 0).sum()]).float()
    images, objects = sum_over_ranks(counts).tolist()
    statistics = Statistics(network)
    optimizer.zero_grad(set_to_none=True)
    own, finite, shares = [], [], []
    for place, part in enumerate(split(batch, accumulate), start=1):
        kept_B = part.image_ids >= 0
        # Every rank makes the same number of passes: one with nothing but fillers makes its own for
        # nothing.
        shares.append(float(kept_B.sum()) / max(images, 1.0))
        if not shares[-1]:
            kept_B = torch.ones_like(kept_B)
        with contextlib.nullcontext() if place == accumulate else without_reduction(network):
            with torch.autocast(
                batch.images.device.type, dtype=amp_dtype, enabled=amp_dtype is not None
            ):
                losses_2 = network(
                    *(
                        column[kept_B]
                        for column in (part.images, part.sizes_B2, part.boxes_BG4, part.labels_BG)
                    )
                )
            (ranks * shares[-1] * (losses_2[0] + box_weight * losses_2[1])).backward()
        own.append(losses_2.detach())
        finite.append(losses_2.detach().isfinite().all().expand(len(part.images)))
    own_2P = torch.stack(own, dim=1)
    losses_2 = sum_over_ranks(own_2P @ own_2P.new_tensor(shares))
    norm, _ = update(network, optimizer, statistics, losses_2, clip_norm=clip_norm)
    values_5 = torch.stack(
        [*losses_2, losses_2.new_tensor(objects), norm, losses_2.new_tensor(FIRST_AVERAGE)]
    )
    return StepReport(values_5, torch.cat(finite), batch.image_ids)
