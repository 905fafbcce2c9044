"""An upright RGB picture and its boxes -> a Sample on the canvas, and Samples of one canvas ->
mixed ones.

Every random choice comes from the generator that is passed in; the same draws are made whatever the
settings, so that one setting does not change what another one does.

The classes of torchvision.transforms.v2 draw from torch's global generator, so only its pure
functions serve here: those of the photometric jitter. Its RandomIoUCrop also tries without a bound
and keeps objects by their centres, which is not the rule of `cut_boxes`; it has no mosaic, and its
MixUp knows no boxes. Those three are written out below.

Shapes: N objects, T tries, H W the canvas.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from detector.batch import Sample, check_objects, empty_canvases
from detector.image import Jpeg, shrinkage

PAD_PIXEL = (124, 116, 104)
"""The mean pixel: padding is close to zero after normalisation."""

RESIZE = torch.ops.aten._upsample_bilinear2d_aa
"""`torch.nn.functional.interpolate`, bilinear and antialiased, where both a size and a factor can
be given, or the memory to write to.
"""

CROP_TRIES = 40
"""Windows that the IoU crop looks at before it leaves a picture whole (torchvision's number of
trials).
"""


def fit_scale(
    height: int, width: int, canvas: tuple[int, int], *, long_side: int | None = None
) -> float:
    """The factor that makes a picture as large as the canvas (height, width) allows, and its longer
    side at most `long_side` px, aspect kept.
    """
    scale = min(canvas[0] / height, canvas[1] / width)
    return scale if long_side is None else min(scale, long_side / max(height, width))


def preferred_canvas(
    height: int, width: int, canvases: Sequence[tuple[int, int]], *, long_side: int | None = None
) -> int:
    """The number of the canvas (height, width) on which a picture becomes largest; of several, that
    of the smallest area.
    """
    scales = [fit_scale(height, width, canvas, long_side=long_side) for canvas in canvases]
    return max(range(len(canvases)), key=lambda i: (scales[i], -canvases[i][0] * canvases[i][1]))


@functools.cache
def padding(height: int, width: int) -> torch.Tensor:
    """A canvas without a picture, uint8 (3, H, W) channels-last, to be cloned."""
    return (
        torch.tensor(PAD_PIXEL, dtype=torch.uint8)
        .repeat(height * width)
        .view(height, width, 3)
        .permute(2, 0, 1)
    )


def place(
    image_HW3: np.ndarray | Jpeg,
    *,
    canvas: tuple[int, int],
    scale: float,
    offset: tuple[int, int] = (0, 0),
    out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, tuple[int, int], tuple[float, float]]:
    """Scale a picture, cut `offset` (y, x) px from its top left, and pad it to the canvas at the
    bottom and right.

    Returns the uint8 (3, H, W) canvas, channels-last as in a batch, the (height, width) px of the
    picture on it, and the exact (y, x) factors from picture to canvas, which differ from `scale` by
    the rounding to whole pixels. `out` is the canvas if it is there already, whatever it shows: a
    place in a batch. `ImageError` for a JPEG that turns out to be damaged.
    """
    height, width = image_HW3.shape[:2]
    new_height, new_width = max(1, round(height * scale)), max(1, round(width * scale))
    shrink = 1
    if isinstance(image_HW3, Jpeg):
        shrink = shrinkage((height, width), (new_height, new_width))
        image_HW3 = image_HW3.pixels(shrink)
    size = (min(canvas[0], new_height - offset[0]), min(canvas[1], new_width - offset[1]))
    if out is None:
        out = empty_canvases(1, canvas)[0]
    if size != tuple(canvas):
        out[:, size[0] :] = padding(*canvas)[:, size[0] :]
        out[:, : size[0], size[1] :] = padding(*canvas)[:, : size[0], size[1] :]
    # A batch dimension that is there before the axes are permuted lets torch see that this is
    # channels-last, and answer in it: 0.43 instead of 0.65 ms from 480 x 640 to 384 x 512 px.
    image = torch.from_numpy(np.require(image_HW3, requirements=["C", "W"]))[None].permute(
        0, 3, 1, 2
    )
    # Rows first, which lie in memory as they are added up, so that fewer are left for the other
    # axis, and of those only what the canvas shows: 0.81 instead of 0.93 ms for both at once from
    # 480 x 640 to 384 x 512 px.
    if height / shrink != new_height:
        image = RESIZE(
            image,
            [new_height, image.shape[3]],
            False,
            new_height * shrink / height if shrink > 1 else None,
            None,
        )
    image = image[:, :, offset[0] : offset[0] + size[0]]
    picture = out[:, : size[0], : size[1]]
    if width / shrink != new_width:
        wanted = (
            [size[0], new_width],
            False,
            None,
            new_width * shrink / width if shrink > 1 else None,
        )
        if new_width == canvas[1]:
            # Its rows fill those of the canvas: written where they are to be.
            RESIZE.out(image, *wanted, out=picture[None])
            return out, size, (new_height / height, new_width / width)
        image = RESIZE(image, *wanted)
    picture[:] = image[0, :, :, offset[1] : offset[1] + size[1]]
    return out, size, (new_height / height, new_width / width)


def evaluation_sample(
    image_HW3: np.ndarray | Jpeg,
    image_id: int,
    *,
    canvases: Sequence[tuple[int, int]],
    long_side: int | None = None,
) -> Sample:
    """The picture alone on the canvas (height, width) it prefers, as large as `fit_scale` says,
    unchanged otherwise.
    """
    canvas = canvases[preferred_canvas(*image_HW3.shape[:2], canvases, long_side=long_side)]
    image, size, _ = place(
        image_HW3, canvas=canvas, scale=fit_scale(*image_HW3.shape[:2], canvas, long_side=long_side)
    )
    return Sample(image, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), size, image_id)


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
    """IoU crop, scale jitter, random crop and pad, flips, photometric jitter. Boxes are XYXY px of
    the picture; labels 0..K-1, or -1 to ignore.

    The scale is a factor between `scale_min` and `scale_max` (even in its logarithm) of the one
    that fits (`fit_scale`); with 0.1 and 2.0 this is the large-scale jitter of Ghiasi et al.
    (2021). With `short_sides` it is the paper's (section 4.1) instead: the shorter side becomes a
    whole number of px between the two, as far as the picture then fits, so that nothing is cropped.
    `flip`, `vertical_flip`, `iou_crop` and `photometric` are probabilities. With `mirror_later` a
    flip moves the boxes only, and the sample says that its pixels are `mirrored`:
    `detector.batch.unmirrored` flips those of a whole batch, where a GPU holds it. `out` is the
    memory of the sample's picture, see `place`. What becomes of a box is said at `cut_boxes`.
    `ValueError` for boxes that are not finite and labels below -1.
    """
    check_objects(boxes_N4, labels_N, image_id)
    draw, crop_draw, colour_draw = (
        generator.random(5),
        generator.random(2 + 4 * CROP_TRIES),
        generator.random(9),
    )
    if crop_draw[0] < iou_crop:
        left, top, right, bottom = iou_window(
            image_HW3.shape[:2], boxes_N4[labels_N >= 0], minima=iou_minima, draw=crop_draw[1:]
        )
        # The window is cut from the whole picture, so this one is not decoded smaller.
        whole_HW3 = image_HW3.pixels() if isinstance(image_HW3, Jpeg) else image_HW3
        image_HW3, boxes_N4 = (
            whole_HW3[top:bottom, left:right],
            boxes_N4 - np.array([left, top] * 2, np.float32),
        )

    sides = image_HW3.shape[:2]
    scale = fit_scale(*sides, canvas, long_side=long_side)
    if short_sides is None:
        scale *= float(
            np.exp(np.log(scale_min) + draw[0] * (np.log(scale_max) - np.log(scale_min)))
        )
    else:
        short = short_sides[0] + int(draw[0] * (short_sides[1] - short_sides[0] + 1))
        scale = min(short / min(sides), scale)
    spare = [max(0, round(side * scale) - room) for side, room in zip(sides, canvas, strict=True)]
    offset = (int(draw[1] * (spare[0] + 1)), int(draw[2] * (spare[1] + 1)))
    image, (height, width), (scale_y, scale_x) = place(
        image_HW3, canvas=canvas, scale=scale, offset=offset, out=out
    )
    moved = boxes_N4.astype(np.float32) * np.array([scale_x, scale_y] * 2, np.float32) - np.array(
        [offset[1], offset[0]] * 2, np.float32
    )
    boxes, labels = cut_boxes(
        moved, labels_N, window=(0, 0, width, height), min_visible=min_visible
    )

    picture = image[:, :height, :width]
    # In the order in which it lies in memory, which takes half the time: 0.05 ms for 384 x 512 px.
    in_memory = picture.permute(1, 2, 0)
    if colour_draw[0] < photometric:
        # Its formulas take a channel at a time. Before the flips, so that these may be made later
        # and the pixels are the same to the bit.
        picture[:] = jitter_colours(
            picture.contiguous(), (brightness, contrast, saturation, hue), draw=colour_draw[1:]
        )
    mirrored = draw[3] < flip
    if mirrored:
        if not mirror_later:
            in_memory[:] = in_memory.flip(1)
        boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
    if draw[4] < vertical_flip:
        in_memory[:] = in_memory.flip(0)
        boxes[:, [1, 3]] = height - boxes[:, [3, 1]]
    return Sample(
        image, boxes, labels, (height, width), image_id, mirrored=bool(mirrored and mirror_later)
    )


def cut_boxes(
    boxes_N4: np.ndarray,
    labels_N: np.ndarray,
    *,
    window: tuple[float, float, float, float],
    min_visible: float,
) -> tuple[np.ndarray, np.ndarray]:
    """The rule for boxes that leave the part of the canvas where their picture is, `window` (XYXY
    px), by whatever augmentation.

    A box is cut to the window. Under 1 px a side it is dropped; with less than `min_visible` of its
    area left it becomes an ignore region (-1).
    """
    # Plain operators: `clip`, `prod` and `all` take five times as long for the few boxes of a
    # picture.
    cut = np.minimum(
        np.maximum(boxes_N4, np.array(window[:2] * 2, np.float32)),
        np.array(window[2:] * 2, np.float32),
    )
    sides, before = cut[:, 2:] - cut[:, :2], boxes_N4[:, 2:] - boxes_N4[:, :2]
    visible = sides[:, 0] * sides[:, 1] / np.maximum(before[:, 0] * before[:, 1], 1e-6)
    kept = (sides[:, 0] >= 1) & (sides[:, 1] >= 1)
    return cut[kept], np.where(visible < min_visible, -1, labels_N)[kept].astype(np.int64)


def iou_window(
    size: tuple[int, int], objects_N4: np.ndarray, *, minima: Sequence[float], draw: np.ndarray
) -> tuple[int, int, int, int]:
    """SSD's crop (Liu et al. 2016, section 2.2) of a picture of `size` (height, width) px: a window
    as XYXY px.

    It has sides of 0.3 to 1 of the picture's, is at most twice as long as wide or wide as long, and
    holds the centre of an object with which its IoU is at least the minimum that was drawn. The
    first of `CROP_TRIES` that does; the whole picture where none does or there is no object. `draw`
    (1 + 4 T,): uniform numbers 0..1 for the minimum, then width, height, left and top of each try.
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


