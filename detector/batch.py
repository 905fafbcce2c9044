"""Samples -> one Batch of fixed shapes. Shapes: B batch, G ground-truth slots, M objects of all
samples, H W the canvas.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

SLOT_STEP = 16
"""Slots are padded to a multiple of this, so that compiled code sees few shapes."""

EVERYTHING = (-1e6, -1e6, 1e6, 1e6)
"""An ignore region that covers every anchor: those of P7 reach far beyond the edges of a small
canvas.
"""


@dataclass(frozen=True)
class Sample:
    """One image on its canvas with its objects."""

    image: Tensor
    """uint8 (3, H, W), RGB."""
    boxes_N4: np.ndarray
    """float32 (N, 4), XYXY px on the canvas."""
    labels_N: np.ndarray
    """int64 (N,), 0..K-1; -1 marks an ignore region (a crowd, or an object mostly cropped away)."""
    size: tuple[int, int]
    """Height and width in px of the picture's part of the canvas, at its top left."""
    image_id: int
    """The data set's id; -1 for a filler that carries no loss and is not counted."""
    mirrored: bool = False
    """The picture is yet to be flipped left to right; its boxes are."""


@dataclass(frozen=True)
class Batch:
    images: Tensor
    """uint8 (B, 3, H, W), RGB, channels-last."""
    boxes_BG4: Tensor
    """float32, XYXY px on the canvas; padded with zeros."""
    labels_BG: Tensor
    """int64, 0..K-1; -1 for padding and ignore regions."""
    sizes_B2: Tensor
    """float32 (height, width) px of the picture on the canvas."""
    image_ids: Tensor
    """int64 (B,); -1 for fillers."""
    mirrored_B: Tensor
    """bool: pictures that are yet to be flipped left to right, see `unmirrored`."""

    def to(self, device: torch.device | str) -> Batch:
        return self.each(lambda column: column.to(device, non_blocking=True))

    def each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return Batch(*(change(getattr(self, name)) for name in self.__dataclass_fields__))


