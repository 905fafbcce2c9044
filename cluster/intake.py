"""One annotated image file -> the row that is stored, or the reason why it is left out."""

from __future__ import annotations

import io
import json
import re
from collections import Counter

import numpy as np
from PIL import Image

from cluster import coco, shards, storage
from cluster.errors import PlainError
from detector.image import ORIENTATION, ImageError, decode_image

MISSING = "the file is not in the images folder"


def ingest_image(image: coco.ImageRecord, images_uri: str) -> tuple[shards.Row | None, list[coco.Quarantined], Counter[str]]:
    """One image as it will be stored, or None and the reason; what was dropped of it; what was repaired."""
    uri = storage.join(images_uri, image.file_name)
    try:
        data = storage.read_bytes(uri)
    except FileNotFoundError:
        return None, [leave_out(image, MISSING)], Counter()
    except OSError as error:
        # A storage that fails says nothing about the image: stop, so that good images are not left out.
        raise PlainError(f"{uri}: cannot be read ({storage.reason(error)}); run the command again, finished shards are kept") from error
    try:
        pixels_HW3 = decode_image(data)
    except ImageError as error:
        # Pillow puts the address of its buffer into some messages, and that differs from run to run.
        return None, [leave_out(image, re.sub(r"\s*<[^>]*>", "", str(error)))], Counter()

    repairs: Counter[str] = Counter()
    height, width = pixels_HW3.shape[:2]
    annotations = list(image.annotations)
    turn = orientation(data)
    if turn != 1:
        data = encode_jpeg(pixels_HW3)
        repairs["images with an EXIF orientation, stored upright"] += 1
        # 5 to 8 swap the sides: a JSON that gives the size before turning was annotated on the picture before turning.
        if turn >= 5 and height != width and (image.height, image.width) == (width, height):
            annotations = [one._replace(box=turn_box(one.box, turn, height=width, width=height)) for one in annotations]
            image = image._replace(height=height, width=width)
            repairs["images whose boxes were annotated before the EXIF turn, turned with the picture"] += 1
    if image.height is not None and (image.height, image.width) != (height, width):
        repairs["image sizes wrong in the JSON, taken from the pixels"] += 1
    kept, dropped, cut = coco.clip_annotations(annotations, height=height, width=width, file_name=image.file_name)
    repairs["boxes clipped to the picture"] += cut
    row = shards.Row(
        image_id=image.image_id,
        file_name=image.file_name,
        image=data,
        height=height,
        width=width,
        boxes_N4=coco.boxes_array(kept),
        labels_N=[one.label for one in kept],
        crowd_N=[one.crowd for one in kept],
        area_N=[one.area or 0.0 for one in kept],
    )
    return row, dropped, repairs


def orientation(data: bytes) -> int:
    """The EXIF orientation 1..8; 1, upright, where there is none or it makes no sense."""
    with Image.open(io.BytesIO(data)) as picture:
        value = picture.getexif().get(ORIENTATION, 1)
    return value if value in range(1, 9) else 1


def encode_jpeg(pixels_HW3: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels_HW3).save(sink, "JPEG", quality=95)
    return sink.getvalue()


def turn_box(box: tuple[float, float, float, float], turn: int, *, height: int, width: int) -> tuple[float, float, float, float]:
    """XYXY px in a stored picture of `height` x `width` -> the same box in the upright picture, for the EXIF orientations 5 to 8."""
    x1, y1, x2, y2 = box
    return {
        5: (y1, x1, y2, x2),
        6: (height - y2, x1, height - y1, x2),
        7: (height - y2, width - x2, height - y1, width - x1),
        8: (y1, width - x2, y2, width - x1),
    }[turn]


def leave_out(image: coco.ImageRecord, why: str) -> coco.Quarantined:
    raw = {"id": image.image_id, "file_name": image.file_name, "height": image.height, "width": image.width, "annotations": len(image.annotations)}
    return coco.Quarantined("image", image.file_name, why, json.dumps(raw, ensure_ascii=False))
