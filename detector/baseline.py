"""What a detector must offer to be compared with RetinaNet: it takes this project's batches and
answers with its detections. `detector.baselines` is the table of them.

Shapes: B batch, G ground-truth slots, N objects or detections of one image. Crowds and other ignore
regions (label -1) are removed: these detectors do not support them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, Unpack, cast

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from detector.decode import DecodeSettings, Detections
from detector.model import PixelNetwork


class Objects(NamedTuple):
    """The objects of one image."""

    boxes_N4: Tensor
    """float32, XYXY px on the canvas."""
    labels_N: Tensor
    """int64, 0..K-1."""


class Found(NamedTuple):
    """The detections of one image, best first."""

    boxes_N4: Tensor
    """float32, XYXY px on the canvas, clipped to the picture."""
    scores_N: Tensor
    """float32, 0..1."""
    labels_N: Tensor
    """int64, 0..K-1."""


class BaselineNetwork(Protocol):
    """The contract of a baseline, a `nn.Module` too. `images` holds normalised pixels (B, 3, H, W),
    H and W multiples of 32, and the (height, width) px of each picture, which lies at the top left
    of its canvas.

    The layers that read pixels run under the caller's autocast. All that computes boxes runs in
    float32 (`full_precision`): bfloat16 has steps of 2 px at 800 px. Every parameter that is
    trained gets a gradient in every step, also from images without objects, because
    DistributedDataParallel waits for it.
    """

    def losses(self, images: ImageList, objects: Sequence[Objects]) -> tuple[Tensor, Tensor]:
        """Classification and box loss of the batch, float32 scalars, each averaged as the
        detector's authors do it. Both are finite for images without objects.
        """
        ...

    def found(self, images: ImageList, settings: DecodeSettings) -> list[Found]:
        """The detections of each image. A network says in `detector.choices` which settings it
        does not use.
        """
        ...


def full_precision(images: ImageList) -> torch.autocast:
    """The context for arithmetic with boxes."""
    return torch.autocast(images.tensors.device.type, enabled=False)


def refuse_no_classes(classes: int) -> None:
    """`ValueError` for a network without classes."""
    if classes < 1:
        raise ValueError(
            f"classes {classes}: must be at least 1; does the data set have categories?"
        )


class Baseline(PixelNetwork):
    """A `BaselineNetwork`, untrained, with the interface of a network of this project. In training
    mode a call returns losses, in evaluation mode `detect` returns detections; both for batches of
    one canvas. Faster R-CNN's losses draw samples from torch's global generator.
    """

    def __init__(self, detector: BaselineNetwork, *, classes: int):
        super().__init__()
        self.classes = classes
        self.detector = cast(nn.Module, detector)

    def forward(
        self, images_B3HW: Tensor, sizes_B2: Tensor, boxes_BG4: Tensor, labels_BG: Tensor
    ) -> Tensor:
        """The fields of a `Batch` -> float32 (2,): classification and box loss."""
        objects = [
            Objects(boxes[labels >= 0], labels[labels >= 0])
            for boxes, labels in zip(boxes_BG4, labels_BG, strict=True)
        ]
        return torch.stack(self._network.losses(self._images(images_B3HW, sizes_B2), objects))

    @torch.no_grad()
    def detect(
        self, images_B3HW: Tensor, sizes_B2: Tensor, **decode: Unpack[DecodeSettings]
    ) -> list[Detections]:
        """Detections of each image, XYXY px on the canvas, clipped to the picture's (height, width)
        on it: `decode_detections` for this network, which must be in evaluation mode.
        """
        assert not self.training
        found = self._network.found(self._images(images_B3HW, sizes_B2), decode)
        return [Detections(*(column.cpu().numpy() for column in image)) for image in found]

    @property
    def _network(self) -> BaselineNetwork:
        return cast(BaselineNetwork, self.detector)

    def _images(self, images_B3HW: Tensor, sizes_B2: Tensor) -> ImageList:
        sizes = [(int(height), int(width)) for height, width in sizes_B2.tolist()]
        return ImageList(self.normalised(images_B3HW), sizes)
