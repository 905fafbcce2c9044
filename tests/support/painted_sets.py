"""Sets of pictures on which each object is a block of its own colour, written in any annotation
format, with damage. What was painted and damaged is the independent count of what must come out.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from cluster.formats.kinds import Format
from cluster.formats.read import SourcePaths
from detector.image import ORIENTATION

CLASSES = ("cat", "dog", "bird")
CELL = 12
"""px; an object fills a part of its cell, so no two overlap."""

FileDamage = Literal["missing", "empty", "truncated", "text"]
"""What is wrong with the file of a picture, which is then left out with its objects."""
Change = Literal["half", "turned"]
"""What became of a picture after it was annotated, which `prepare` follows: it was stored in half
the size, or it has an EXIF orientation.
"""
ObjectDamage = Literal["numbers", "class", "empty"]
"""What is wrong with an object, which is then left out alone."""

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class PaintedObject:
    """A block, XYXY px of the file as it was annotated."""

    label: int
    box: Box
    colour: tuple[int, int, int]
    damage: ObjectDamage | None = None


@dataclass(frozen=True)
class PaintedImage:
    name: str
    rows: int
    columns: int
    """Cells."""
    objects: tuple[PaintedObject, ...]
    damage: FileDamage | None = None
    change: Change | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width as annotated, px."""
        return self.rows * CELL, self.columns * CELL

    @property
    def usable(self) -> tuple[PaintedObject, ...]:
        return tuple(one for one in self.objects if one.damage is None)

    def pixels(self) -> np.ndarray:
        """uint8 (H, W, 3) as it was annotated."""
        pixels_HW3 = np.zeros((*self.size, 3), np.uint8)
        for one in self.objects:
            x1, y1, x2, y2 = one.box
            pixels_HW3[y1:y2, x1:x2] = one.colour
        return pixels_HW3

    def file(self) -> bytes | None:
        """A PNG, unless damaged; None where there is no file."""
        pixels_HW3, exif = self.pixels(), Image.Exif()
        if self.change == "half":
            pixels_HW3 = pixels_HW3[::2, ::2]
        if self.change == "turned":
            exif[ORIENTATION] = 6
        sink = io.BytesIO()
        Image.fromarray(pixels_HW3).save(sink, "PNG", exif=exif)
        data = sink.getvalue()
        return {
            None: data,
            "missing": None,
            "empty": b"",
            "truncated": data[: len(data) - 30],
            "text": b"404: there is nothing here",
        }[self.damage]

    def upright_share(self, box: Box) -> tuple[float, float, float, float]:
        """A box, XYXY, in fractions of the upright picture."""
        height, width = self.size
        x1, y1, x2, y2 = box
        if self.change == "turned":
            # Orientation 6: the right side of the file is the bottom of the picture.
            return 1 - y2 / height, x1 / width, 1 - y1 / height, x2 / width
        return x1 / width, y1 / height, x2 / width, y2 / height


def write_set(folder: Path, images: Sequence[PaintedImage], format: Format) -> SourcePaths:
    """The pictures in `folder`/images, and annotations of all of them."""
    for image in images:
        path = folder / "images" / image.name
        path.parent.mkdir(parents=True, exist_ok=True)
        if (data := image.file()) is not None:
            path.write_bytes(data)
    annotations = WRITERS[format](folder, images)
    return SourcePaths("painted", format, str(annotations), str(folder / "images"))


def _coco(folder: Path, images: Sequence[PaintedImage]) -> Path:
    records, annotations = [], []
    for number, image in enumerate(images):
        height, width = image.size
        records.append({"id": number, "file_name": image.name, "height": height, "width": width})
        for one in image.objects:
            x1, y1, x2, y2 = one.box
            bbox: list[object] = [x1, y1, 0 if one.damage == "empty" else x2 - x1, y2 - y1]
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": number,
                    "category_id": 99 if one.damage == "class" else one.label + 1,
                    "bbox": ["x", *bbox[1:]] if one.damage == "numbers" else bbox,
                    "iscrowd": 0,
                }
            )
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(CLASSES)]
    content = {"images": records, "annotations": annotations, "categories": categories}
    path = folder / "instances.json"
    path.write_text(json.dumps(content))
    return path


def _voc(folder: Path, images: Sequence[PaintedImage]) -> Path:
    annotations = folder / "Annotations"
    for image in images:
        height, width = image.size
        objects = []
        for one in image.objects:
            x1, y1, x2, y2 = one.box
            left = "x" if one.damage == "numbers" else x1 + 1
            name = "fish" if one.damage == "class" else CLASSES[one.label]
            objects.append(
                f"<object><name>{name}</name><bndbox><xmin>{left}</xmin><ymin>{y1 + 1}</ymin>"
                f"<xmax>{x1 if one.damage == 'empty' else x2}</xmax><ymax>{y2}</ymax></bndbox>"
                "</object>"
            )
        path = (annotations / image.name).with_suffix(".xml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            f"<annotation><filename>{image.name}</filename><size><width>{width}</width>"
            f"<height>{height}</height></size>{''.join(objects)}</annotation>"
        )
    (annotations / "classes.txt").write_text("\n".join(CLASSES))
    return annotations


def _yolo(folder: Path, images: Sequence[PaintedImage]) -> Path:
    labels = folder / "labels"
    for image in images:
        lines = []
        for one in image.objects:
            x1, y1, x2, y2 = image.upright_share(one.box)
            width = 0.0 if one.damage == "empty" else x2 - x1
            numbers = ["x" if one.damage == "numbers" else (x1 + x2) / 2, (y1 + y2) / 2]
            label = 9 if one.damage == "class" else one.label
            lines.append(" ".join(map(str, [label, *numbers, width, y2 - y1])))
        path = (labels / image.name).with_suffix(".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines))
    (labels / "classes.txt").write_text("\n".join(CLASSES))
    return labels


WRITERS: dict[Format, Callable[[Path, Sequence[PaintedImage]], Path]] = {
    "coco": _coco,
    "voc": _voc,
    "yolo": _yolo,
}
