"""Draw a small COCO data set:

    python -m cluster.prepare.synthetic OUT --train 320 --val 64 --seed 0

Textured backgrounds with overlapping shapes of five classes from about 14 to 160 px; some images
are empty, some have a crowd; real JPEGs and a real COCO JSON. The same seed gives the same bytes.
The quickstart and the tests train on it.
"""

from __future__ import annotations

import argparse
import colorsys
import io
import json
import math
import os
from typing import Any, TypedDict

import numpy as np
from PIL import Image, ImageDraw

# Ids with gaps, as in COCO itself: a label must never be taken for an id.
CATEGORIES = {1: "circle", 3: "square", 7: "triangle", 18: "star", 44: "ring"}
CANVASES = ((320, 240), (320, 224), (288, 240), (320, 256), (240, 320))
EMPTY_SHARE = 0.06
CROWD_SHARE = 0.08
# Share of every shape that is on the canvas and not hidden by later shapes, at least.
MIN_VISIBLE = 0.4
SMALLEST, USUAL, LARGEST = 14, 48, 160


class DrawnAnnotation(TypedDict):
    """A COCO annotation of a drawn shape. bbox is [x, y, w, h] in px, area px^2, of the pixels that
    are visible.
    """

    category_id: int
    bbox: list[int]
    area: int
    iscrowd: int


def make_coco(out: str, *, train_images: int, val_images: int, seed: int) -> None:
    """Write OUT/images/{train,val}/*.jpg and OUT/annotations/instances_{train,val}.json. `out` is a
    local folder.
    """
    os.makedirs(os.path.join(out, "annotations"), exist_ok=True)
    for split_number, (split, total) in enumerate(
        {"train": train_images, "val": val_images}.items()
    ):
        os.makedirs(os.path.join(out, "images", split), exist_ok=True)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number in range(total):
            pixels_HW3, objects = draw_image(np.random.default_rng([seed, split_number, number]))
            # Image ids that are not positions either.
            image_id, name = 100 + 3 * number, f"{number:06d}.jpg"
            write_picture(os.path.join(out, "images", split, name), pixels_HW3)
            images.append(
                {
                    "id": image_id,
                    "file_name": name,
                    "height": pixels_HW3.shape[0],
                    "width": pixels_HW3.shape[1],
                }
            )
            for one in objects:
                annotations.append({"id": len(annotations) + 1, "image_id": image_id, **one})
        categories = [
            {"id": id_, "name": name, "supercategory": "shape"} for id_, name in CATEGORIES.items()
        ]
        content = {
            "info": {"description": f"synthetic shapes, seed {seed}"},
            "images": images,
            "annotations": annotations,
            "categories": categories,
        }
        with open(
            os.path.join(out, "annotations", f"instances_{split}.json"), "w", encoding="utf-8"
        ) as file:
            json.dump(content, file)


def write_picture(path: str, pixels_HW3: np.ndarray) -> None:
    """A file that is there already and the same stays as it is, with its time: what was made of
    it is still up to date.
    """
    content = io.BytesIO()
    Image.fromarray(pixels_HW3).save(content, "JPEG", quality=90)
    if os.path.exists(path):
        with open(path, "rb") as file:
            if file.read() == content.getvalue():
                return
    with open(path, "wb") as file:
        file.write(content.getvalue())


def draw_image(rng: np.random.Generator) -> tuple[np.ndarray, list[DrawnAnnotation]]:
    """uint8 (H, W, 3) pixels and the COCO annotations on them, without `id` and `image_id`."""
    width, height = CANVASES[rng.integers(len(CANVASES))]
    canvas_HW3 = draw_background(rng, height, width)
    annotations: list[DrawnAnnotation] = []
    # The object that a pixel shows: 0 the background, -1 a crowd, else its number from 1 on.
    owner_HW = np.zeros((height, width), np.int32)
    if rng.random() >= EMPTY_SHARE:
        if rng.random() < CROWD_SHARE:
            annotations.append(draw_crowd(rng, canvas_HW3, owner_HW))
        drawn: list[tuple[int, int]] = []
        for _ in range(rng.integers(1, 8)):
            draw_object(rng, canvas_HW3, owner_HW, drawn)
        for number, (category_id, _) in enumerate(drawn, start=1):
            annotations.append(describe(owner_HW == number, category_id, crowd=False))
    return canvas_HW3.clip(0, 255).round().astype(np.uint8), annotations


