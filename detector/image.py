"""Encoded image bytes -> upright RGB pixels: the one decoder that prepare, training, evaluation and
prediction share.

A JPEG is decoded by simplejpeg, in 0.6 to 0.8 of Pillow's time (tests/benchmarks/decode.py). Any
other format goes through Pillow, and so does what simplejpeg complains about, so that Pillow alone
says what is no image. Where simplejpeg is not installed Pillow does it all. Both decode with
libjpeg-turbo in its default settings, and their pixels are equal to the bit. torchvision's decoder
is nearly as fast, but announced to be removed.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

# PIL's own guard warns at 89 Mpx and raises at twice that; ours is a parameter of the call and
# always an error.
Image.MAX_IMAGE_PIXELS = None

MAX_PIXELS = 100_000_000
# What holds photographs, read by decoders that open a file without decoding it, so that its size is
# known before memory is spent: an ICO or ICNS of a few kB is decoded, to 1.5 GiB, while it is
# opened, and EPS starts Ghostscript. MPO is a JPEG at first.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "WEBP", "TIFF", "JPEG2000", "AVIF", "PPM")
ORIENTATION = 0x0112
"""The EXIF tag."""


class ImageError(ValueError):
    """These bytes cannot be used as an image; the message says why in a few words."""


@dataclass(frozen=True)
class Jpeg:
    """A JPEG file of which the header alone has been read, in the place of its array: it is decoded
    when the size that is wanted is known.
    """

    data: bytes | memoryview
    shape: tuple[int, int, int]
    """(height, width, 3) of the upright picture, as of its array."""
    plain: bool
    """Grey or three colours, and stored as it is displayed; Pillow decodes the others."""

    def pixels(self, shrink: int = 1) -> np.ndarray:
        """Upright RGB, uint8 (H, W, 3): the whole picture, or with `shrink` 2, 4 or 8 one so many
        times smaller, by JPEG's own scaling.

        Sides are rounded up: the last px of 641 px halved to 321 is half beyond the border.
        `ImageError` where the file is truncated or damaged.
        """
        if self.plain and simplejpeg is not None:
            height, width = (-(-side // shrink) for side in self.shape[:2])
            try:
                return simplejpeg.decode_jpeg(self.data, "RGB", min_height=height, min_width=width)
            except ValueError:
                # Truncated, or a fault that libjpeg only warns of: Pillow refuses the first and
                # decodes the second, as it does where it is alone.
                pass
        with opened(self.data) as picture:
            if shrink > 1:
                picture.draft(None, (picture.width // shrink, picture.height // shrink))
            return upright_rgb(picture)


def decode_image(data: bytes | memoryview, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode any of `FORMATS` to upright (EXIF orientation applied) RGB pixels, uint8 (H, W, 3).

    Grey, palette, CMYK and 16-bit pictures become RGB; alpha is dropped, the colour beneath it
    stays. The format is read from the bytes, never from a name. Raises `ImageError` on an empty or
    truncated file, an unknown format, and on more than `max_pixels` pixels, which is checked on the
    header, before anything is decoded.
    """
    image = open_image(data, max_pixels=max_pixels)
    return image.pixels() if isinstance(image, Jpeg) else image


def open_image(data: bytes | memoryview, *, max_pixels: int = MAX_PIXELS) -> np.ndarray | Jpeg:
    """As `decode_image`, but a JPEG is left to be decoded at the size it is wanted in.
    `detector.augment` takes both.

    Raises `ImageError` as `decode_image` does, for the damage behind a JPEG's header only when it
    is decoded.
    """
    with opened(data) as picture:
        width, height = picture.size
        if width * height > max_pixels:
            raise ImageError(f"{width}x{height} pixels is more than the {max_pixels} allowed")
        # A phone's JPEG may be an MPO: several pictures, of which the first is meant.
        if picture.format not in ("JPEG", "MPO"):
            return upright_rgb(picture)
        turn = picture.getexif().get(ORIENTATION, 1)
        shape = (width, height, 3) if turn in range(5, 9) else (height, width, 3)
        return Jpeg(data, shape, plain=turn not in range(2, 9) and picture.mode in ("RGB", "L"))


@contextmanager
def opened(data: bytes | memoryview) -> Iterator[Image.Image]:
    """Pillow's picture of these bytes; whatever goes wrong with it is an `ImageError`."""
    if len(data) == 0:
        raise ImageError("the file is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            yield picture
    except ImageError:
        raise
    # Pillow's plugins raise OSError, SyntaxError, struct.error, ValueError and more on damaged
    # files
    except Exception as error:
        raise ImageError(f"it cannot be decoded: {error}") from error


def upright_rgb(picture: Image.Image) -> np.ndarray:
    ImageOps.exif_transpose(picture, in_place=True)
    if picture.mode.startswith("I;16") or picture.mode == "I":
        # Pillow's own conversion of 16-bit grey clips at 255 instead of scaling.
        picture = Image.fromarray(
            (np.asarray(picture, dtype=np.uint32) >> 8).clip(0, 255).astype(np.uint8)
        )
    # Pillow copies what is RGB already.
    return np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))


def shrinkage(sides: tuple[int, int], at_least: tuple[int, int]) -> int:
    """1, 2, 4 or 8: how many times smaller a JPEG of these (height, width) px may be decoded when
    `at_least` so many are wanted of it.

    Under 64 px there is nothing to save, and of under 8 px the two libraries do not choose the same
    scale.
    """
    for shrink in (8, 4, 2) if min(sides) >= 64 else ():
        if all(shrink * least <= side for side, least in zip(sides, at_least, strict=True)):
            return shrink
    return 1
