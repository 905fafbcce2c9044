"""Encoded image bytes -> upright RGB pixels: the one decoder that prepare, training, evaluation and
prediction share.

simplejpeg decodes a JPEG, in 0.6 to 0.8 of Pillow's time (tests/benchmarks/decode.py). Pillow
decodes the other formats and any JPEG that simplejpeg refuses, so that Pillow alone decides what is
an image. Without simplejpeg Pillow decodes everything. Both use libjpeg-turbo with its default
settings, and their pixels are equal to the bit. torchvision's decoder is nearly as fast, but its
removal is announced.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from detector.image_headers import count_scans, webp_size

try:
    import simplejpeg
except ImportError:
    simplejpeg = None


# PIL's own limit warns at 89 Mpx and raises at twice that; ours is an argument, and always an
# error.
Image.MAX_IMAGE_PIXELS = None

MAX_PIXELS = 100_000_000
MAX_BYTES = 256 << 20
"""Of a file; a larger one is a scan or no image at all, and several are in memory at once."""
MAX_SCANS, FEWEST_SCANS = 100, 20
"""A progressive JPEG is decoded scan by scan, and each goes over all pixels. Usual are 10; a small
and a large picture may have as many as these.
"""
MAX_SCANNED = 20 * MAX_PIXELS
"""Pixels times scans, for the sizes between."""
# Formats of photographs whose decoders open a file without decoding it, so that its size is known
# before memory is allocated: an ICO or ICNS of a few kB is decoded, to 1.5 GiB, while it is opened,
# and EPS starts Ghostscript. MPO begins as a JPEG.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "WEBP", "TIFF", "JPEG2000", "AVIF", "PPM")
SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .mpo .png .apng .gif .bmp .dib .webp .tif .tiff .jp2 .j2k .jpc .jpf .jpx"
    " .j2c .avif .avifs .ppm .pbm .pgm .pnm .pfm".split()
)
"""Suffixes that files of these formats have, in lower case. A name says only which files to look
at; the bytes say what they are.
"""
_OTHERS = (
    (
        re.compile(rb"(?s)....ftyp(hei[cmsx]|hev[cmsx]|mif1|msf1)"),
        "a HEIC picture; convert it to JPEG or PNG",
    ),
    (re.compile(rb"(?s)\xff\x0a|\0\0\0\x0cJXL "), "a JPEG XL picture; convert it to JPEG or PNG"),
    (re.compile(rb"(?s)....ftyp"), "a video, not a picture"),
    (re.compile(rb"%PDF"), "a PDF document, not a picture"),
    (re.compile(rb"\s*<(svg|\?xml)"), "an SVG or XML file; pixels are needed"),
    (re.compile(rb"(?i)\s*<(!doctype|html)"), "a web page, not a picture"),
)
"""How files begin that are often found in the place of a picture."""
ORIENTATION = 0x0112
"""The EXIF tag."""


class ImageError(ValueError):
    """These bytes cannot be used as an image. `rule` says why in a few words, which are the same
    for all images of this fault; `detail` has the values of this image. The message has both.
    """

    def __init__(self, rule: str, detail: str = ""):
        super().__init__(f"{rule} ({detail})" if detail else rule)
        self.rule, self.detail = rule, detail


class TooManyPixels(ImageError):
    """The picture has more pixels than the reader allows."""


@dataclass(frozen=True)
class Jpeg:
    """A JPEG file of which only the header has been read. It stands for the array of its pixels and
    is decoded later, when the needed size is known.
    """

    data: bytes | memoryview
    shape: tuple[int, int, int]
    """(height, width, 3) of the upright picture, the shape of its array."""
    plain: bool
    """Grey or three colours, and stored upright; Pillow decodes all others."""

    def pixels(self, shrink: int = 1) -> np.ndarray:
        """Upright RGB, uint8 (H, W, 3): the whole picture, or with `shrink` 2, 4 or 8 one that is
        so many times smaller, by JPEG's own scaling.

        Sides are rounded up: 641 px halved are 321, and half of the last px is beyond the border.
        `ImageError` where the file is truncated or damaged.
        """
        if self.plain and simplejpeg is not None:
            height, width = (-(-side // shrink) for side in self.shape[:2])
            try:
                return simplejpeg.decode_jpeg(self.data, "RGB", min_height=height, min_width=width)
            except ValueError:
                # The file is truncated, or libjpeg warns of a fault: Pillow refuses the first and
                # decodes the second, as it does without simplejpeg.
                pass
        with opened(self.data) as picture:
            if shrink > 1:
                picture.draft(None, (picture.width // shrink, picture.height // shrink))
            return _upright_rgb(picture)


def decode_image(data: bytes | memoryview, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode any of `FORMATS` to upright (EXIF orientation applied) RGB pixels, uint8 (H, W, 3).

    Grey, palette, CMYK and 16-bit pictures become RGB; alpha is dropped, the colour below it stays.
    The format is recognised from the bytes, never from a name. `ImageError` for an empty or
    truncated file, an unknown format, and more than `max_pixels` pixels, which is checked in the
    header before anything is decoded.
    """
    image = open_image(data, max_pixels=max_pixels)
    return image.pixels() if isinstance(image, Jpeg) else image


