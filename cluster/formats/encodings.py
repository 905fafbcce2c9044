"""Text files in the encodings that tools of Windows write: UTF-8 and UTF-16, each with its mark."""

from __future__ import annotations

import codecs

_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def to_utf8(data: bytes, *, errors: str = "strict") -> bytes:
    """The same text as UTF-8 without a mark. What has no mark of UTF-16 stays as it is; its own
    reader finds bytes that are no UTF-8. `UnicodeDecodeError` for what is no UTF-16 behind its
    mark, unless `errors` says otherwise.
    """
    if data.startswith(_UTF_16):
        return data.decode("utf-16", errors).encode("utf-8", errors)
    return data.removeprefix(codecs.BOM_UTF8)
