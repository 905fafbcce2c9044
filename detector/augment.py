"""An upright RGB picture and its boxes -> a Sample on the canvas.

Every random choice comes from the generator argument. The same numbers are drawn whatever the
settings, so that one setting does not change the effect of another.

The classes of torchvision.transforms.v2 draw from torch's global generator, so only its pure
functions are used here, for the photometric jitter. Its RandomIoUCrop also tries without a limit
and keeps objects by their centres, which is not the rule of `cut_boxes`; `_iou_window` replaces it.

Shapes: N objects, T tries, H W the canvas.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from detector.batch import Sample, check_objects
from detector.image import Jpeg
from detector.placement import fit_scale, place_picture

_CROP_TRIES = 40
"""Windows that the IoU crop tries before it leaves a picture whole (torchvision's number)."""


def training_sample(
    image_HW3: np.ndarray | Jpeg,
    boxes_N4: np.ndarray,
    labels_N: np.ndarray,
    image_id: int,
    *,
    canvas: tuple[int, int],
    generator: np.random.Generator,
    long_side: int | None = None,
    flip: float = 0.0,
    mirror_later: bool = False,
    vertical_flip: float = 0.0,
    scale_min: float = 1.0,
    scale_max: float = 1.0,
    short_sides: tuple[int, int] | None = None,
    out: torch.Tensor | None = None,
    min_visible: float = 0.25,
    iou_crop: float = 0.0,
    iou_minima: Sequence[float] = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9),
    photometric: float = 0.0,
    brightness: float = 0.125,
    contrast: float = 0.5,
    saturation: float = 0.5,
    hue: float = 0.05,
) -> Sample:
    """IoU crop, scale jitter, random crop and pad, photometric jitter, flips. Boxes are XYXY px of
    the picture; labels 0..K-1, or -1 for an ignore region.

    `flip`, `vertical_flip`, `iou_crop` and `photometric` are probabilities. For the scale see
    `_drawn_scale`, for boxes at the border `cut_boxes`. With `mirror_later` a flip moves the boxes
    only and the sample is marked `mirrored`; `detector.batch.unmirrored` flips the pixels of a
    whole batch on the GPU. `out` is memory for the sample's picture, see `place_picture`.
    `ValueError` for boxes that are not finite and labels below -1.
    """
    check_objects(boxes_N4, labels_N, image_id)
    draw = generator.random(5)
    crop_draw = generator.random(2 + 4 * _CROP_TRIES)
    colour_draw = generator.random(9)
    if crop_draw[0] < iou_crop:
        image_HW3, boxes_N4 = _iou_cropped(
            image_HW3, boxes_N4, labels_N, minima=iou_minima, draw=crop_draw[1:]
        )
    sides = (image_HW3.shape[0], image_HW3.shape[1])
    fitting, jitter = fit_scale(*sides, canvas, long_side=long_side), (scale_min, scale_max)
    scale = _drawn_scale(sides, fitting, jitter=jitter, short_sides=short_sides, draw=draw[0])
    spare = [max(0, round(side * scale) - room) for side, room in zip(sides, canvas, strict=True)]
    offset = (int(draw[1] * (spare[0] + 1)), int(draw[2] * (spare[1] + 1)))
    image, (height, width), (scale_y, scale_x) = place_picture(
        image_HW3, canvas=canvas, scale=scale, offset=offset, out=out
    )
    moved = boxes_N4.astype(np.float32) * np.array([scale_x, scale_y] * 2, np.float32) - np.array(
        [offset[1], offset[0]] * 2, np.float32
    )
    boxes, labels = cut_boxes(
        moved, labels_N, window=(0, 0, width, height), min_visible=min_visible
    )
    picture = image[:, :height, :width]
    if colour_draw[0] < photometric:
        # Its formulas take one channel at a time. Before the flips, so that these may be made later
        # and the pixels are the same to the bit.
        strengths = (brightness, contrast, saturation, hue)
        picture[:] = _jitter_colours(picture.contiguous(), strengths, draw=colour_draw[1:])
    mirror, turn = draw[3] < flip, draw[4] < vertical_flip
    _flip(picture, boxes, across=mirror, pixels_across=not mirror_later, down=turn)
    return Sample(
        image, boxes, labels, (height, width), image_id, mirrored=bool(mirror and mirror_later)
    )


