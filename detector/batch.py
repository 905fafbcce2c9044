"""Samples -> one Batch of fixed shapes. Shapes: B batch, G ground-truth slots, M objects of all
samples, H W the canvas.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

_SLOT_STEP = 16
"""Slots are padded to a multiple of this, so that compiled code sees few shapes."""

_EVERYTHING = (-1e6, -1e6, 1e6, 1e6)
"""An ignore region, XYXY px, that covers every anchor: those of P7 reach far beyond a small canvas.
"""

Beside = TypeVar("Beside")
"""What goes with a sample."""

_Event = torch.cuda.Event | torch.Event


@dataclass(frozen=True)
class Sample:
    """One image on its canvas with its objects."""

    image: Tensor
    """uint8 (3, H, W), RGB."""
    boxes_N4: np.ndarray
    """float32 (N, 4), XYXY px on the canvas."""
    labels_N: np.ndarray
    """int64 (N,), 0..K-1; -1: an ignore region (a crowd, or an object that is mostly cropped)."""
    size: tuple[int, int]
    """(height, width) px of the picture on the canvas, from the top left corner."""
    image_id: int
    """The data set's id; -1 for a filler, which has no loss and is not counted."""
    mirrored: bool = False
    """The boxes are flipped left to right, the picture is not yet."""