def on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """The same batches on `device`. On a GPU each is copied from pinned memory in a stream of its
    own while the one before it is used.
    """
    if device.type != "cuda":
        yield from batches
        return
    copies, used = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    waiting: tuple[Batch, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(copies):
            moved = unmirrored(batch.each(torch.Tensor.pin_memory).to(device))
            copied = (moved, copies.record_event())
        if waiting is not None:
            yield hand_over(*waiting, used)
        waiting = copied
    if waiting is not None:
        yield hand_over(*waiting, used)


def unmirrored(batch: Batch) -> Batch:
    """The batch with the pictures of `mirrored_B` flipped, each within its own part of the canvas:
    one pass, no wait for the device.
    """
    column_W = torch.arange(batch.images.shape[3], device=batch.images.device)
    width_B1 = batch.sizes_B2[:, 1:].long()
    turned_BW = batch.mirrored_B[:, None] & (column_W < width_B1)
    source_BW = torch.where(turned_BW, width_B1 - 1 - column_W, column_W)
    images = batch.images.gather(3, source_BW[:, None, None].expand_as(batch.images)).contiguous(
        memory_format=torch.channels_last
    )
    return replace(batch, images=images, mirrored_B=torch.zeros_like(batch.mirrored_B))


def hand_over(batch: Batch, copied: torch.cuda.Event, used: torch.cuda.Stream) -> Batch:
    """The batch, for work in the stream `used`, which waits until it is copied."""
    used.wait_event(copied)
    # Else the memory would be given to the next copy while it is still read.
    return batch.each(lambda column: column.record_stream(used) or column)


def check_objects(
    boxes_N4: np.ndarray, labels_N: np.ndarray, image_id: int, *, classes: int | None = None
) -> None:
    """`ValueError` for coordinates that are not finite and labels outside -1..classes - 1 (without
    `classes` there is no upper bound).
    """
    if not np.isfinite(boxes_N4).all():
        bad = boxes_N4[~np.isfinite(boxes_N4).all(axis=1)][0].tolist()
        raise ValueError(
            f"boxes of image_id {image_id}, {bad}: coordinates must be finite numbers of px;"
            " prepare the data set again"
        )
    most = np.inf if classes is None else classes - 1
    if len(labels_N) and (labels_N.min() < -1 or labels_N.max() > most):
        bad = labels_N[(labels_N < -1) | (labels_N > most)][0]
        rule = (
            "at least -1"
            if classes is None
            else f"within 0..{classes - 1}, or -1 for an ignore region"
        )
        raise ValueError(
            f"labels of image_id {image_id}, {bad}: must be {rule}; prepare the data set again,"
            " with the categories of the model"
        )


def empty_canvases(count: int, canvas: tuple[int, int]) -> Tensor:
    """uint8 (count, 3, H, W), channels-last, of no certain content. Numpy asks for large pages
    where a batch is large enough, torch does not.
    """
    return torch.from_numpy(np.empty((count, *canvas, 3), np.uint8)).permute(0, 3, 1, 2)


def collate(
    samples: Sequence[Sample], *, classes: int | None = None, images: Tensor | None = None
) -> Batch:
    """Stack samples that share a canvas; the objects of a filler become nothing and its whole
    picture an ignore region.

    `images` are the batch's `empty_canvases`, on which pictures may be drawn already: one whose
    sample lies there in its own place is not copied. `ValueError` for what `check_objects` finds,
    here because it is the last place where the numbers are on the CPU: in the loss a label too
    large is an index out of bounds, on a GPU an assertion that ends the process.
    """
    boxes_M4, labels_M = (
        np.concatenate([sample.boxes_N4 for sample in samples]),
        np.concatenate([sample.labels_N for sample in samples]),
    )
    try:
        check_objects(boxes_M4, labels_M, -1, classes=classes)
    except ValueError:
        # Looked at one by one only where there is one to be named.
        for sample in samples:
            check_objects(sample.boxes_N4, sample.labels_N, sample.image_id, classes=classes)
        raise
    if images is None:
        images = empty_canvases(len(samples), samples[0].image.shape[1:])
    for place, sample in zip(images, samples, strict=True):
        if place.data_ptr() != sample.image.data_ptr():
            place[:] = sample.image
    real, counts = (
        np.array([sample.image_id >= 0 for sample in samples]),
        np.array([len(sample.labels_N) for sample in samples]),
    )
    slots = -(-max(1, counts.max()) // SLOT_STEP) * SLOT_STEP
    held_BG, held_M = np.arange(slots) < (counts * real)[:, None], real.repeat(counts)
    boxes, labels = np.zeros((*held_BG.shape, 4), np.float32), np.full(held_BG.shape, -1, np.int64)
    boxes[held_BG], labels[held_BG] = boxes_M4[held_M], labels_M[held_M]
    boxes[~real, 0] = EVERYTHING
    return Batch(
        images=images,
        boxes_BG4=torch.from_numpy(boxes),
        labels_BG=torch.from_numpy(labels),
        sizes_B2=torch.tensor([s.size for s in samples], dtype=torch.float32),
        image_ids=torch.tensor([s.image_id for s in samples], dtype=torch.int64),
        mirrored_B=torch.tensor([s.mirrored for s in samples]),
    )


def collate_by_canvas(
    pairs: Iterable[tuple[Sample, tuple[int, int]]], size: int
) -> Iterator[tuple[Batch, list[tuple[int, int]]]]:
    """Every sample once, in batches of `size` that share a canvas, as they fill; what is left at
    the end in shorter ones.

    `pairs` are samples with the original (height, width) px of their pictures, which come back
    beside each batch.
    """
    waiting: dict[torch.Size, list[tuple[Sample, tuple[int, int]]]] = {}
    for sample, original in pairs:
        filling = waiting.setdefault(sample.image.shape, [])
        filling.append((sample, original))
        if len(filling) == size:
            del waiting[sample.image.shape]
            yield collate([sample for sample, _ in filling]), [original for _, original in filling]
    for rest in waiting.values():
        yield collate([sample for sample, _ in rest]), [original for _, original in rest]
