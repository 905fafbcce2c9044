"""Encoded image bytes -> upright RGB pixels: the one decoder that prepare, training, evaluation and prediction share.

A JPEG is decoded by simplejpeg, in 0.6 to 0.8 of Pillow's time (tests/benchmarks/decode.py). Any other format goes through Pillow, and so does
what simplejpeg complains about, so that Pillow alone says what is no image. Where simplejpeg is not installed Pillow does it all. Both decode with
libjpeg-turbo in its default settings, and their pixels are equal to the bit. torchvision's decoder is nearly as fast, but announced to be removed.

The header of an ordinary JPEG is read here, in 15 us instead of Pillow's 80, 3 % of what a picture of 640 x 480 px costs in all.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

# PIL's own guard warns at 89 Mpx and raises at twice that; ours is a parameter of the call and always an error.
Image.MAX_IMAGE_PIXELS = None

MAX_PIXELS = 100_000_000
ORIENTATION = 0x0112
"""The EXIF tag."""


class ImageError(ValueError):
    """These bytes cannot be used as an image; the message says why in a few words."""


@dataclass(frozen=True)
class Jpeg:
    """A JPEG file of which the header alone has been read, in the place of its array: it is decoded when the size that is wanted is known."""

    data: bytes | memoryview
    shape: tuple[int, int, int]
    """(height, width, 3) of the upright picture, as of its array."""
    plain: bool
    """Grey or three colours, and stored as it is displayed; Pillow decodes the others."""

    def pixels(self, shrink: int = 1) -> np.ndarray:
        """Upright RGB, uint8 (H, W, 3): the whole picture, or with `shrink` 2, 4 or 8 one so many times smaller, by JPEG's own scaling.

        Sides are rounded up: the last px of 641 px halved to 321 is half beyond the border. `ImageError` where the file is truncated or damaged.
        """
        if self.plain and simplejpeg is not None:
            height, width = (-(-side // shrink) for side in self.shape[:2])
            try:
                return simplejpeg.decode_jpeg(self.data, "RGB", min_height=height, min_width=width)
            except ValueError:
                # Truncated, or a fault that libjpeg only warns of: Pillow refuses the first and decodes the second, as it does where it is alone.
                pass
        with opened(self.data) as picture:
            if shrink > 1:
                picture.draft(None, (picture.width // shrink, picture.height // shrink))
            return upright_rgb(picture)


def decode_image(data: bytes | memoryview, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode any format Pillow reads to upright (EXIF orientation applied) RGB pixels, uint8 (H, W, 3).

    Grey, palette, CMYK and 16-bit pictures become RGB; alpha is dropped, the colour beneath it stays.
    The format is read from the bytes, never from a name. Raises `ImageError` on an empty or truncated file, an unknown
    format, and on more than `max_pixels` pixels, which is checked on the header, before anything is decoded.
    """
    image = open_image(data, max_pixels=max_pixels)
    return image.pixels() if isinstance(image, Jpeg) else image


def open_image(data: bytes | memoryview, *, max_pixels: int = MAX_PIXELS) -> np.ndarray | Jpeg:
    """As `decode_image`, but a JPEG is left to be decoded at the size it is wanted in. `detector.augment` takes both.

    Raises `ImageError` as `decode_image` does, for the damage behind a JPEG's header only when it is decoded.
    """
    if header := jpeg_header(data):
        return stored_jpeg(data, *header, colours=True, max_pixels=max_pixels)
    with opened(data) as picture:
        width, height = picture.size
        # A phone's JPEG may be an MPO: several pictures, of which the first is meant.
        if picture.format in ("JPEG", "MPO"):
            turn = picture.getexif().get(ORIENTATION, 1)
            return stored_jpeg(data, height, width, turn, colours=picture.mode in ("RGB", "L"), max_pixels=max_pixels)
        check_size(height, width, max_pixels)
        return upright_rgb(picture)


def stored_jpeg(data: bytes | memoryview, height: int, width: int, turn: int, *, colours: bool, max_pixels: int) -> Jpeg:
    """The JPEG of these sides in px as it is stored, with its EXIF orientation; `colours`: it is grey or of three colours."""
    check_size(height, width, max_pixels)
    shape = (width, height, 3) if turn in range(5, 9) else (height, width, 3)
    return Jpeg(data, shape, plain=colours and turn not in range(2, 9))


