"""What a picture costs to decode, read from its bytes before a decoder sees them."""

from __future__ import annotations

import re
import struct

_MARKER = re.compile(rb"\xff+([^\x00\xff])")
_ALONE = frozenset((*range(0x01, 0xC0), *range(0xD0, 0xD9)))
"""Markers without a length: restarts, the start of the picture, and those that mean nothing."""
_SCAN, _END = 0xDA, 0xD9
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = frozenset((0xC2, 0xC6, 0xCA, 0xCE))


def count_scans(data: bytes | memoryview, *, most: int) -> int:
    """How many times a decoder of this JPEG goes over its pixels, counted up to `most` + 1. 1 where
    the first scan holds all colours, as in all that are not progressive, after a look at the header
    alone; 0 for other bytes.
    """
    scans, at, colours, progressive = 0, 2, 0, False
    while scans <= most and (marker := _MARKER.search(data, at)):
        code, at = marker[1][0], marker.end()
        if code == _END:
            break
        if code in _ALONE:
            continue
        segment = data[at : at + 10]
        if len(segment) < 3:
            break
        (length,) = struct.unpack_from(">H", segment)
        if code in _FRAMES and len(segment) > 7:
            colours, progressive = segment[7], code in _PROGRESSIVE
        if code == _SCAN:
            scans += 1
            if scans == 1 and not progressive and segment[2] >= colours:
                break
        at += length
    return scans


def webp_size(data: bytes | memoryview) -> tuple[int, int] | None:
    """(width, height) in px of a WebP's canvas; None for other bytes. WebP's decoder of animations
    allocates two canvases while it opens a file: 2.1 GB for one of 34 bytes.
    """
    head = bytes(data[:30])
    if head[:4] != b"RIFF" or head[8:12] != b"WEBP" or len(head) < 30:
        return None
    kind = head[12:16]
    if kind == b"VP8X":
        across, down = (int.from_bytes(head[at : at + 3], "little") for at in (24, 27))
        return across + 1, down + 1
    if kind == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        across, down = struct.unpack_from("<HH", head, 26)
        return across & 0x3FFF, down & 0x3FFF
    return None