def open_image(data: bytes | memoryview, *, max_pixels: int = MAX_PIXELS) -> np.ndarray | Jpeg:
    """As `decode_image`, but a JPEG is decoded later, at the needed size. `detector.placement`
    takes both.

    `ImageError` as in `decode_image`; for damage after a JPEG's header it is raised when the JPEG
    is decoded.
    """
    with opened(data, max_pixels=max_pixels) as picture:
        _refuse_pixels(picture.size, max_pixels)
        width, height = picture.size
        # A phone's JPEG may be an MPO: several pictures, of which the first is used.
        if picture.format not in ("JPEG", "MPO"):
            return _upright_rgb(picture)
        _refuse_scans(data, width * height)
        turn = picture.getexif().get(ORIENTATION, 1)
        shape = (width, height, 3) if turn in range(5, 9) else (height, width, 3)
        return Jpeg(data, shape, plain=turn not in range(2, 9) and picture.mode in ("RGB", "L"))


@contextmanager
def opened(data: bytes | memoryview, *, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """Pillow's picture of these bytes. Any error within it becomes an `ImageError`. One of more
    than `max_pixels` is refused where its decoder allocates them while it opens the file.
    """
    if len(data) == 0:
        raise ImageError("the file is empty")
    if (size := webp_size(data)) is not None:
        _refuse_pixels(size, max_pixels)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            yield picture
    except ImageError:
        raise
    # Pillow's plugins raise OSError, SyntaxError, struct.error, ValueError and more on damaged
    # files
    except Exception as error:
        named = next((name for mark, name in _OTHERS if mark.match(bytes(data[:64]))), None)
        if named is not None:
            raise ImageError(f"it is {named}") from error
        # Pillow puts values behind the rule, in brackets; an address in memory says nothing.
        rule, _, detail = str(error).partition(" (")
        rule = re.sub(r"\s*<[^>]*>", "", rule)
        raise ImageError(f"it cannot be decoded: {rule}", detail.removesuffix(")")) from error


def _refuse_pixels(size: tuple[int, int], most: int) -> None:
    width, height = size
    if width * height > most:
        raise TooManyPixels(f"it has more pixels than the {most} allowed", f"{width}x{height}")


def _refuse_scans(data: bytes | memoryview, pixels: int) -> None:
    most = max(FEWEST_SCANS, min(MAX_SCANS, MAX_SCANNED // max(pixels, 1)))
    if count_scans(data, most=most) > most:
        raise ImageError(
            "its JPEG has more scans than are decoded; save it again", f"more than {most}"
        )


def _upright_rgb(picture: Image.Image) -> np.ndarray:
    """uint8 (H, W, 3); turns the picture upright in place."""
    ImageOps.exif_transpose(picture, in_place=True)
    if picture.mode.startswith("I;16") or picture.mode in ("I", "F"):
        # Pillow's own conversion clips at 255 instead of scaling.
        picture = Image.fromarray(_eight_bits(np.asarray(picture)))
    # Pillow's `convert` copies a picture that is RGB already.
    return np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))


def _eight_bits(values_HW: np.ndarray) -> np.ndarray:
    """Grey values of more than 8 bits as uint8. Whole numbers are divided by the same power of two
    as all pictures of their depth: 8, 10, 12, 14, 16, 24 or 31 bits, the fewest that hold the
    largest value. Fractions from 0 to 1 are multiplied by 255. `ImageError` for other fractions.
    """
    largest = float(values_HW.max(initial=0))
    if values_HW.dtype.kind == "f":
        if not (0 <= float(values_HW.min(initial=0)) and largest <= 255):
            raise ImageError("its pixels are fractions outside 0 to 1 and 0 to 255")
        scale = 255 if largest <= 1 else 1
        return np.rint(values_HW * scale).astype(np.uint8)
    bits = next(bits for bits in (8, 10, 12, 14, 16, 24, 31) if largest < 1 << bits or bits == 31)
    return (values_HW.clip(0).astype(np.int64) >> (bits - 8)).astype(np.uint8)


def shrinkage(sides: tuple[int, int], at_least: tuple[int, int]) -> int:
    """1, 2, 4 or 8: how many times smaller a JPEG of `sides` (height, width) px may be decoded when
    `at_least` (height, width) px are needed.

    Below 64 px nothing is saved, and below 8 px the two libraries choose different scales.
    """
    for shrink in (8, 4, 2) if min(sides) >= 64 else ():
        if all(shrink * least <= side for side, least in zip(sides, at_least, strict=True)):
            return shrink
    return 1