def jitter_colours(
    picture: torch.Tensor, strengths: Sequence[float], *, draw: np.ndarray
) -> torch.Tensor:
    """Brightness, contrast, saturation and hue of a uint8 (3, h, w) picture changed in an order
    drawn by chance.

    Each of the first three is a factor within 1 +- strength, never below 0; hue moves by at most
    its strength, in turns of the colour circle. `draw` (8,): uniform numbers 0..1, four for the
    amounts and four for the order. 75 ms for 800 x 1088 px on one core, 66 of them for hue; a
    strength of 0 costs nothing.
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


def mix(
    samples: Sequence[Sample],
    *,
    generators: Sequence[np.random.Generator],
    mosaic: float = 0.0,
    mixup: float = 0.0,
    min_visible: float = 0.25,
) -> list[Sample]:
    """Mosaic and mixup, with these probabilities, of the samples of one batch: each takes its next
    neighbours in it, the last one the first ones.

    A sample's generator is its own, of (seed, epoch, image id), and only children are spawned from
    it, so its draws here are no draws of `training_sample`. The pixels depend on the neighbours
    too, so on how the batches were cut. Neighbours are taken as they came, before any mixing.
    Fillers are neither mixed nor taken; a lone picture is its own neighbours in the mosaic and is
    left out of mixup.
    """
    real = [sample for sample in samples if sample.image_id >= 0]
    mixed, place = [], 0
    for sample, generator in zip(samples, generators, strict=True):
        if sample.image_id >= 0:
            others = [real[(place + step) % len(real)] for step in (1, 2, 3)]
            for_mosaic, for_mixup = generator.spawn(2)
            if for_mosaic.random() < mosaic:
                sample = mosaic_of(sample, others, generator=for_mosaic, min_visible=min_visible)
            if for_mixup.random() < mixup and len(real) > 1:
                sample = mixup_of(sample, others[0], generator=for_mixup)
            place += 1
        mixed.append(sample)
    return mixed


def mosaic_of(
    sample: Sample,
    others: Sequence[Sample],
    *,
    generator: np.random.Generator,
    min_visible: float = 0.25,
) -> Sample:
    """Four pictures of one canvas in its four quarters (Bochkovskiy et al. 2020, section 3.3):
    `sample` top left, then three `others`.

    The quarters meet at a point drawn from the middle half of the canvas each way. Each shows a
    window of its picture, unscaled and drawn by chance; where the picture is smaller than the
    quarter the rest is padding. Boxes by `cut_boxes`, where the whole of a box is what `sample` has
    of it. The generator is that of `sample`, see `mix`.
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
    for one, (left, top, right, bottom), shares in zip(
        (sample, *others), quarters, draw[2:].reshape(4, 2), strict=True
    ):
        rows, columns = min(bottom - top, one.size[0]), min(right - left, one.size[1])
        from_y, from_x = (
            int(share * (side - shown + 1))
            for share, side, shown in zip(shares, one.size, (rows, columns), strict=True)
        )
        image[:, top : top + rows, left : left + columns] = one.image[
            :, from_y : from_y + rows, from_x : from_x + columns
        ]
        moved = one.boxes_N4 + np.array([left - from_x, top - from_y] * 2, np.float32)
        cut = cut_boxes(
            moved,
            one.labels_N,
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


def mixup_of(sample: Sample, other: Sample, *, generator: np.random.Generator) -> Sample:
    """Two pictures of one canvas laid over each other (Zhang et al. 2019, "Bag of Freebies",
    section 3.1), padding and all.

    Pixels are share * sample + (1 - share) * other, rounded, so uint8 stays uint8; `share` is even
    in 0.4..0.6. The objects of both are kept with their full weight, which is why no picture is let
    fade away. The generator is that of `sample`, see `mix`.
    """
    share = 0.4 + 0.2 * generator.random()
    image = torch.lerp(other.image.float(), sample.image.float(), share).round_().to(torch.uint8)
    size = (max(sample.size[0], other.size[0]), max(sample.size[1], other.size[1]))
    boxes, labels = (
        np.concatenate([sample.boxes_N4, other.boxes_N4]),
        np.concatenate([sample.labels_N, other.labels_N]),
    )
    return replace(sample, image=image, boxes_N4=boxes, labels_N=labels, size=size)
