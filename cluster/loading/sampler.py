"""A row of a shard -> a training sample, in whichever process it is made: a thread beside the
trainer or a task of Ray Data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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

MIXING = ("mosaic", "mixup")
"""What is done to a batch and not to one picture."""

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
"""A sample between processes: uint8 (H, W, 3) pixels of its canvas, and height and width px of the
picture on it.
"""


@dataclass(frozen=True)
class Sampler:
    """How rows of one set become samples in one epoch. A row is one of a shard with two columns
    more: `copy` and `canvas`.

    The augmentation of an image depends on (seed, epoch, image id) alone and, where an epoch holds
    it more than once, on the number of the copy. Mosaic and mixup show its neighbours in the batch
    too, and those change where a failure leaves another number of ranks.
    """

    canvases: Sequence[tuple[int, int]]
    """(height, width) px; a row's `canvas` is the number of its own."""
    long_side: int | None
    """px that the longer side of a picture must not pass on it."""
    classes: int
    seed: int
    epoch: int
    augmentation: dict[str, Any]
    """Keywords of `detector.augment.training_sample`, and `mosaic` and `mixup` of
    `detector.mixing.mix`.
    """
    mirror_later: bool = False
    """Flips are left to the GPU, except where pictures are mixed before."""

    def sample(self, row: dict[str, Any], out: Tensor | None = None) -> Sample:
        """The picture is drawn on `out`, a place of its canvas in a batch, if one is given.
        `DataError` names a picture that cannot be decoded.
        """
        boxes, labels = row_boxes(row)
        crowd = np.asarray(row["crowd"], dtype=bool)
        with named(row):
            return training_sample(
                open_image(row["image"]),
                boxes,
                np.where(crowd, -1, labels),
                row["image_id"],
                canvas=self.canvases[row["canvas"]],
                long_side=self.long_side,
                generator=self.generator(row["image_id"], row["copy"]),
                mirror_later=self.mirror_later and not self.mixing,
                out=out,
                **{name: value for name, value in self.augmentation.items() if name not in MIXING},
            )

    def generator(self, image_id: int, copy: int) -> np.random.Generator:
        # A filler's id is -1, and seeds must not be negative. The first copy has the numbers of an
        # image that is there once.
        return np.random.default_rng(
            (self.seed, self.epoch, image_id % 2**63, *([copy] if copy else []))
        )

    @property
    def mixing(self) -> bool:
        return any(self.augmentation.get(name) for name in MIXING)

    def batch(
        self, samples: Sequence[Sample], copies: Sequence[int], images: Tensor | None = None
    ) -> Batch:
        """Samples of one canvas, with the number of the copy that each is, mixed where that is
        asked for and stacked; `images` as of `collate`.
        """
        if self.mixing:
            settings = {
                name: value
                for name, value in self.augmentation.items()
                if name in (*MIXING, "min_visible")
            }
            generators = [
                self.generator(sample.image_id, copy)
                for sample, copy in zip(samples, copies, strict=True)
            ]
            samples = mix(samples, generators=generators, **settings)
        return collate(samples, classes=self.classes, images=images)

    def __call__(self, rows: pa.Table) -> pa.Table:
        """`sample` for Ray Data, in tasks of their own: rows -> `SAMPLES`."""
        torch.set_num_threads(1)
        return pa.Table.from_pylist([self.sent(row) for row in rows.to_pylist()], schema=SAMPLES)

    def sent(self, row: dict[str, Any]) -> dict[str, Any]:
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
        """The sample of a row of `SAMPLES`, its picture copied to `out`."""
        boxes, labels = row_boxes(row)
        out.permute(1, 2, 0).numpy()[:] = np.frombuffer(row["pixels"], np.uint8).reshape(
            *self.canvases[row["canvas"]], 3
        )
        return Sample(
            out, boxes, labels, (row["height"], row["width"]), row["image_id"], row["mirrored"]
        )


@contextmanager
def named(row: dict[str, Any]) -> Iterator[None]:
    """Whatever is wrong with the picture of a row is a `DataError` that says which it is."""
    try:
        yield
    except ImageError as error:
        raise DataError(
            f"{row['file_name']} (image_id {row['image_id']}): {error}; prepare the data set again"
        ) from error


def row_boxes(row: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """float32 (N, 4) XYXY px and int64 (N,) labels 0..K-1 of a row."""
    return np.asarray(row["boxes"], np.float32).reshape(-1, 4), np.asarray(row["labels"], np.int64)
