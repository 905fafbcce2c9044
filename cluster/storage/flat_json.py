"""A tree of JSON objects as fields with dotted names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; lists stay values, as JSON has them."""
    if not isinstance(tree, Mapping):
        return {prefix: json.loads(json.dumps(tree))}
    return {
        k: v
        for name, value in tree.items()
        for k, v in flatten(value, f"{prefix}.{name}" if prefix else str(name)).items()
    }