@dataclass(frozen=True)
class Batch:
    """Samples on one canvas, padded to the same number of ground-truth slots."""

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
    """bool: boxes are flipped left to right, pictures are not yet; see `unmirrored`."""

    def to(self, device: torch.device | str) -> Batch:
        return self._each(lambda column: column.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """In memory that a GPU can copy from by itself; a batch that is there stays."""
        return self._each(torch.Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return Batch(*(change(getattr(self, name)) for name in self.__dataclass_fields__))


def on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """The same batches on `device`. A GPU copies each from pinned memory, in a separate stream,
    while the batch before it is used. A batch that is not in pinned memory is copied there first,
    in this thread.
    """
    if device.type != "cuda":
        yield from batches
        return
    copies, used = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    waiting: tuple[Batch, _Event] | None = None
    for batch in batches:
        with torch.cuda.stream(copies):
            moved = unmirrored(batch.pinned().to(device))
            copied = (moved, copies.record_event())
        if waiting is not None:
            yield _handed_over(*waiting, used)
        waiting = copied
    if waiting is not None:
        yield _handed_over(*waiting, used)


def unmirrored(batch: Batch) -> Batch:
    """The batch with the pictures of `mirrored_B` flipped left to right, each within its own part
    of the canvas: one pass, without waiting for the device.
    """
    column_W = torch.arange(batch.images.shape[3], device=batch.images.device)
    width_B1 = batch.sizes_B2[:, 1:].long()
    turned_BW = batch.mirrored_B[:, None] & (column_W < width_B1)
    source_BW = torch.where(turned_BW, width_B1 - 1 - column_W, column_W)
    images = batch.images.gather(3, source_BW[:, None, None].expand_as(batch.images)).contiguous(
        memory_format=torch.channels_last
    )
    return replace(batch, images=images, mirrored_B=torch.zeros_like(batch.mirrored_B))


def _handed_over(batch: Batch, copied: _Event, used: torch.cuda.Stream) -> Batch:
    """The batch, for work in the stream `used`, which waits until it is copied."""
    used.wait_event(copied)

    def reserved(column: Tensor) -> Tensor:
        # Otherwise the next copy could get the memory while it is still being read.
        column.record_stream(used)
        return column

    return batch._each(reserved)


def check_objects(
    boxes_N4: np.ndarray, labels_N: np.ndarray, image_id: int, *, classes: int | None = None
) -> None:
    """`ValueError` for coordinates that are not finite, and for labels outside -1..classes - 1
    (without `classes` there is no upper bound).
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


def empty_canvases(count: int, canvas: tuple[int, int], *, pinned: bool = False) -> Tensor:
    """uint8 (count, 3, H, W), channels-last, not initialised. Numpy asks the system for large pages
    where a batch is large enough; torch does not.

    `pinned`: memory that a GPU can copy from by itself. torch keeps what was pinned once: memory
    whose tensors are gone is given out again as soon as the copies from it are done, so a few
    batches' worth of it serves a whole training.
    """
    shape = (count, *canvas, 3)
    if pinned:
        memory = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
    else:
        memory = torch.from_numpy(np.empty(shape, np.uint8))
    return memory.permute(0, 3, 1, 2)


def collate(
    samples: Sequence[Sample], *, classes: int | None = None, images: Tensor | None = None
) -> Batch:
    """Stack samples of one canvas. A filler loses its objects, and its whole picture becomes an
    ignore region.

    `images` are the batch's `empty_canvases`; a sample whose picture was written there, at its own
    index, is not copied. `ValueError` as in `check_objects`. The check is here because the numbers
    are on the CPU for the last time: in the loss a too large label is an index out of bounds, and
    on a GPU an assertion that ends the process.
    """
    boxes_M4, labels_M = (
        np.concatenate([sample.boxes_N4 for sample in samples]),
        np.concatenate([sample.labels_N for sample in samples]),
    )
    try:
        check_objects(boxes_M4, labels_M, -1, classes=classes)
    except ValueError:
        # Checked one by one only when the message needs the id.
        for sample in samples:
            check_objects(sample.boxes_N4, sample.labels_N, sample.image_id, classes=classes)
        raise
    if images is None:
        _, height, width = samples[0].image.shape
        images = empty_canvases(len(samples), (height, width))
    for canvas, sample in zip(images, samples, strict=True):
        if canvas.data_ptr() != sample.image.data_ptr():
            canvas[:] = sample.image
    real, counts = (
        np.array([sample.image_id >= 0 for sample in samples]),
        np.array([len(sample.labels_N) for sample in samples]),
    )
    slots = -(-max(1, counts.max()) // _SLOT_STEP) * _SLOT_STEP
    filled_BG, real_M = np.arange(slots) < (counts * real)[:, None], real.repeat(counts)
    boxes = np.zeros((*filled_BG.shape, 4), np.float32)
    labels = np.full(filled_BG.shape, -1, np.int64)
    boxes[filled_BG], labels[filled_BG] = boxes_M4[real_M], labels_M[real_M]
    boxes[~real, 0] = _EVERYTHING
    return Batch(
        images=images,
        boxes_BG4=torch.from_numpy(boxes),
        labels_BG=torch.from_numpy(labels),
        sizes_B2=torch.tensor([s.size for s in samples], dtype=torch.float32),
        image_ids=torch.tensor([s.image_id for s in samples], dtype=torch.int64),
        mirrored_B=torch.tensor([s.mirrored for s in samples]),
    )


def collate_by_canvas(
    pairs: Iterable[tuple[Sample, Beside]], size: int
) -> Iterator[tuple[Batch, list[Beside]]]:
    """Every sample once, in batches of `size` samples of one canvas, each as soon as it is full;
    shorter ones at the end. Beside each batch comes what was beside its samples, such as the
    original (height, width) px of their pictures.
    """
    return collate_pictures(([pair] for pair in pairs), size)


def collate_pictures(
    pictures: Iterable[Iterable[tuple[Sample, Beside]]], size: int
) -> Iterator[tuple[Batch, list[Beside]]]:
    """`collate_by_canvas` for pictures of which the network sees several views, each on the canvas
    that it prefers.

    The views of `size` pictures, whose first views are on one canvas, share batches, and no batch
    has views of others: so the batches of these pictures do not depend on what comes before and
    after. The views are taken one by one and are not held longer than a batch needs.
    """
    groups: dict[torch.Size, _Group[Beside]] = {}
    for views in pictures:
        key: torch.Size | None = None
        for sample, beside in views:
            if key is None:
                key = sample.image.shape
            waiting = groups.setdefault(key, _Group()).waiting
            filling = waiting.setdefault(sample.image.shape, [])
            filling.append((sample, beside))
            if len(filling) == size:
                yield _collated(waiting.pop(sample.image.shape))
        assert key is not None, "a picture has a view"
        groups[key].pictures += 1
        if groups[key].pictures == size:
            yield from map(_collated, groups.pop(key).waiting.values())
    for group in groups.values():
        yield from map(_collated, group.waiting.values())


@dataclass
class _Group(Generic[Beside]):
    """Pictures whose views share batches."""

    pictures: int = 0
    """That are complete."""
    waiting: dict[torch.Size, list[tuple[Sample, Beside]]] = field(default_factory=dict)
    """Views that fill no batch yet, by canvas."""


def _collated(pairs: Sequence[tuple[Sample, Beside]]) -> tuple[Batch, list[Beside]]:
    return collate([sample for sample, _ in pairs]), [beside for _, beside in pairs]
