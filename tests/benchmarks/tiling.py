"""AP by size and seconds a picture, of large pictures with small objects: the whole picture alone,
in tiles, and in mirror images too. For a detector of the shapes of `cluster.prepare.synthetic`,
such as that of the quickstart.

    make quickstart
    python tests/benchmarks/tiling.py --run runs/runs/RUN [--images 20 --side 2048
    --tiles 512 320 --overlap 0.2 --device cpu]

A picture is a large background with drawings of about 320x240 px side by side, 36 on 2,048 px, as
the detector knows them. So with a tile of 320 px the objects are as large as in its training, and
in the whole picture a sixth of that. All objects and crowds have their truth.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", ".."))

import numpy as np
import torch

from cluster.prepare.synthetic import draw_background, draw_image
from cluster.runs.evaluations import best_checkpoint
from cluster.runs.package_files import build_package, read_classes
from detector.choices import ViewSettings
from detector.decode import Detections
from detector.metrics import Truth, coco_table
from detector.predict import Predictor
from detector.tiling import views_of

CELL = 320
"""px: no drawing is larger."""
SIZES = ("small", "medium", "large")


def large_picture(
    image_id: int, side: int, label_of: dict[int, int], seed: int = 0
) -> tuple[np.ndarray, Truth]:
    """uint8 (side, side, 3) and its truth; `label_of` is the label of each category id."""
    rng = np.random.default_rng([seed, image_id])
    pixels_HW3 = draw_background(rng, side, side).clip(0, 255).round().astype(np.uint8)
    rows: list[tuple[list[float], int, bool, float]] = []
    for top in range(0, side - CELL + 1, CELL):
        for left in range(0, side - CELL + 1, CELL):
            drawing_HW3, objects = draw_image(rng)
            height, width = drawing_HW3.shape[:2]
            pixels_HW3[top : top + height, left : left + width] = drawing_HW3
            for one in objects:
                x, y, w, h = one["bbox"]
                box = [left + x, top + y, left + x + w, top + y + h]
                crowd = bool(one["iscrowd"])
                rows.append((box, label_of[one["category_id"]], crowd, one["area"]))
    truth = Truth(
        image_id,
        side,
        side,
        np.array([box for box, *_ in rows], np.float32),
        np.array([label for _, label, _, _ in rows], np.int64),
        np.array([crowd for _, _, crowd, _ in rows], bool),
        np.array([area for *_, area in rows], np.float64),
    )
    return pixels_HW3, truth


def detect(
    predictor: Predictor, images: dict[int, np.ndarray], settings: ViewSettings
) -> tuple[dict[int, Detections], float]:
    """The detections by image id, and seconds a picture with the resizing, without a decoder."""
    start = time.perf_counter()
    samples = (predictor.view_samples(image, i, settings) for i, image in images.items())
    found = predictor.detect_views(samples, settings)
    return found, (time.perf_counter() - start) / len(images)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", required=True, help="folder of a training run")
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--side", type=int, default=2048, help="px of a picture")
    parser.add_argument("--tiles", type=int, nargs="*", default=[512, 320])
    parser.add_argument("--overlap", type=float, default=0.2)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    best = best_checkpoint(args.run)
    with tempfile.TemporaryDirectory() as folder:
        build_package(best.checkpoint, folder, weights=best.weights)
        classes = read_classes(folder)
        predictor = Predictor.load(folder, device=args.device)
    # A picture has about 150 objects, more than the usual limit of 100.
    limits = (1, 10, 1000)
    predictor.decode = {**predictor.decode, "max_detections": limits[-1]}
    label_of = {category.id: category.label for category in classes}
    drawn = [large_picture(number, args.side, label_of) for number in range(1, args.images + 1)]
    images = {truth.image_id: pixels_HW3 for pixels_HW3, truth in drawn}
    truths = [truth for _, truth in drawn]
    print(
        f"{args.images} pictures of {args.side}x{args.side} px,"
        f" {sum(len(truth.labels_N) for truth in truths)} objects and crowds; canvases"
        f" {', '.join(f'{height}x{width}' for height, width in predictor.canvases)};"
    )
    device = torch.cuda.get_device_name() if args.device == "cuda" else platform.machine()
    print(f"{device}, {os.cpu_count()} CPUs, load average {os.getloadavg()[0]:.1f}\n")
    print(f"| | views | s a picture | AP | {' | '.join(f'AP {size}' for size in SIZES)} |")
    print(f"|---|---|---|---|{'---|' * len(SIZES)}")
    tilings = [None, *args.tiles]
    # The first call builds what later ones use again.
    detect(predictor, dict(list(images.items())[:1]), ViewSettings())
    for tile in tilings:
        for flip in (False, True):
            settings = ViewSettings(tile, args.overlap, flip)
            found, seconds = detect(predictor, images, settings)
            table = coco_table(
                truths, found, [category.name for category in classes], max_detections=limits
            )
            scores = [table.summary[name] for name in ("AP", *(f"AP_{size}" for size in SIZES))]
            cells = ["-" if score is None else f"{score:.3f}" for score in scores]
            name = (
                f"{'whole' if tile is None else f'--tile {tile}'}{' --flip true' if flip else ''}"
            )
            views = len(views_of(args.side, args.side, settings)) * (1 + flip)
            print(f"| {name} | {views} | {seconds:.2f} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
