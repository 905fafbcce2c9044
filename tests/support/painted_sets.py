"""Sets of pictures on which each object is a block of its own colour, written in any annotation
format, with damage. What was painted and damaged is the independent count of what must come out.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import numpy as np
from PIL import Image

from cluster.formats.kinds import Format
from cluster.formats.read import SourcePaths
from detector.image import ORIENTATION
from tests.support import parquet_sets

CLASSES = ("cat", "dog", "bird")
PARQUET = "a.parquet"
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
    inside = format.startswith("parquet")
    for image in [] if inside else images:
        path = folder / "images" / image.name
        path.parent.mkdir(parents=True, exist_ok=True)
        if (data := image.file()) is not None:
            path.write_bytes(data)
    annotations = WRITERS[format](folder, images)
    return SourcePaths(
        "painted", format, str(annotations), None if inside else str(folder / "images")
    )


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


def _cvat(folder: Path, images: Sequence[PaintedImage]) -> Path:
    records = []
    for number, image in enumerate(images):
        height, width = image.size
        boxes = []
        for one in image.objects:
            x1, y1, x2, y2 = one.box
            name = "fish" if one.damage == "class" else CLASSES[one.label]
            left = "x" if one.damage == "numbers" else x1
            right = x1 if one.damage == "empty" else x2
            boxes.append(f'<box label="{name}" xtl="{left}" ytl="{y1}" xbr="{right}" ybr="{y2}"/>')
        records.append(
            f'<image id="{number}" name="{image.name}" width="{width}" height="{height}">'
            f"{''.join(boxes)}</image>"
        )
    labels = "".join(f"<label><name>{name}</name></label>" for name in CLASSES)
    path = folder / "annotations.xml"
    path.write_text(
        f"<annotations><meta><task><labels>{labels}</labels></task></meta>{''.join(records)}"
        "</annotations>"
    )
    return path


def _labelstudio(folder: Path, images: Sequence[PaintedImage]) -> Path:
    tasks = []
    for number, image in enumerate(images):
        results = []
        for one in image.objects:
            x1, y1, x2, y2 = (100 * share for share in image.upright_share(one.box))
            value: dict[str, object] = {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1}
            value["rectanglelabels"] = ["fish" if one.damage == "class" else CLASSES[one.label]]
            value |= {"numbers": {"x": "x"}, "empty": {"width": 0}}.get(one.damage or "", {})
            results.append({"type": "rectanglelabels", "value": value})
        address = f"/data/local-files/?d={quote(image.name)}"
        annotations = [{"was_cancelled": False, "result": results}]
        tasks.append({"id": number, "data": {"image": address}, "annotations": annotations})
    path = folder / "tasks.json"
    path.write_text(json.dumps(tasks))
    (folder / "classes.txt").write_text("\n".join(CLASSES))
    return path


def _csv(folder: Path, images: Sequence[PaintedImage]) -> Path:
    lines = ["filename,width,height,class,xmin,ymin,xmax,ymax"]
    for image in images:
        height, width = image.size
        start = f"{image.name},{width},{height}"
        for one in image.objects:
            x1, y1, x2, y2 = one.box
            name = "fish" if one.damage == "class" else CLASSES[one.label]
            left = "x" if one.damage == "numbers" else x1
            lines.append(f"{start},{name},{left},{y1},{x1 if one.damage == 'empty' else x2},{y2}")
        lines += [] if image.objects else [f"{start},,,,,"]
    path = folder / "boxes.csv"
    path.write_text("\n".join(lines))
    (folder / "classes.txt").write_text("\n".join(CLASSES))
    return path


def _openimages(folder: Path, images: Sequence[PaintedImage]) -> Path:
    lines = ["ImageID,LabelName,XMin,XMax,YMin,YMax"]
    for image in images:
        for one in image.objects:
            x1, y1, x2, y2 = image.upright_share(one.box)
            left = "x" if one.damage == "numbers" else x1
            right = x1 if one.damage == "empty" else x2
            name = Path(image.name).stem
            lines.append(f"{name},/m/{one.label},{left},{right},{y1},{y2}")
    path = folder / "boxes.csv"
    path.write_text("\n".join(lines))
    names = [f"/m/{label},{name}" for label, name in enumerate(CLASSES)]
    (folder / "class-descriptions-boxable.csv").write_text("\n".join(names))
    return path


def _crowdhuman(folder: Path, images: Sequence[PaintedImage]) -> Path:
    lines = []
    for image in images:
        boxes = []
        for one in image.objects:
            x1, y1, x2, y2 = one.box
            width = 0 if one.damage == "empty" else x2 - x1
            box = ["x" if one.damage == "numbers" else x1, y1, width, y2 - y1]
            boxes.append({"tag": "person", "fbox": box})
        lines.append(json.dumps({"ID": str(Path(image.name).with_suffix("")), "gtboxes": boxes}))
    path = folder / "annotation.odgt"
    path.write_text("\n".join(lines))
    return path


def _parquet(folder: Path, images: Sequence[PaintedImage]) -> Path:
    rows = []
    for image in images:
        height, width = image.size
        boxes, classes = [], []
        for one in image.objects:
            x1, y1, x2, y2 = (float(value) for value in one.box)
            left = math.nan if one.damage == "numbers" else x1
            boxes.append([left, y1, 0.0 if one.damage == "empty" else x2 - x1, y2 - y1])
            classes.append(9 if one.damage == "class" else one.label)
        objects = {"bbox": boxes, "category": classes}
        picture = {"bytes": image.file(), "path": image.name}
        rows.append({"image": picture, "width": width, "height": height, "objects": objects})
    return Path(parquet_sets.write(folder / PARQUET, rows, names=CLASSES))


WRITERS: dict[Format, Callable[[Path, Sequence[PaintedImage]], Path]] = {
    "coco": _coco,
    "voc": _voc,
    "yolo": _yolo,
    "cvat": _cvat,
    "labelstudio": _labelstudio,
    "csv": _csv,
    "openimages": _openimages,
    "crowdhuman": _crowdhuman,
    "parquet_xywh": _parquet,
}


def possible(images: Sequence[PaintedImage], format: Format) -> list[PaintedImage]:
    """The images as far as the format can tell of them."""
    if format == "openimages":
        # It has no line for an image without a box, and a class of another name is a class.
        known = [_without_damage(image, "class") for image in images]
        return [image for image in known if image.objects]
    if format == "crowdhuman":
        # Its one class is person, its pictures are JPEGs, and it gives no sizes.
        return [
            replace(
                _without_damage(image, "class", label=0),
                name=str(Path(image.name).with_suffix(".jpg")),
                change=None,
            )
            for image in images
        ]
    return list(images)


def _without_damage(
    image: PaintedImage, damage: ObjectDamage, *, label: int | None = None
) -> PaintedImage:
    objects = tuple(
        replace(
            one,
            damage=None if one.damage == damage else one.damage,
            label=one.label if label is None else label,
        )
        for one in image.objects
    )
    return replace(image, objects=objects)


def stored_name(image: PaintedImage, number: int, format: Format) -> str:
    """The name of image `number` in the set."""
    return f"{PARQUET}#{number}" if format == "parquet_xywh" else image.name
