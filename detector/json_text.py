"""JSON of files that nobody vouches for: no content of one is more than its bytes."""

from __future__ import annotations

import json
from typing import Any

MAX_DEPTH = 100
"""Brackets in each other. No file of ours has 20; 1,000 end Python wherever they are walked."""
MAX_DIGITS = 20
"""Of a whole number: those of 64 bits. Longer ones break arithmetic far from the file."""


def parse(text: bytes | str) -> Any:
    """The content of a JSON text. `ValueError`, in a sentence, where it is none or has numbers or
    brackets beyond the limits; with line and column it is a `json.JSONDecodeError`.
    """
    try:
        content = json.loads(text, parse_int=_whole)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    if _is_deep(content):
        raise ValueError(_TOO_DEEP)
    return content


_TOO_DEEP = f"it has more than {MAX_DEPTH} brackets in each other"


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"it has a whole number of {len(digits)} digits, {digits[:8]}...")
    return int(digits)


def _is_deep(content: Any) -> bool:
    """Goes down level by level, so that depth costs no stack."""
    level = [content]
    for _ in range(MAX_DEPTH + 1):
        holders = [one for one in level if isinstance(one, dict | list)]
        if not holders:
            return False
        level = [
            value for one in holders for value in (one.values() if isinstance(one, dict) else one)
        ]
    return True
