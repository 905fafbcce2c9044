"""Encoded image bytes -> upright RGB pixels: the one decoder that prepare, training, evaluation and prediction share."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps

# PIL's own guard warns at 89 Mpx and raises at twice that; ours is a parameter of the call and always an error.
Image.MAX_IMAGE_PIXELS = None

MAX_PIXELS = 100_000_000


class ImageError(ValueError):
    """These bytes cannot be used as an image; the message says why in a few words."""


def decode_image(data: bytes | memoryview, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode any format Pillow reads to upright (EXIF orientation applied) RGB pixels, uint8 (H, W, 3).

    Grey, palette, CMYK and 16-bit pictures become RGB; alpha is dropped, the colour beneath it stays.
    The format is read from the bytes, never from a name. Raises `ImageError` on an empty or truncated file, an unknown
    format, and on more than `max_pixels` pixels, which is checked on the header, before anything is decoded.
    """
    if len(data) == 0:
        raise ImageError("the file is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(data)) as picture:
            width, height = picture.size
            if width * height > max_pixels:
                raise ImageError(f"{width}x{height} pixels is more than the {max_pixels} allowed")
            upright = ImageOps.exif_transpose(picture)
            if upright.mode.startswith("I;16") or upright.mode == "I":
                # Pillow's own conversion of 16-bit grey clips at 255 instead of scaling.
                upright = Image.fromarray((np.asarray(upright, dtype=np.uint32) >> 8).clip(0, 255).astype(np.uint8))
            return np.asarray(upright.convert("RGB"))
    except ImageError:
        raise
    except Exception as error:  # Pillow's plugins raise OSError, SyntaxError, struct.error, ValueError and more on damaged files
        raise ImageError(f"it cannot be decoded: {error}") from error
