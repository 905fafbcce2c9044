"""Whatever Pillow reads becomes upright RGB, a JPEG as small as it is wanted, with or without
simplejpeg; everything else is an ImageError with a reason.
"""

from __future__ import annotations

import importlib.util
import io
import struct
import sys
import zlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from detector import image
from detector.image import FORMATS, ImageError, Jpeg, decode_image, open_image, shrinkage


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    sink = io.BytesIO()
    picture.save(sink, kind, **options)
    return sink.getvalue()


def noise(height: int = 12, width: int = 20) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Noise from the size of the picture down to the pixel, the finer the weaker, as in
    photographs.
    """
    generator = torch.Generator().manual_seed(seed)
    picture = torch.full((1, 3, height, width), 120.0)
    for cell, contrast in ((128, 60), (32, 30), (8, 14), (2, 5)):
        noise = torch.randn(1, 3, height // cell + 2, width // cell + 2, generator=generator)
        picture += contrast * F.interpolate(noise, size=(height, width), mode="bicubic")
    return picture[0].permute(1, 2, 0).clamp(0, 255).byte().numpy()


@pytest.fixture(params=["simplejpeg", "Pillow alone"])
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test that takes it is run as where simplejpeg is installed and as where it is not."""
    if request.param == "Pillow alone":
        monkeypatch.setattr(image, "simplejpeg", None)
    return request.param


JPEGS = {
    "4:2:0": ("RGB", dict(subsampling=2)),
    "4:2:2": ("RGB", dict(subsampling=1)),
    "4:4:4": ("RGB", dict(subsampling=0)),
    "progressive": ("RGB", dict(progressive=True)),
    "restart markers": ("RGB", dict(restart_marker_rows=2)),
    "stored as RGB": ("RGB", dict(keep_rgb=True)),
    "grey": ("L", {}),
    "CMYK": ("CMYK", {}),
}
SIDES = [(240, 320), (333, 500), (161, 127), (64, 73)]


@pytest.mark.parametrize("size", SIDES)
@pytest.mark.parametrize("name", JPEGS)
def test_both_decoders_give_the_same_pixels_at_every_scale(name, size, monkeypatch):
    mode, options = JPEGS[name]
    data = encoded(Image.fromarray(photo(*size)).convert(mode), "JPEG", quality=85, **options)
    found = [open_image(data).pixels(shrink) for shrink in (1, 2, 4, 8)]
    monkeypatch.setattr(image, "simplejpeg", None)
    assert all(
        np.array_equal(one, open_image(data).pixels(shrink))
        for one, shrink in zip(found, (1, 2, 4, 8), strict=True)
    )
    # The whole picture as Pillow decodes it when asked for nothing else.
    assert np.array_equal(found[0], np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    assert np.array_equal(found[0], decode_image(data))


def test_a_plain_jpeg_never_reaches_pillows_decoder(monkeypatch):
    monkeypatch.delattr(image, "_upright_rgb")
    data = encoded(Image.fromarray(photo(120, 160)), "JPEG")
    assert decode_image(data).shape == (120, 160, 3)
    assert open_image(data).pixels(4).shape == (30, 40, 3)
    # No copy is needed to hand it to torch.
    assert decode_image(data).flags.writeable


def test_where_simplejpeg_is_not_installed_pillow_decodes(monkeypatch):
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    spec = importlib.util.spec_from_file_location("image_alone", image.__file__)
    alone = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "image_alone", alone)
    spec.loader.exec_module(alone)
    assert alone.simplejpeg is None and image.simplejpeg is not None
    data = encoded(Image.fromarray(photo(120, 160)), "JPEG")
    assert np.array_equal(alone.decode_image(data), decode_image(data))


@given(
    st.tuples(st.integers(1, 900), st.integers(1, 900)),
    st.tuples(st.integers(1, 1000), st.integers(1, 1000)),
)
def test_a_picture_is_decoded_as_small_as_it_may_be(sides, at_least):
    shrink = shrinkage(sides, at_least)
    enough = [
        s
        for s in (1, 2, 4, 8)
        if all(side / s >= least for side, least in zip(sides, at_least, strict=True))
    ]
    assert shrink == (max(enough, default=1) if min(sides) >= 64 else 1)


def test_shrinkage_by_hand():
    assert shrinkage((3000, 4000), (375, 500)) == 8 and shrinkage((3000, 4000), (376, 500)) == 4
    assert shrinkage((480, 640), (240, 320)) == 2 and shrinkage((480, 640), (1, 321)) == 1
    assert shrinkage((480, 640), (960, 1280)) == 1
    # Half of 427 px are 213.5, which is less than 214.
    assert shrinkage((427, 640), (213, 320)) == 2 and shrinkage((427, 640), (214, 320)) == 1


