"""A row of a shard becomes a training sample, in a thread beside the trainer or in a task of Ray
Data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from cluster.errors import DataError
from detector.augment import training_sample
from detector.batch import Batch, Sample, collate
from detector.image import ImageError, open_image
from detector.mixing import mix

_MIXING = ("mosaic", "mixup")
"""Augmentations of a batch; all others are of one image."""

SAMPLES = pa.schema(
    [
        ("image_id", pa.int64()),
        ("copy", pa.int64()),
        ("canvas", pa.int64()),
        ("pixels", pa.binary()),
        ("boxes", pa.list_(pa.list_(pa.float32(), 4))),
        ("labels", pa.list_(pa.int64())),
        ("height", pa.int64()),
        ("width", pa.int64()),
        ("mirrored", pa.bool_()),
    ]
)
"""A sample between processes: uint8 (H, W, 3) pixels of its canvas, and the height and width in px
of the image on it.
"""


@dataclass(frozen=True)
class Sampler:
    """How rows of one set become samples in one epoch. A row has the columns of a shard, `copy` and
    `canvas`.

    The augmentation of an image depends on (seed, epoch, image id) alone and, where an epoch has it
    more than once, on the number of the copy. Mosaic and mixup also show its neighbours in the
    batch, which change when a failure changes the number of ranks.
    """

    canvases: Sequence[tuple[int, int]]
    """(height, width) px; a row's `canvas` is an index into them."""
    long_side: int | None
    """Most px of the longer side of an image on its canvas; None: no limit."""
    classes: int
    seed: int
    epoch: int
    augmentation: dict[str, Any]
    """Keywords of `detector.augment.training_sample`, and `mosaic` and `mixup` of
    `detector.mixing.mix`.
    """
    mirror_later: bool = False
    """Leave flips to the GPU, except where images are mixed before."""

    def sample(self, row: dict[str, Any], out: Tensor | None = None) -> Sample:
        """The image is drawn on `out`, the memory of its canvas in a batch, if one is given.
        `DataError` names an image that cannot be decoded.
        """
        boxes, labels = row_boxes(row)
        crowd = np.asarray(row["crowd"], dtype=bool)
        with naming_image(row):
            return training_sample(
                open_image(row["image"]),
                boxes,
                np.where(crowd, -1, labels),
                row["image_id"],
                canvas=self.canvases[row["canvas"]],
                long_side=self.long_side,
                generator=self._generator(row["image_id"], row["copy"]),
                mirror_later=self.mirror_later and not self._mixing,
                out=out,
                **{name: value for name, value in self.augmentation.items() if name not in _MIXING},
            )

    def _generator(self, image_id: int, copy: int) -> np.random.Generator:
        # A filler's id is -1, and seeds must not be negative. The first copy has the random numbers
        # of an image that occurs once.
        return np.random.default_rng(
            (self.seed, self.epoch, image_id % 2**63, *([copy] if copy else []))
        )

    @property
    def _mixing(self) -> bool:
        return any(self.augmentation.get(name) for name in _MIXING)

    def batch(
        self, samples: Sequence[Sample], copies: Sequence[int], images: Tensor | None = None
    ) -> Batch:
        """Samples of one canvas, with the copy number of each, mixed where configured and stacked;
        `images` as in `collate`.
        """
        if self._mixing:
            settings = {
                name: value
                for name, value in self.augmentation.items()
                if name in (*_MIXING, "min_visible")
            }
            generators = [
                self._generator(sample.image_id, copy)
                for sample, copy in zip(samples, copies, strict=True)
            ]
            samples = mix(samples, generators=generators, **settings)
        return collate(samples, classes=self.classes, images=images)

    def __call__(self, rows: pa.Table) -> pa.Table:
        """`sample` in a task of Ray Data: rows to `SAMPLES`."""
        torch.set_num_threads(1)
        return pa.Table.from_pylist([self._sent(row) for row in rows.to_pylist()], schema=SAMPLES)

    def _sent(self, row: dict[str, Any]) -> dict[str, Any]:
        sample = self.sample(row)
        return {
            **{name: row[name] for name in ("image_id", "copy", "canvas")},
            "pixels": sample.image.permute(1, 2, 0).numpy().tobytes(),
            "boxes": list(sample.boxes_N4),
            "labels": sample.labels_N,
            "height": sample.size[0],
            "width": sample.size[1],
            "mirrored": sample.mirrored,
        }

    def received(self, row: dict[str, Any], out: Tensor) -> Sample:
        """The sample of a row of `SAMPLES`, with its image copied to `out`."""
        boxes, labels = row_boxes(row)
        out.permute(1, 2, 0).numpy()[:] = np.frombuffer(row["pixels"], np.uint8).reshape(
            *self.canvases[row["canvas"]], 3
        )
        return Sample(
            out, boxes, labels, (row["height"], row["width"]), row["image_id"], row["mirrored"]
        )


@contextmanager
def naming_image(row: Mapping[str, Any]) -> Iterator[None]:
    """An `ImageError` becomes a `DataError` that names the image of the row."""
    try:
        yield
    except ImageError as error:
        raise DataError(
            f"{row['file_name']} (image_id {row['image_id']}): {error}; prepare the data set again"
        ) from error


def row_boxes(row: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """float32 (N, 4) XYXY px and int64 (N,) labels 0..K-1 of a row."""
    return np.asarray(row["boxes"], np.float32).reshape(-1, 4), np.asarray(row["labels"], np.int64)
