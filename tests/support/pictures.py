"""Small picture files, and a COCO folder of them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from cluster.storage import files
from detector.image import ORIENTATION


def jpeg(pixels: np.ndarray, *, turn: int | None = None, form: str = "JPEG") -> bytes:
    sink = io.BytesIO()
    exif = Image.Exif()
    if turn is not None:
        exif[ORIENTATION] = turn
    Image.fromarray(pixels).save(
        sink, form, exif=exif, **({"quality": 95} if form == "JPEG" else {})
    )
    return sink.getvalue()


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def write_coco(
    folder: Path, pictures: dict[str, bytes | None], *, size: tuple[int, int] = (20, 30)
) -> str:
    """Every name an image with one box; where the bytes are None there is no file."""
    images = [
        {"id": n, "file_name": name, "height": size[0], "width": size[1]}
        for n, name in enumerate(pictures)
    ]
    boxes = [
        {
            "id": n,
            "image_id": n,
            "category_id": 1,
            "bbox": [2, 3, 10, 10],
            "area": 100,
            "iscrowd": 0,
        }
        for n in range(len(pictures))
    ]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "thing"}]}
    files.write_json(str(folder / "annotations/instances_train.json"), content)
    (folder / "images/train").mkdir(parents=True, exist_ok=True)
    for name, data in pictures.items():
        if data is not None:
            files.write_bytes(str(folder / "images/train" / name), data)
    return str(folder)