def check_size(height: int, width: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageError(f"{width}x{height} pixels is more than the {max_pixels} allowed")


SOF, DHT, SOS, DQT, DRI, APP0, APP1, APP2, APP13, APP14, COM = (0xC0, 0xC1, 0xC2), 0xC4, 0xDA, 0xDB, 0xDD, 0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE
"""Markers of ITU T.81, table B.1; of the frames the baseline, the extended and the progressive one, with Huffman codes."""
ORDINARY = {*SOF, DHT, SOS, DQT, DRI, *range(APP0, APP14 + 2), COM}


def jpeg_header(data: bytes | memoryview) -> tuple[int, int, int] | None:
    """(height, width) px as stored and EXIF orientation of an ordinary JPEG, grey or of three colours, from the segments before its first scan.

    None for whatever Pillow might read otherwise or refuse: it is to decide.
    """
    frame, turn, place, size = None, None, 2, len(data)
    if data[:2] != b"\xff\xd8":
        return None
    while place + 4 <= size:
        mark, kind, length = struct.unpack_from(">BBH", data, place)
        start, place = place + 4, place + 2 + length
        if mark != 0xFF or kind not in ORDINARY or length < 2 or place > size:
            return None
        if kind == SOS:
            return frame and (*frame, turn or 1)
        if kind in SOF:
            bits, height, width, components = struct.unpack_from(">BHHB", data, start) if length >= 8 else (0, 0, 0, 0)
            if frame or bits != 8 or components not in (1, 3) or length != 8 + 3 * components or not height or not width:
                return None
            frame = height, width
        elif kind == DQT:
            # Tables of 64 bytes, each after a byte below 16.
            if (length - 2) % 65 or any(number > 15 for number in data[start:place:65]):
                return None
        elif kind >= APP0 and kind != COM:
            found = application_turn(kind, bytes(data[start:place]))
            if found is None or (found and turn):
                return None
            turn = turn or found
    return None


def application_turn(kind: int, content: bytes) -> int | None:
    """The orientation that an application's segment of a JPEG gives, 0 if none; None where it holds what Pillow should read."""
    if kind == APP1:
        if content.startswith(b"Exif\0\0"):
            return exif_turn(content[6:])
        return None if b"Orientation" in content else 0
    # Contents that Pillow looks into, with the bytes that it asks of them: of APP2 and APP13 several pictures, and Photoshop's resources.
    least = {(APP0, b"JFIF"): 7, (APP14, b"Adob"): 7, (APP2, b"ICC_"): 14, (APP2, b"MPF\0"): None, (APP13, b"Phot"): None}.get((kind, content[:4]), 0)
    return None if least is None or len(content) < least else 0


EXIF_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 7: 1, 9: 4, 10: 8}
"""Of a value, by its type."""


def exif_turn(tiff: bytes) -> int | None:
    """The orientation in the first directory of EXIF's TIFF, 1 if there is none; None where an entry is none that Pillow surely reads."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None or len(tiff) < 8:
        return None
    (first,) = struct.unpack_from(order + "I", tiff, 4)
    if first + 2 > len(tiff):
        return None
    (count,) = struct.unpack_from(order + "H", tiff, first)
    if first + 2 + 12 * count + 4 > len(tiff):
        return None
    turn = None
    for place in range(first + 2, first + 2 + 12 * count, 12):
        tag, kind, values, offset = struct.unpack_from(order + "HHII", tiff, place)
        length = EXIF_BYTES.get(kind, 0) * values
        if not length or (length > 4 and offset + length > len(tiff)):
            return None
        if tag == ORIENTATION:
            if kind != 3 or values != 1 or turn is not None:
                return None
            (turn,) = struct.unpack_from(order + "H", tiff, place + 8)
    return turn or 1


@contextmanager
def opened(data: bytes | memoryview) -> Iterator[Image.Image]:
    """Pillow's picture of these bytes; whatever goes wrong with it is an `ImageError`."""
    if len(data) == 0:
        raise ImageError("the file is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(data)) as picture:
            yield picture
    except ImageError:
        raise
    except Exception as error:  # Pillow's plugins raise OSError, SyntaxError, struct.error, ValueError and more on damaged files
        raise ImageError(f"it cannot be decoded: {error}") from error


def upright_rgb(picture: Image.Image) -> np.ndarray:
    ImageOps.exif_transpose(picture, in_place=True)
    if picture.mode.startswith("I;16") or picture.mode == "I":
        # Pillow's own conversion of 16-bit grey clips at 255 instead of scaling.
        picture = Image.fromarray((np.asarray(picture, dtype=np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    # Pillow copies what is RGB already.
    return np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))


def shrinkage(sides: tuple[int, int], at_least: tuple[int, int]) -> int:
    """1, 2, 4 or 8: how many times smaller a JPEG of these (height, width) px may be decoded when `at_least` so many are wanted of it.

    Under 64 px there is nothing to save, and of under 8 px the two libraries do not choose the same scale.
    """
    for shrink in (8, 4, 2) if min(sides) >= 64 else ():
        if all(shrink * least <= side for side, least in zip(sides, at_least, strict=True)):
            return shrink
    return 1
