"""One annotated image file -> the row that is stored, or the reason why it is left out.

A file is stored byte for byte as it came, in whatever format: the one decoder (`detector.image`)
reads them all. Only a picture with an EXIF orientation is encoded anew, upright: JPEG as JPEG of
quality 95 with full colour resolution, every other format as PNG, without loss.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from PIL import Image

from cluster.errors import PlainError
from cluster.formats.annotations import ImageRecord, as_coco, clip_annotations
from cluster.shards.format import Row
from cluster.shards.quarantine import Quarantined
from cluster.storage import files
from cluster.storage.uris import join
from detector.image import ORIENTATION, ImageError, decode_image, opened

MISSING = "the file is not in the images folder"

Outcome = tuple[Row | None, list[Quarantined], Counter[str]]
"""The row or None; what was left out: the image, or annotations of it; what was repaired."""


def read_picture(image: ImageRecord, folder: str) -> bytes | None:
    """The file of an image below `folder`, None when it is not there."""
    uri = join(folder, image.file_name)
    try:
        return files.read_bytes(uri)
    except FileNotFoundError:
        return None
    except OSError as error:
        # A storage that fails says nothing about the image: stop, so that good images are not left
        # out.
        raise PlainError(
            f"{uri}: cannot be read ({files.reason(error)}); run the command again, finished shards"
            " are kept"
        ) from error


def ingest_image(
    image: ImageRecord, data: bytes | None, *, max_pixels: int, category_ids: Sequence[int]
) -> Outcome:
    """The record of an image and the bytes of its file -> what is stored. `category_ids` by label
    are for the quarantine.
    """
    if data is None:
        return None, [leave_out(image, MISSING, category_ids=category_ids)], Counter()
    try:
        pixels_HW3 = decode_image(data, max_pixels=max_pixels)
        turn, form = header(data)
    except ImageError as error:
        return None, [leave_out(image, plain(str(error)), category_ids=category_ids)], Counter()

    repairs: Counter[str] = Counter()
    height, width = pixels_HW3.shape[:2]
    stored, annotations = data, list(image.annotations)
    if turn != 1:
        stored = encode(pixels_HW3, form)
        repairs["images with an EXIF orientation, stored upright"] += 1
        # 5 to 8 swap the sides: annotations that give the size before turning were made on the
        # picture before turning.
        if turn >= 5 and height != width and (image.height, image.width) == (width, height):
            annotations = [
                one._replace(box=turn_box(one.box, turn, height=width, width=height))
                for one in annotations
            ]
            image = image._replace(height=height, width=width)
            repairs[
                "images whose boxes were annotated before the EXIF turn, turned with the picture"
            ] += 1
    if image.normalised:
        annotations = [
            one._replace(
                box=tuple(
                    share * side for share, side in zip(one.box, (width, height) * 2, strict=True)
                )
            )
            for one in annotations
        ]
    if image.height is not None and (image.height, image.width) != (height, width):
        repairs["image sizes wrong in the annotations, taken from the pixels"] += 1
    kept, dropped, cut = clip_annotations(
        annotations, height=height, width=width, image=image, category_ids=category_ids
    )
    repairs["boxes clipped to the picture"] += cut
    row = Row(
        image_id=image.image_id,
        file_name=image.file_name,
        image=stored,
        height=height,
        width=width,
        boxes_N4=np.array([one.box for one in kept], np.float32).reshape(-1, 4),
        labels_N=[one.label for one in kept],
        crowd_N=[one.crowd for one in kept],
        area_N=[one.area or 0.0 for one in kept],
        source=image.source,
        sha256=hashlib.sha256(data).digest(),
    )
    return row, dropped, repairs


def plain(why: str) -> str:
    """A decoder's message so that equal faults read alike: sizes in brackets, where they are not
    told apart, and no address of a buffer, which Pillow puts into some messages and which differs
    from run to run."""
    return re.sub(
        r"^(\d+x\d+) pixels is more than the (\d+) allowed$",
        r"it has more pixels than the \2 of --max_pixels (\1)",
        re.sub(r"\s*<[^>]*>", "", why),
    )


def header(data: bytes) -> tuple[int, str]:
    """The EXIF orientation 1..8, 1 (upright) where there is none or it makes no sense; the format
    by Pillow's name.
    """
    with opened(data) as picture:
        value = picture.getexif().get(ORIENTATION, 1)
        return value if value in range(1, 9) else 1, picture.format or ""


def encode(pixels_HW3: np.ndarray, form: str) -> bytes:
    sink = io.BytesIO()
    if form in ("JPEG", "MPO"):
        Image.fromarray(pixels_HW3).save(sink, "JPEG", quality=95, subsampling=0)
    else:
        Image.fromarray(pixels_HW3).save(sink, "PNG")
    return sink.getvalue()


def turn_box(
    box: tuple[float, float, float, float], turn: int, *, height: int, width: int
) -> tuple[float, float, float, float]:
    """XYXY px in a stored picture of `height` x `width` -> the same box in the upright picture, for
    the EXIF orientations 5 to 8.
    """
    x1, y1, x2, y2 = box
    return {
        5: (y1, x1, y2, x2),
        6: (height - y2, x1, height - y1, x2),
        7: (height - y2, width - x2, height - y1, width - x1),
        8: (y1, width - x2, y2, width - x1),
    }[turn]


def leave_out(image: ImageRecord, why: str, *, category_ids: Sequence[int]) -> Quarantined:
    """The entry of an image, with the annotations that go with it."""
    lost = [
        as_coco(one, image_id=image.image_id, category_ids=category_ids)
        for one in image.annotations
    ]
    raw = {
        "id": image.image_id,
        "file_name": image.file_name,
        "height": image.height,
        "width": image.width,
        "annotations": lost,
    }
    return Quarantined("image", image.file_name, why, json.dumps(raw, ensure_ascii=False))