@pytest.mark.parametrize(
    ("shrink", "shape"), [(1, (241, 322)), (2, (121, 161)), (4, (61, 81)), (8, (31, 41))]
)
def test_the_sides_of_a_smaller_picture_are_rounded_up(decoder, shrink, shape):
    jpeg = open_image(encoded(Image.fromarray(photo(241, 322)), "JPEG"))
    assert isinstance(jpeg, Jpeg) and jpeg.shape == (241, 322, 3)
    pixels = jpeg.pixels(shrink)
    assert pixels.shape == (*shape, 3) and pixels.dtype == np.uint8


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_jpeg_is_decoded_smaller_and_upright(decoder, orientation):
    stored = photo(240, 320, seed=3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(stored), "JPEG", quality=90, exif=exif)
    whole = decode_image(data)
    jpeg = open_image(data)
    assert jpeg.shape == whole.shape == ((320, 240, 3) if orientation >= 5 else (240, 320, 3))
    quarter = jpeg.pixels(4)
    means = whole.reshape(quarter.shape[0], 4, quarter.shape[1], 4, 3).mean(axis=(1, 3))
    assert np.abs(quarter - means).mean() < 1.5


def test_other_formats_are_decoded_when_they_are_opened():
    for kind in ("PNG", "WEBP", "GIF", "BMP"):
        found = open_image(encoded(Image.fromarray(noise()), kind))
        assert isinstance(found, np.ndarray) and found.shape == (12, 20, 3)


