"""One annotated image file -> the row that is stored, or the reason why it is left out.

A file is stored byte for byte, in whatever format: the one decoder (`detector.image`) reads them
all. Only a picture with an EXIF orientation is encoded again, upright: JPEG as JPEG of quality 95
with full colour resolution, every other format as PNG, without loss.
"""

from __future__ import annotations

import hashlib
import io
import json
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
from cluster.storage.zips import DamagedMember
from detector.image import (
    MAX_BYTES,
    ORIENTATION,
    ImageError,
    TooManyPixels,
    decode_image,
    opened,
)

MISSING = "the file is not in the images folder"
DAMAGED = "the file is damaged in its zip"
TOO_LARGE = f"the file has more than {MAX_BYTES >> 20} MiB; save the picture in a smaller format"
STORED_UPRIGHT = "images with an EXIF orientation, stored upright"
BOXES_TURNED = "images whose boxes were annotated before the EXIF turn, turned with the picture"
WRONG_SIZE = "image sizes wrong in the annotations, taken from the pixels"
SCALED = "images of another size than in the annotations, whose boxes were scaled with them"
OTHER_SHAPE = (
    "its annotations are for a picture of another shape; leave the size out of them if the boxes"
    " are right"
)
BOXES_CLIPPED = "boxes clipped to the picture"

Outcome = tuple[Row | None, list[Quarantined], Counter[str]]
"""The row, or None; the rejected image, or its rejected annotations; the repairs."""


def read_picture(image: ImageRecord, folder: str) -> bytes | str:
    """The file of an image below `folder`, or why it has none."""
    uri = join(folder, image.file_name)
    try:
        with files.open_input(uri) as file:
            # Asked before it is read: a file may have more bytes than the machine has memory.
            return TOO_LARGE if file.size() > MAX_BYTES else file.read_buffer().to_pybytes()
    except FileNotFoundError:
        return MISSING
    except DamagedMember:
        return DAMAGED
    except OSError as error:
        # A failing storage says nothing about the image: stop, so that no good image is left out.
        raise PlainError(
            f"{uri}: cannot be read ({files.reason(error)}); run the command again, finished shards"
            " are kept"
        ) from error


def ingest_image(
    image: ImageRecord, data: bytes | str, *, max_pixels: int, category_ids: Sequence[int]
) -> Outcome:
    """An image and the bytes of its file, or why it has none -> what is stored. `category_ids` by
    label are for the quarantine.
    """
    if isinstance(data, str):
        return None, [leave_out(image, data, category_ids=category_ids)], Counter()
    try:
        pixels_HW3 = decode_image(data, max_pixels=max_pixels)
        turn, image_format = read_header(data)
    except ImageError as error:
        remedy = "; --max_pixels sets the limit" if isinstance(error, TooManyPixels) else ""
        why, detail = error.rule + remedy, error.detail
        return None, [leave_out(image, why, category_ids=category_ids, detail=detail)], Counter()

    repairs: Counter[str] = Counter()
    height, width = pixels_HW3.shape[:2]
    stored = data
    if turn != 1:
        stored = _encode(pixels_HW3, image_format)
        repairs[STORED_UPRIGHT] += 1
        if turn >= 5 and _is_before_turn(image, height=height, width=width):
            image = _turn_annotations(image, turn)
            repairs[BOXES_TURNED] += 1
    if image.normalised:
        image = _scale_boxes(image, down=height, across=width)
    if image.height is not None and (image.height, image.width) != (height, width):
        fitted = _fit_boxes(image, height=height, width=width)
        if fitted is None:
            detail = f"{image.width} x {image.height} px, the file has {width} x {height}"
            entry = leave_out(image, OTHER_SHAPE, category_ids=category_ids, detail=detail)
            return None, [entry], Counter()
        image, repair = fitted
        repairs[repair] += 1
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


def _is_before_turn(image: ImageRecord, *, height: int, width: int) -> bool:
    """Whether the annotations were made before a turn by 90 degrees, on a picture of `width` x
    `height` px: they give that size, unless their boxes fit the upright picture alone.
    """
    if height == width or (image.height, image.width) != (width, height):
        return False
    return _boxes_inside(image, height, width) <= _boxes_inside(image, width, height)


def _fit_boxes(image: ImageRecord, *, height: int, width: int) -> tuple[ImageRecord, str] | None:
    """The image with its boxes where they belong on its file of `height` x `width` px, which is not
    the size in the annotations, and the name of the repair. None where nobody can tell.
    """
    stored, given = (height, width), (image.height or 1, image.width or 1)
    fit_stored, fit_given = _boxes_inside(image, *stored), _boxes_inside(image, *given)
    turned = given == (width, height) and fit_stored == len(image.annotations)
    same = max(abs(given[0] - height), abs(given[1] - width)) <= 1
    if not image.annotations or fit_stored > fit_given or turned or same:
        return image, WRONG_SIZE
    down, across = height / given[0], width / given[1]
    # A resized picture has other sides in both directions, and either was rounded to a pixel.
    one_pixel = abs(given[0] * across - height) <= 1 or abs(given[1] * down - width) <= 1
    if given[0] == height or given[1] == width or not one_pixel:
        return None
    return _scale_boxes(image, down=down, across=across), SCALED


def _boxes_inside(image: ImageRecord, height: int, width: int) -> int:
    """How many boxes lie in a picture of this size; boxes may count from 1."""
    return sum(one.box[2] <= width + 1 and one.box[3] <= height + 1 for one in image.annotations)


def _scale_boxes(image: ImageRecord, *, down: float, across: float) -> ImageRecord:
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


def leave_out(
    image: ImageRecord, why: str, *, category_ids: Sequence[int], detail: str = ""
) -> Quarantined:
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
    return Quarantined("image", image.file_name, why, json.dumps(raw, ensure_ascii=False), detail)
