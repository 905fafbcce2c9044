"""An upright RGB picture and its boxes -> a Sample on the canvas. Every random choice comes from the generator that is passed in."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from detector.batch import Sample

PAD_PIXEL = (124, 116, 104)
"""The mean pixel: padding is close to zero after normalisation."""


def fit_scale(height: int, width: int, canvas: tuple[int, int]) -> float:
    """The factor that makes a picture as large as the canvas (height, width) allows, aspect kept."""
    return min(canvas[0] / height, canvas[1] / width)


def place(
    image_HW3: np.ndarray, *, canvas: tuple[int, int], scale: float, offset: tuple[int, int] = (0, 0)
) -> tuple[torch.Tensor, tuple[int, int], tuple[float, float]]:
    """Scale a picture, cut `offset` (y, x) px from its top left, and pad it to the canvas at the bottom and right.

    Returns the uint8 (3, H, W) canvas, the (height, width) px of the picture on it, and the exact (y, x) factors from picture to canvas, which differ
    from `scale` by the rounding to whole pixels.
    """
    height, width = image_HW3.shape[:2]
    new_height, new_width = max(1, round(height * scale)), max(1, round(width * scale))
    # The copy makes it writable (decoded pictures are not); permuting keeps channels-last, for which torch has a fast uint8 kernel.
    image = torch.from_numpy(np.array(image_HW3)).permute(2, 0, 1)[None]
    if (new_height, new_width) != (height, width):
        image = F.interpolate(image, size=(new_height, new_width), mode="bilinear", antialias=True)
    picture = image[0, :, offset[0] : offset[0] + canvas[0], offset[1] : offset[1] + canvas[1]]
    size = (picture.shape[1], picture.shape[2])
    out = torch.tensor(PAD_PIXEL, dtype=torch.uint8).view(3, 1, 1).expand(3, *canvas).contiguous()
    out[:, : size[0], : size[1]] = picture
    return out, size, (new_height / height, new_width / width)


def evaluation_sample(image_HW3: np.ndarray, image_id: int, *, canvas: tuple[int, int]) -> Sample:
    """The picture alone, as large as fits, unchanged otherwise."""
    image, size, _ = place(image_HW3, canvas=canvas, scale=fit_scale(*image_HW3.shape[:2], canvas))
    return Sample(image, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), size, image_id)


def training_sample(
    image_HW3: np.ndarray,
    boxes_N4: np.ndarray,
    labels_N: np.ndarray,
    image_id: int,
    *,
    canvas: tuple[int, int],
    generator: np.random.Generator,
    flip: float = 0.0,
    vertical_flip: float = 0.0,
    scale_min: float = 1.0,
    scale_max: float = 1.0,
    min_visible: float = 0.25,
) -> Sample:
    """Scale jitter, random crop and pad, flips. Boxes are XYXY px of the picture; labels 0..K-1, or -1 for an ignore region.

    A box is cut to what is visible. Under 1 px a side it is dropped; with less than `min_visible` of its area left it becomes an ignore region (-1).
    The same draws are made whatever the settings, so that one setting does not change what another one does.
    """
    draw = generator.random(5)
    factor = float(np.exp(np.log(scale_min) + draw[0] * (np.log(scale_max) - np.log(scale_min))))
    scale = fit_scale(*image_HW3.shape[:2], canvas) * factor
    spare = [max(0, round(side * scale) - room) for side, room in zip(image_HW3.shape[:2], canvas, strict=True)]
    offset = (int(draw[1] * (spare[0] + 1)), int(draw[2] * (spare[1] + 1)))
    image, (height, width), (scale_y, scale_x) = place(image_HW3, canvas=canvas, scale=scale, offset=offset)

    moved = boxes_N4.astype(np.float32) * np.array([scale_x, scale_y] * 2, np.float32) - np.array([offset[1], offset[0]] * 2, np.float32)
    cut = moved.clip(0, np.array([width, height] * 2, np.float32))
    sides = cut[:, 2:] - cut[:, :2]
    visible = sides.prod(axis=1) / np.maximum((moved[:, 2:] - moved[:, :2]).prod(axis=1), 1e-6)
    labels = np.where(visible < min_visible, -1, labels_N)
    kept = (sides >= 1).all(axis=1)
    cut, labels = cut[kept], labels[kept].astype(np.int64)

    if draw[3] < flip:
        image[:, :height, :width] = image[:, :height, :width].flip(2)
        cut[:, [0, 2]] = width - cut[:, [2, 0]]
    if draw[4] < vertical_flip:
        image[:, :height, :width] = image[:, :height, :width].flip(1)
        cut[:, [1, 3]] = height - cut[:, [3, 1]]
    return Sample(image, cut, labels, (height, width), image_id)