def test_of_several_pictures_in_one_jpeg_the_first_is_meant(decoder):
    first, second = (Image.fromarray(photo(96, 128, seed=seed)) for seed in (0, 1))
    data = encoded(first, "MPO", save_all=True, append_images=[second])
    found = open_image(data)
    assert np.array_equal(found.pixels(), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    assert found.pixels(4).shape == (24, 32, 3)


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
    # The high byte: 0x1234 -> 0x12, 65,535 -> 255. Clipping instead would give 255 for all but the
    # first.
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
    # Orientation 6: the stored picture is turned clockwise for display, so the first column, read
    # upwards, is the first row.
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
    # What a camera stores so that the viewer's turn gives the upright picture: EXIF's table,
    # undone.
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
    assert np.array_equal(
        decode_image(encoded(Image.fromarray(np.ascontiguousarray(stored)), "PNG", exif=exif)),
        upright,
    )


def test_an_orientation_that_makes_no_sense_is_upright():
    exif = Image.Exif()
    exif[0x0112] = 42
    assert np.array_equal(
        decode_image(encoded(Image.fromarray(noise()), "PNG", exif=exif)), noise()
    )


def test_empty_file():
    with pytest.raises(ImageError, match="empty"):
        decode_image(b"")


@pytest.mark.parametrize(
    "data", [b"not an image at all", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"<<html>404"]
)
def test_what_is_no_image(data):
    with pytest.raises(ImageError, match="cannot be decoded"):
        decode_image(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_truncated_files(decoder, kind):
    data = encoded(Image.fromarray(noise(64, 64)), kind)
    with pytest.raises(ImageError, match="cannot be decoded"):
        decode_image(data[: len(data) // 2])


@pytest.mark.parametrize("missing", [2, 3, 20, 200, 4000])
@pytest.mark.parametrize("options", [{}, dict(progressive=True)])
def test_a_jpeg_without_its_end_is_truncated_at_every_scale(decoder, missing, options):
    data = encoded(Image.fromarray(photo(200, 200)), "JPEG", quality=95, **options)
    assert data[-2:] == b"\xff\xd9" and len(data) > 8000
    with pytest.raises(ImageError, match="it cannot be decoded: .*truncated"):
        decode_image(data[:-missing])
    # The header is whole, so that it is told when the picture is decoded.
    jpeg = open_image(data[:-missing])
    for shrink in (2, 8):
        with pytest.raises(ImageError, match="it cannot be decoded: .*truncated"):
            jpeg.pixels(shrink)


def test_a_jpeg_with_a_fault_that_is_only_a_warning_is_decoded(decoder):
    data = encoded(Image.fromarray(photo(200, 200)), "JPEG", quality=95)
    holed = data[:5000] + data[5100:]
    assert np.array_equal(decode_image(holed), np.asarray(Image.open(io.BytesIO(holed))))


def test_more_pixels_than_allowed():
    data = encoded(Image.fromarray(noise(10, 30)), "PNG")
    assert decode_image(data, max_pixels=300).shape == (10, 30, 3)
    with pytest.raises(ImageError, match="it has more pixels than the 299 allowed .30x10."):
        decode_image(data, max_pixels=299)


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_is_read_and_its_size_known_before_it_is_decoded(form, monkeypatch):
    sink = io.BytesIO()
    Image.new("RGB", (40, 30), (200, 100, 50)).save(sink, form)
    assert decode_image(sink.getvalue()).shape == (30, 40, 3)
    with Image.open(io.BytesIO(sink.getvalue()), formats=FORMATS) as picture:
        plugin = type(picture)

    def decoded(*_):
        raise AssertionError(f"{form} was decoded")

    monkeypatch.setattr(plugin, "load", decoded)
    with pytest.raises(ImageError, match="it has more pixels than the 1199 allowed .40x30."):
        decode_image(sink.getvalue(), max_pixels=1199)


def test_a_bomb_is_refused_on_its_header():
    # A PNG of 100,000 x 100,000 in 60 bytes: 10 Gpx would be 30 GB. Nothing follows the header, so
    # decoding would end otherwise.
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunk = (
        struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    )
    with pytest.raises(ImageError, match="allowed .100000x100000."):
        decode_image(
            b"\x89PNG\r\n\x1a\n"
            + chunk
            + struct.pack(">I", 0)
            + b"IDAT"
            + struct.pack(">I", zlib.crc32(b"IDAT"))
        )


def test_a_jpeg_bomb_is_refused_on_its_header():
    data = encoded(Image.fromarray(noise(10, 30)), "JPEG")
    # The frame header: FFC0, two bytes of length, one of precision, then height and width.
    start = data.index(b"\xff\xc0") + 5
    assert struct.unpack(">HH", data[start : start + 4]) == (10, 30)
    bomb = data[:start] + struct.pack(">HH", 60_000, 50_000) + data[start + 4 :]
    for read in (decode_image, open_image):
        with pytest.raises(
            ImageError, match="it has more pixels than the 100000000 allowed .50000x60000."
        ):
            read(bomb)
    with pytest.raises(ImageError, match="it has more pixels than the 299 allowed .30x10."):
        open_image(data, max_pixels=299)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "it is a HEIC picture; convert it to JPEG or PNG"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "it is a HEIC picture; convert it to JPEG or PNG"),
        (b"\xff\x0a\x00\x10", "it is a JPEG XL picture; convert it to JPEG or PNG"),
        (b"\0\0\0\x20ftypisom\0\0\x02\0", "it is a video, not a picture"),
        (b"%PDF-1.7", "it is a PDF document, not a picture"),
        (b"<svg xmlns='x'>", "it is an SVG or XML file; pixels are needed"),
        (b"\n<!DOCTYPE html><html>", "it is a web page, not a picture"),
        (b"<html>404</html>", "it is a web page, not a picture"),
    ],
)
def test_what_is_often_found_in_the_place_of_a_picture_is_named(data, words):
    with pytest.raises(ImageError, match=f"^{words}$"):
        decode_image(data)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        # 8, 10, 12 and 16 bits: divided by 1, 4, 16 and 256.
        (np.array([[0, 100, 255]], np.int32), [0, 100, 255]),
        (np.array([[0, 512, 1023]], np.uint16), [0, 128, 255]),
        (np.array([[0, 2048, 4095]], np.uint16), [0, 128, 255]),
        (np.array([[0, 32768, 65535]], np.uint16), [0, 128, 255]),
        (np.array([[0, 1 << 19, (1 << 20) - 1]], np.int32), [0, 8, 15]),
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[0.0, 100.4, 255.0]], np.float32), [0, 100, 255]),
    ],
)
def test_pixels_of_more_than_eight_bits_are_scaled_by_the_bits_in_use(values, expected):
    data = io.BytesIO()
    Image.fromarray(values).save(data, "TIFF")
    assert decode_image(data.getvalue())[0, :, 0].tolist() == expected


@pytest.mark.parametrize("values", [[-1.0, 0.5], [0.0, 300.0]])
def test_fractions_that_are_no_grey_values_are_refused(values):
    data = io.BytesIO()
    Image.fromarray(np.array([values], np.float32)).save(data, "TIFF")
    with pytest.raises(ImageError, match="fractions outside 0 to 1 and 0 to 255"):
        decode_image(data.getvalue())