def _iou_cropped(
    image_HW3: np.ndarray | Jpeg,
    boxes_N4: np.ndarray,
    labels_N: np.ndarray,
    *,
    minima: Sequence[float],
    draw: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The `_iou_window` of a picture, and the boxes in px of that window."""
    left, top, right, bottom = _iou_window(
        image_HW3.shape[:2], boxes_N4[labels_N >= 0], minima=minima, draw=draw
    )
    # The window is cut from the whole picture, so a JPEG is not decoded at a smaller size.
    whole_HW3 = image_HW3.pixels() if isinstance(image_HW3, Jpeg) else image_HW3
    return whole_HW3[top:bottom, left:right], boxes_N4 - np.array([left, top] * 2, np.float32)


def _drawn_scale(
    sides: tuple[int, ...],
    fitting: float,
    *,
    jitter: tuple[float, float],
    short_sides: tuple[int, int] | None,
    draw: float,
) -> float:
    """The scale of a picture of `sides` (height, width) px; `draw` is uniform in 0..1.

    The scale is the `fitting` one times a factor between the two of `jitter`, uniform in its
    logarithm; 0.1 and 2.0 are the large-scale jitter of Ghiasi et al. (2021). With `short_sides` it
    is the paper's (section 4.1) instead: the shorter side becomes a whole number of px between the
    two, limited by the `fitting` scale, so that nothing is cropped.
    """
    if short_sides is None:
        low, high = np.log(jitter[0]), np.log(jitter[1])
        return fitting * float(np.exp(low + draw * (high - low)))
    short = short_sides[0] + int(draw * (short_sides[1] - short_sides[0] + 1))
    return min(short / min(sides), fitting)


def _flip(
    picture_3hw: torch.Tensor,
    boxes_N4: np.ndarray,
    *,
    across: bool,
    pixels_across: bool,
    down: bool,
) -> None:
    """Flip a picture and its boxes (XYXY px) left to right (`across`) and top to bottom (`down`),
    in place. Without `pixels_across` a flip left to right moves the boxes only.
    """
    height, width = picture_3hw.shape[1:]
    # In the order in which it lies in memory, which takes half the time: 0.05 ms for 384 x 512 px.
    in_memory = picture_3hw.permute(1, 2, 0)
    if across:
        if pixels_across:
            in_memory[:] = in_memory.flip(1)
        boxes_N4[:, [0, 2]] = width - boxes_N4[:, [2, 0]]
    if down:
        in_memory[:] = in_memory.flip(0)
        boxes_N4[:, [1, 3]] = height - boxes_N4[:, [3, 1]]


def cut_boxes(
    boxes_N4: np.ndarray,
    labels_N: np.ndarray,
    *,
    window: tuple[float, float, float, float],
    min_visible: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes and labels of the objects within `window` (XYXY px), the part of the canvas that shows
    their picture: the one rule for every augmentation.

    A box is cut to the window. It is dropped if a side is then under 1 px, and becomes an ignore
    region (-1) if less than `min_visible` of its area is within the window.
    """
    # Plain operators: `clip`, `prod` and `all` take five times as long for the few boxes of a
    # picture.
    cut = np.minimum(
        np.maximum(boxes_N4, np.array(window[:2] * 2, np.float32)),
        np.array(window[2:] * 2, np.float32),
    )
    sides, before = cut[:, 2:] - cut[:, :2], boxes_N4[:, 2:] - boxes_N4[:, :2]
    visible = sides[:, 0] * sides[:, 1] / np.maximum(before[:, 0] * before[:, 1], 1e-6)
    large = (sides[:, 0] >= 1) & (sides[:, 1] >= 1)
    return cut[large], np.where(visible < min_visible, -1, labels_N)[large].astype(np.int64)


def _iou_window(
    size: tuple[int, int], objects_N4: np.ndarray, *, minima: Sequence[float], draw: np.ndarray
) -> tuple[int, int, int, int]:
    """SSD's crop (Liu et al. 2016, section 2.2) of a picture of `size` (height, width) px: a window
    as XYXY px.

    Its sides are 0.3 to 1 times those of the picture, the longer at most twice the shorter, and it
    contains the centre of an object with which its IoU is at least the minimum that was drawn. It
    is the first of `_CROP_TRIES` with these properties; the whole picture where none has them or
    there is no object. `draw` (1 + 4 T,): uniform numbers 0..1 for the minimum, then width, height,
    left and top of each try.
    """
    height, width = size
    share_T4 = draw[1:].reshape(-1, 4)
    sides_T2 = np.maximum(1, ((0.3 + 0.7 * share_T4[:, :2]) * [width, height]).astype(np.int64))
    low_T2 = (share_T4[:, 2:] * ([width, height] - sides_T2 + 1)).astype(np.int64)
    high_T2 = low_T2 + sides_T2
    # (T, 1, 2) against (N, 2) -> (T, N, 2)
    overlap_TN = (
        (
            np.minimum(high_T2[:, None], objects_N4[:, 2:])
            - np.maximum(low_T2[:, None], objects_N4[:, :2])
        )
        .clip(0)
        .prod(axis=2)
    )
    union_TN = (
        sides_T2.prod(axis=1)[:, None]
        + (objects_N4[:, 2:] - objects_N4[:, :2]).prod(axis=1)
        - overlap_TN
    )
    centres_N2 = (objects_N4[:, :2] + objects_N4[:, 2:]) / 2
    inside_TN = ((centres_N2 >= low_T2[:, None]) & (centres_N2 < high_T2[:, None])).all(axis=2)
    enough_TN = overlap_TN >= minima[int(draw[0] * len(minima))] * union_TN
    long_T = sides_T2.max(axis=1) > 2 * sides_T2.min(axis=1)
    good_T = (inside_TN & enough_TN).any(axis=1) & ~long_T
    if not good_T.any():
        return 0, 0, width, height
    first = int(good_T.argmax())
    return (
        int(low_T2[first, 0]),
        int(low_T2[first, 1]),
        int(high_T2[first, 0]),
        int(high_T2[first, 1]),
    )


def _jitter_colours(
    picture: torch.Tensor, strengths: Sequence[float], *, draw: np.ndarray
) -> torch.Tensor:
    """A uint8 (3, h, w) picture with brightness, contrast, saturation and hue changed in a random
    order.

    Each of the first three is multiplied by 1 +- its strength at most, never by less than 0; hue
    moves by at most its strength, a share of the colour circle. `draw` (8,): uniform numbers 0..1,
    four for the amounts and four for the order. 75 ms for 800 x 1088 px on one core, 66 of them for
    hue; a strength of 0 costs nothing.
    """
    # Imported here: 0.2 CPU seconds of every worker's start, for an option.
    from torchvision.transforms.v2 import functional as transforms

    functions = (
        transforms.adjust_brightness,
        transforms.adjust_contrast,
        transforms.adjust_saturation,
        transforms.adjust_hue,
    )
    for which in np.argsort(draw[4:], kind="stable"):
        if strengths[which] > 0:
            amount = float((2 * draw[which] - 1) * strengths[which])
            picture = functions[which](picture, amount if which == 3 else max(0.0, 1 + amount))
    return picture