def draw_object(
    rng: np.random.Generator,
    canvas_HW3: np.ndarray,
    owner_HW: np.ndarray,
    drawn: list[tuple[int, int]],
) -> None:
    """Draw one shape over the others and append its (category id, px of the whole shape), or give
    up where five tries hide too much.
    """
    height, width = owner_HW.shape
    for _ in range(5):
        category_id = int(rng.choice(list(CATEGORIES)))
        side = round(
            math.exp(rng.triangular(math.log(SMALLEST), math.log(USUAL), math.log(LARGEST)))
        )
        stencil = draw_stencil(CATEGORIES[category_id], side, angle=rng.uniform(-20, 20))
        mask_HW = stamp(stencil, int(rng.integers(width)), int(rng.integers(height)), height, width)
        left = [
            np.count_nonzero((owner_HW == number) & ~mask_HW) / whole
            for number, (_, whole) in enumerate(drawn, start=1)
        ]
        if (
            mask_HW.sum() < 0.75 * stencil.sum()
            or min(left, default=1.0) < MIN_VISIBLE
            or (owner_HW[mask_HW] < 0).any()
        ):
            continue
        drawn.append((category_id, int(stencil.sum())))
        owner_HW[mask_HW] = len(drawn)
        paint(rng, canvas_HW3, mask_HW, category_id)
        return


def draw_crowd(
    rng: np.random.Generator, canvas_HW3: np.ndarray, owner_HW: np.ndarray
) -> DrawnAnnotation:
    """A tight cluster of tiny shapes of one class: one annotation with iscrowd=1."""
    height, width = owner_HW.shape
    category_id = int(rng.choice(list(CATEGORIES)))
    middle_x, middle_y = rng.integers(60, width - 60), rng.integers(40, height - 40)
    for _ in range(rng.integers(14, 26)):
        stencil = draw_stencil(
            CATEGORIES[category_id], int(rng.integers(8, 13)), angle=rng.uniform(-20, 20)
        )
        mask_HW = stamp(
            stencil,
            int(middle_x + rng.integers(-28, 29)),
            int(middle_y + rng.integers(-18, 19)),
            height,
            width,
        )
        owner_HW[mask_HW] = -1
        paint(rng, canvas_HW3, mask_HW, category_id)
    annotation = describe(owner_HW == -1, category_id, crowd=True)
    # The gaps of the cluster belong to it too: no object is drawn inside its box.
    x, y, w, h = annotation["bbox"]
    owner_HW[y : y + h, x : x + w] = -1
    return annotation


def describe(mask_HW: np.ndarray, category_id: int, *, crowd: bool) -> DrawnAnnotation:
    """The annotation of the pixels in `mask_HW`."""
    ys, xs = np.nonzero(mask_HW)
    x, y = int(xs.min()), int(ys.min())
    box = [x, y, int(xs.max()) + 1 - x, int(ys.max()) + 1 - y]
    return {
        "category_id": category_id,
        "bbox": box,
        "area": int(mask_HW.sum()),
        "iscrowd": int(crowd),
    }


def draw_stencil(shape: str, side: int, *, angle: float) -> np.ndarray:
    """bool (side, side): the shape, turned by `angle` degrees, as large as fits."""
    picture = Image.new("1", (side, side))
    pen = ImageDraw.Draw(picture)
    radius = (side - 1) / 2

    def corners(count: int, first: float, inner: float = 1.0) -> list[tuple[float, float]]:
        steps = [
            (math.radians(first + angle + 360 * k / count), radius * (inner if k % 2 else 1.0))
            for k in range(count)
        ]
        return [(radius + r * math.cos(turn), radius + r * math.sin(turn)) for turn, r in steps]

    if shape == "square":
        pen.polygon(corners(4, 45), fill=1)
    elif shape == "triangle":
        pen.polygon(corners(3, -90), fill=1)
    elif shape == "star":
        pen.polygon(corners(10, -90, inner=0.42), fill=1)
    else:
        pen.ellipse((0, 0, side - 1, side - 1), fill=1)
        if shape == "ring":
            pen.ellipse((0.27 * side, 0.27 * side, 0.73 * side - 1, 0.73 * side - 1), fill=0)
    return np.array(picture, bool)


