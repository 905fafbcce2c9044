"""Whatever Pillow reads becomes upright RGB; everything else is an ImageError with a reason."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from detector.image import ImageError, decode_image


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    sink = io.BytesIO()
    picture.save(sink, kind, **options)
    return sink.getvalue()


def noise(height: int = 12, width: int = 20) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_lossless_rgb_is_unchanged():
    pixels = noise()
    for kind in ("PNG", "BMP", "TIFF"):
        decoded = decode_image(encoded(Image.fromarray(pixels), kind))
        assert decoded.dtype == np.uint8 and np.array_equal(decoded, pixels)


def test_bytes_may_be_a_view_of_something_larger():
    data = encoded(Image.fromarray(noise()), "PNG")
    assert np.array_equal(decode_image(memoryview(b"xx" + data)[2:]), noise())


def test_grey_becomes_three_equal_channels():
    grey = noise()[..., 0]
    decoded = decode_image(encoded(Image.fromarray(grey), "PNG"))
    assert decoded.shape == (12, 20, 3)
    assert all(np.array_equal(decoded[..., channel], grey) for channel in range(3))


def test_one_bit_becomes_black_and_white():
    decoded = decode_image(encoded(Image.fromarray(noise()[..., 0]).convert("1"), "PNG"))
    assert set(np.unique(decoded)) == {0, 255}


def test_palette_becomes_its_colours():
    picture = Image.new("P", (4, 2), 1)
    picture.putpalette([0, 0, 0, 250, 120, 30])
    assert (decode_image(encoded(picture, "PNG")) == (250, 120, 30)).all()
    assert (decode_image(encoded(picture, "GIF")) == (250, 120, 30)).all()


def test_cmyk_jpeg_becomes_rgb():
    # No ink at all is white; full cyan takes away the red.
    assert (decode_image(encoded(Image.new("CMYK", (16, 16), (0, 0, 0, 0)), "JPEG")) > 250).all()
    cyan = decode_image(encoded(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG"))
    assert cyan[..., 0].max() < 5 and cyan[..., 1:].min() > 250


def test_sixteen_bits_are_scaled_to_eight():
    # The high byte: 0x1234 -> 0x12, 65,535 -> 255. Clipping instead would give 255 for all but the first.
    grey = np.array([[0x0012, 0x1234, 0x8000, 0xFFFF]], np.uint16)
    for kind in ("PNG", "TIFF"):
        decoded = decode_image(encoded(Image.fromarray(grey), kind))
        assert decoded[0, :, 0].tolist() == [0, 0x12, 0x80, 0xFF] and decoded.shape == (1, 4, 3)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_a_sixteen_bit_picture_is_turned_upright_too(kind):
    grey = np.array([[0x1000, 0x2000, 0x3000], [0x4000, 0x5000, 0x6000]], np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6
    decoded = decode_image(encoded(Image.fromarray(grey), kind, exif=exif))
    # Orientation 6: the stored picture is turned clockwise for display, so the first column, read upwards, is the first row.
    assert decoded[..., 0].tolist() == [[0x40, 0x10], [0x50, 0x20], [0x60, 0x30]]


def test_alpha_is_dropped_and_the_colour_beneath_stays():
    picture = Image.new("RGBA", (3, 2), (10, 20, 30, 0))
    assert (decode_image(encoded(picture, "PNG")) == (10, 20, 30)).all()


def test_exif_orientation_6_is_turned():
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, :16] = (255, 0, 0)  # the stored left half is the upper half upright
    exif = Image.Exif()
    exif[0x0112] = 6
    decoded = decode_image(encoded(Image.fromarray(pixels), "JPEG", quality=95, exif=exif))
    assert decoded.shape == (32, 16, 3)
    assert decoded[:15, :, 0].min() > 200 and decoded[17:, :, 0].max() < 50


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_ends_upright(orientation):
    upright = noise(6, 10)
    # What a camera stores so that the viewer's turn gives the upright picture: EXIF's table, undone.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(decode_image(encoded(Image.fromarray(np.ascontiguousarray(stored)), "PNG", exif=exif)), upright)


def test_an_orientation_that_makes_no_sense_is_upright():
    exif = Image.Exif()
    exif[0x0112] = 42
    assert np.array_equal(decode_image(encoded(Image.fromarray(noise()), "PNG", exif=exif)), noise())


def test_empty_file():
    with pytest.raises(ImageError, match="empty"):
        decode_image(b"")


@pytest.mark.parametrize("data", [b"not an image at all", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"<html>404</html>"])
def test_what_is_no_image(data):
    with pytest.raises(ImageError, match="cannot be decoded"):
        decode_image(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_truncated_files(kind):
    data = encoded(Image.fromarray(noise(64, 64)), kind)
    with pytest.raises(ImageError, match="cannot be decoded"):
        decode_image(data[: len(data) // 2])


def test_a_jpeg_without_its_last_marker_is_truncated():
    data = encoded(Image.fromarray(noise(64, 64)), "JPEG")
    assert data[-2:] == b"\xff\xd9"
    with pytest.raises(ImageError, match="truncated"):
        decode_image(data[:-200])


def test_more_pixels_than_allowed():
    data = encoded(Image.fromarray(noise(10, 30)), "PNG")
    assert decode_image(data, max_pixels=300).shape == (10, 30, 3)
    with pytest.raises(ImageError, match=r"30x10 pixels is more than the 299 allowed"):
        decode_image(data, max_pixels=299)


def test_a_bomb_is_refused_on_its_header():
    # A PNG of 100,000 x 100,000 in 60 bytes: 10 Gpx would be 30 GB. Nothing follows the header, so decoding would end otherwise.
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    with pytest.raises(ImageError, match="100000x100000 pixels"):
        decode_image(b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT")))
