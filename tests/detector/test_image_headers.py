"""A picture that costs more than its pixels is refused before a decoder sees it."""

from __future__ import annotations

import io
import struct
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from detector.image import FORMATS, ImageError, TooManyPixels, decode_image, open_image, opened
from detector.image_headers import count_scans, webp_size


def jpeg(**options) -> bytes:
    sink = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(pixels).save(sink, "JPEG", **options)
    return sink.getvalue()


def with_scans(data: bytes, more: int) -> bytes:
    """The JPEG with its last scan `more` times again."""
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * more + data[-2:]


def test_scans_are_counted_as_a_decoder_meets_them():
    # libjpeg's own order of a progressive picture in three colours has ten scans.
    progressive = jpeg(progressive=True)
    assert count_scans(progressive, most=100) == 10
    assert count_scans(with_scans(progressive, 25), most=100) == 35
    assert count_scans(with_scans(progressive, 3000), most=100) == 101
    assert count_scans(memoryview(progressive), most=3) == 4
    # All colours in one scan: what follows is never decoded.
    assert count_scans(with_scans(jpeg(), 3000), most=100) == 1
    assert count_scans(jpeg(restart_marker_rows=1), most=100) == 1
    # A picture inside the header is none of this one's scans.
    inside = b"\xff\xe1" + struct.pack(">H", len(progressive) + 2) + progressive
    assert count_scans(progressive[:2] + inside + progressive[2:], most=100) == 10
    # One scan for each colour, as some cameras write them.
    frame = b"\xff\xc0\x00\x11\x08\x00\x28\x00\x3c\x03" + b"\x01\x11\x00\x02\x11\x00\x03\x11\x00"
    one = b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" + b"\x12\xff\x00\x34\xff\xd0\x56"
    assert count_scans(b"\xff\xd8" + frame + one * 3 + b"\xff\xd9", most=100) == 3
    assert count_scans(b"no picture", most=100) == 0


def test_a_jpeg_of_many_scans_is_refused_by_its_header():
    progressive = jpeg(progressive=True)
    assert decode_image(progressive).shape == decode_image(with_scans(progressive, 25)).shape
    for read in (open_image, decode_image):
        with pytest.raises(ImageError, match="more scans than .* .more than 100.") as caught:
            read(with_scans(progressive, 3000))
        assert caught.value.rule == "its JPEG has more scans than are decoded; save it again"


def webp_canvas(width: int, height: int) -> bytes:
    """The header of an animated WebP, without a frame: 34 bytes."""
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    chunk = b"VP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + sides
    return b"RIFF" + struct.pack("<I", 26) + b"WEBP" + chunk + b"\0" * 4


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exif": b"Exif\0\0"}])
def test_the_size_of_a_webp_is_read_as_its_decoder_reads_it(options):
    sink = io.BytesIO()
    Image.new("RGB", (123, 45)).save(sink, "WEBP", **options)
    assert webp_size(sink.getvalue()) == (123, 45)


def test_a_webp_is_measured_before_its_decoder_allocates():
    assert len(webp_canvas(1, 1)) == 34
    program = (
        "import resource, sys\n"
        "from detector.image import ImageError, decode_image\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: decode_image(sys.stdin.buffer.read())\n"
        "except ImageError as error: print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], input=webp_canvas(16383, 16383), capture_output=True
    )
    refusal, kibibytes = done.stdout.decode().splitlines()
    assert refusal == "it has more pixels than the 100000000 allowed (16383x16383)"
    assert int(kibibytes) < 50_000
    with (
        pytest.raises(TooManyPixels, match="299 allowed .30x10."),
        opened(webp_canvas(30, 10), max_pixels=299),
    ):
        pass


HEADS = [jpeg(), jpeg(progressive=True), webp_canvas(30, 20)]
for form in FORMATS:
    sink = io.BytesIO()
    Image.new("RGB", (30, 20), (200, 100, 50)).save(sink, form)
    HEADS.append(sink.getvalue())


@settings(deadline=None)
@given(st.sampled_from(HEADS), st.data())
def test_changed_bytes_give_pixels_or_one_refusal(data, drawn):
    changed = bytearray(data)
    for _ in range(drawn.draw(st.integers(1, 4))):
        changed[drawn.draw(st.integers(0, len(data) - 1))] = drawn.draw(st.integers(0, 255))
    cut = drawn.draw(st.integers(0, len(data)))
    try:
        # 4 Mpx: a changed size that is allowed is decoded quickly.
        pixels = decode_image(bytes(changed[:cut]), max_pixels=1 << 22)
    except ImageError as error:
        assert str(error)
    else:
        assert pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.dtype == np.uint8