def stamp(stencil: np.ndarray, x: int, y: int, height: int, width: int) -> np.ndarray:
    """bool (height, width): the stencil with its middle at (x, y), cut off at the edges."""
    side = len(stencil)
    left, top = x - side // 2, y - side // 2
    mask_HW = np.zeros((height, width), bool)
    inside = stencil[max(0, -top) : height - top, max(0, -left) : width - left]
    mask_HW[
        max(0, top) : max(0, top) + inside.shape[0], max(0, left) : max(0, left) + inside.shape[1]
    ] = inside
    return mask_HW


def paint(
    rng: np.random.Generator, canvas_HW3: np.ndarray, mask_HW: np.ndarray, category_id: int
) -> None:
    """Fill with a colour of the class's fifth of the colour circle, with grain, stripes of light
    and a dark rim.
    """
    hue = list(CATEGORIES).index(category_id) / len(CATEGORIES) + rng.uniform(-0.06, 0.06)
    colour = 255 * np.array(
        colorsys.hsv_to_rgb(hue % 1.0, rng.uniform(0.6, 1.0), rng.uniform(0.6, 1.0))
    )
    ys, xs = np.nonzero(mask_HW)
    stripes = 14 * np.sin((xs * rng.normal() + ys * rng.normal()) * 0.3)
    canvas_HW3[ys, xs] = colour + stripes[:, None] + rng.normal(0, 10, (len(ys), 1))
    core_HW = mask_HW.copy()
    core_HW[1:] &= mask_HW[:-1]
    core_HW[:-1] &= mask_HW[1:]
    core_HW[:, 1:] &= mask_HW[:, :-1]
    core_HW[:, :-1] &= mask_HW[:, 1:]
    canvas_HW3[mask_HW & ~core_HW] *= 0.45


def draw_background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """float32 (height, width, 3) around mid grey: a gradient and noise from the size of the picture
    down to the pixel, little colour.
    """
    across, down = np.meshgrid(
        np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)
    )
    canvas_HW3 = (rng.uniform(90, 170) + rng.normal(0, 22) * across + rng.normal(0, 22) * down)[
        :, :, None
    ].repeat(3, axis=2)
    for cell, contrast in ((96, 26), (28, 20), (9, 14)):
        grey = rng.integers(0, 256, (height // cell + 2, width // cell + 2, 1))
        tint = rng.integers(-40, 41, (*grey.shape[:2], 3))
        coarse = Image.fromarray((grey + tint).clip(0, 255).astype(np.uint8))
        canvas_HW3 += (
            np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32) / 127.5
            - 1
        ) * contrast
    canvas_HW3 += rng.normal(0, 5, (height, width, 1)).astype(np.float32)
    return canvas_HW3.astype(np.float32)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m cluster.prepare.synthetic",
        description="Write a small synthetic COCO data set.",
    )
    parser.add_argument("out", help="local folder to write images/ and annotations/ into")
    parser.add_argument(
        "--train", type=int, default=320, help="images in the train split (default 320)"
    )
    parser.add_argument("--val", type=int, default=64, help="images in the val split (default 64)")
    parser.add_argument(
        "--seed", type=int, default=0, help="the same seed gives the same files (default 0)"
    )
    given = parser.parse_args(argv)
    if given.train < 1 or given.val < 1 or given.seed < 0:
        parser.error("--train and --val must be at least 1, --seed at least 0")
    make_coco(given.out, train_images=given.train, val_images=given.val, seed=given.seed)
    print(
        f"{given.train} train and {given.val} val images of {len(CATEGORIES)} classes in"
        f" {os.path.abspath(given.out)}"
    )


if __name__ == "__main__":
    main()
