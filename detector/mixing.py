"""Samples of one canvas -> mixed ones: mosaic and mixup. torchvision.transforms.v2 has no mosaic,
and its MixUp does not handle boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from detector.augment import cut_boxes
from detector.batch import Sample
from detector.placement import padding


def mix(
    samples: Sequence[Sample],
    *,
    generators: Sequence[np.random.Generator],
    mosaic: float = 0.0,
    mixup: float = 0.0,
    min_visible: float = 0.25,
) -> list[Sample]:
    """Mosaic and mixup, with these probabilities, of the samples of one batch: each is mixed with
    the next ones of the batch; after the last comes the first.

    `generators` are those of each sample, made of (seed, epoch, image id). Only child generators
    are used, so that the draws of `training_sample` do not change. The pixels also depend on the
    neighbours, so on how the batches were cut. Neighbours are used as they were before any mixing.
    Fillers are neither mixed nor used; a batch with one real picture repeats it in the mosaic and
    has no mixup.
    """
    real = [sample for sample in samples if sample.image_id >= 0]
    mixed, position = [], 0
    for sample, generator in zip(samples, generators, strict=True):
        if sample.image_id >= 0:
            others = [real[(position + step) % len(real)] for step in (1, 2, 3)]
            for_mosaic, for_mixup = generator.spawn(2)
            if for_mosaic.random() < mosaic:
                sample = _mosaic_of(sample, others, generator=for_mosaic, min_visible=min_visible)
            if for_mixup.random() < mixup and len(real) > 1:
                sample = _mixup_of(sample, others[0], generator=for_mixup)
            position += 1
        mixed.append(sample)
    return mixed


def _mosaic_of(
    sample: Sample,
    others: Sequence[Sample],
    *,
    generator: np.random.Generator,
    min_visible: float = 0.25,
) -> Sample:
    """Four pictures of one canvas in its four quarters (Bochkovskiy et al. 2020, section 3.3):
    `sample` at the top left, then the three `others`.

    The quarters meet at a random point in the middle half of the canvas, in x and in y. Each shows
    a random window of its picture, not scaled; where the picture is smaller than the quarter, the
    rest is padding. Boxes follow `cut_boxes`; the visible share of a box is relative to the box in
    its sample. The generator is that of `sample`, see `mix`.
    """
    draw = generator.random(10)
    height, width = sample.image.shape[1:]
    y, x = (
        round(side * (0.25 + 0.5 * share))
        for side, share in zip((height, width), draw[:2], strict=True)
    )
    image = padding(height, width).clone()
    boxes, labels = [], []
    quarters = ((0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height))
    for quarter, (left, top, right, bottom), shares in zip(
        (sample, *others), quarters, draw[2:].reshape(4, 2), strict=True
    ):
        rows, columns = min(bottom - top, quarter.size[0]), min(right - left, quarter.size[1])
        from_y, from_x = (
            int(share * (side - shown + 1))
            for share, side, shown in zip(shares, quarter.size, (rows, columns), strict=True)
        )
        image[:, top : top + rows, left : left + columns] = quarter.image[
            :, from_y : from_y + rows, from_x : from_x + columns
        ]
        moved = quarter.boxes_N4 + np.array([left - from_x, top - from_y] * 2, np.float32)
        cut = cut_boxes(
            moved,
            quarter.labels_N,
            window=(left, top, left + columns, top + rows),
            min_visible=min_visible,
        )
        boxes.append(cut[0])
        labels.append(cut[1])
    return replace(
        sample,
        image=image,
        boxes_N4=np.concatenate(boxes),
        labels_N=np.concatenate(labels),
        size=(height, width),
    )


def _mixup_of(sample: Sample, other: Sample, *, generator: np.random.Generator) -> Sample:
    """Two pictures of one canvas blended (Zhang et al. 2019, "Bag of Freebies", section 3.1), with
    their padding.

    Pixels are share * sample + (1 - share) * other, rounded to uint8; `share` is uniform in
    0.4..0.6. The objects of both keep their full weight, so neither picture may become faint. The
    generator is that of `sample`, see `mix`.
    """
    share = 0.4 + 0.2 * generator.random()
    image = torch.lerp(other.image.float(), sample.image.float(), share).round_().to(torch.uint8)
    size = (max(sample.size[0], other.size[0]), max(sample.size[1], other.size[1]))
    boxes, labels = (
        np.concatenate([sample.boxes_N4, other.boxes_N4]),
        np.concatenate([sample.labels_N, other.labels_N]),
    )
    return replace(sample, image=image, boxes_N4=boxes, labels_N=labels, size=size)
