"""One annotated image file -> the row that is stored, or the reason why it is left out.

A file is stored byte for byte, in whatever format: the one decoder (`detector.image`) reads them
all. Only a picture with an EXIF orientation is encoded again, upright: JPEG as JPEG of quality 95
with full colour resolution, every other format as PNG, without loss.
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
from cluster.formats.annotations import Box, ImageRecord
from cluster.formats.clipping import as_coco, clip_annotations
from cluster.shards.format import Row
from cluster.shards.quarantine import Quarantined
from cluster.storage import files
from cluster.storage.uris import join
from detector.image import ORIENTATION, ImageError, decode_image, opened

MISSING = "the file is not in the images folder"
STORED_UPRIGHT = "images with an EXIF orientation, stored upright"
BOXES_TURNED = "images whose boxes were annotated before the EXIF turn, turned with the picture"
WRONG_SIZE = "image sizes wrong in the annotations, taken from the pixels"
SCALED = "images of another size than in the annotations, whose boxes were scaled with them"
BOXES_CLIPPED = "boxes clipped to the picture"

Outcome = tuple[Row | None, list[Quarantined], Counter[str]]
"""The row, or None; the rejected image, or its rejected annotations; the repairs."""


def read_picture(image: ImageRecord, folder: str) -> bytes | None:
    """The file of an image below `folder`, None when it is not there."""
    uri = join(folder, image.file_name)
    try:
        return files.read_bytes(uri)
    except FileNotFoundError:
        return None
    except OSError as error:
        # A failing storage says nothing about the image: stop, so that no good image is left out.
        raise PlainError(
            f"{uri}: cannot be read ({files.reason(error)}); run the command again, finished shards"
            " are kept"
        ) from error


def ingest_image(
    image: ImageRecord, data: bytes | None, *, max_pixels: int, category_ids: Sequence[int]
) -> Outcome:
    """An image and the bytes of its file -> what is stored. `category_ids` by label are for the
    quarantine.
    """
    if data is None:
        return None, [leave_out(image, MISSING, category_ids=category_ids)], Counter()
    try:
        pixels_HW3 = decode_image(data, max_pixels=max_pixels)
        turn, image_format = read_header(data)
    except ImageError as error:
        fault = _plain_fault(str(error))
        return None, [leave_out(image, fault, category_ids=category_ids)], Counter()

    repairs: Counter[str] = Counter()
    height, width = pixels_HW3.shape[:2]
    stored = data
    if turn != 1:
        stored = _encode(pixels_HW3, image_format)
        repairs[STORED_UPRIGHT] += 1
        # 5 to 8 swap the sides: annotations that give the size before turning were made on the
        # picture before turning.
        if turn >= 5 and height != width and (image.height, image.width) == (width, height):
            image = _turn_annotations(image, turn)
            repairs[BOXES_TURNED] += 1
    if image.normalised:
        image = _scale_annotations(image, height=height, width=width)
    if image.height is not None and (image.height, image.width) != (height, width):
        scaled = _scaled_with_picture(image, height=height, width=width)
        repairs[WRONG_SIZE if scaled is None else SCALED] += 1
        image = scaled or image
    annotations, dropped, clipped = clip_annotations(
        image.annotations, height=height, width=width, image=image, category_ids=category_ids
    )
    repairs[BOXES_CLIPPED] += clipped
    row = Row(
        image_id=image.image_id,
        file_name=image.file_name,
        image=stored,
        height=height,
        width=width,
        boxes_N4=np.array([one.box for one in annotations], np.float32).reshape(-1, 4),
        labels_N=[one.label for one in annotations],
        crowd_N=[one.crowd for one in annotations],
        area_N=[one.area or 0.0 for one in annotations],
        source=image.source,
        sha256=hashlib.sha256(data).digest(),
        federated=image.federated,
    )
    return row, dropped, repairs


def _scaled_with_picture(image: ImageRecord, *, height: int, width: int) -> ImageRecord | None:
    """The image with the boxes that belong to its stored size of `height` x `width` px; None where
    that has another aspect than the size in the annotations, to which the boxes belong.
    """
    if not image.height or not image.width or image.height == height or image.width == width:
        return None
    down, across = height / image.height, width / image.width
    # A resized picture has other sides in both directions, and either was rounded to a pixel.
    if abs(image.height * across - height) > 1 and abs(image.width * down - width) > 1:
        return None
    annotations = tuple(
        one._replace(
            box=tuple(
                value * scale for value, scale in zip(one.box, (across, down) * 2, strict=True)
            ),
            area=None if one.area is None else one.area * across * down,
        )
        for one in image.annotations
    )
    return image._replace(annotations=annotations)


def _plain_fault(message: str) -> str:
    """A decoder's message so that equal faults read alike: sizes go into brackets, where
    `by_reason` ignores them, and addresses of buffers, which Pillow puts into some messages and
    which differ from run to run, are removed.
    """
    return re.sub(
        r"^(\d+x\d+) pixels is more than the (\d+) allowed$",
        r"it has more pixels than the \2 of --max_pixels (\1)",
        re.sub(r"\s*<[^>]*>", "", message),
    )


def read_header(data: bytes) -> tuple[int, str]:
    """The EXIF orientation 1..8, 1 (upright) where there is none or it makes no sense; the format
    by Pillow's name.
    """
    with opened(data) as picture:
        value = picture.getexif().get(ORIENTATION, 1)
        return value if value in range(1, 9) else 1, picture.format or ""


def _encode(pixels_HW3: np.ndarray, image_format: str) -> bytes:
    sink = io.BytesIO()
    if image_format in ("JPEG", "MPO"):
        Image.fromarray(pixels_HW3).save(sink, "JPEG", quality=95, subsampling=0)
    else:
        Image.fromarray(pixels_HW3).save(sink, "PNG")
    return sink.getvalue()


def _turn_annotations(image: ImageRecord, turn: int) -> ImageRecord:
    """Annotations made on the stored picture, as they lie on the upright one."""
    height, width = image.height, image.width
    assert height is not None and width is not None
    annotations = tuple(
        one._replace(box=_turn_box(one.box, turn, height=height, width=width))
        for one in image.annotations
    )
    return image._replace(height=width, width=height, annotations=annotations)


def _scale_annotations(image: ImageRecord, *, height: int, width: int) -> ImageRecord:
    """Boxes in fractions of the picture become boxes in px."""
    annotations = []
    for one in image.annotations:
        x1, y1, x2, y2 = one.box
        annotations.append(one._replace(box=(x1 * width, y1 * height, x2 * width, y2 * height)))
    return image._replace(annotations=tuple(annotations))


def _turn_box(box: Box, turn: int, *, height: int, width: int) -> Box:
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
    """The quarantine's entry of an image, with its annotations, which are lost with it."""
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
