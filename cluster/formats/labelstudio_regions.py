"""The regions of an annotation of Label Studio, in per cent of the upright picture -> shapes in
fractions of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cluster.formats.annotations import Box
from cluster.formats.drawings import TURNED, Shape
from cluster.formats.names import is_text
from cluster.formats.numbers import as_number
from cluster.formats.yolo import POLYGONS

NO_OBJECT = "a result for a whole picture, which is no object"
OTHER_TYPE = "it is a region of another type; rectangles and polygons are read"
NO_LABEL = "its region has not exactly one label"
NO_NUMBERS = "its x, y, width and height are not finite numbers"
MAX_PERCENT = 1e6
_LABELLED = ("rectanglelabels", "polygonlabels", "labels")
_WHOLE_PICTURE = frozenset(
    "choices textarea rating number datetime taxonomy pairwise ranker relation".split()
)
"""Types of results that are no regions of a picture."""


def parse_results(results: Sequence[Any], passed: dict[str, int]) -> list[Shape]:
    """The regions of an annotation. Results for the whole picture are counted in `passed`."""
    # A box with a separate label is there twice: as `rectangle` and, with its label, as `labels`.
    labelled = {
        str(one.get("id"))
        for one in results
        if isinstance(one, dict) and one.get("type") == "labels"
    }
    regions = []
    for one in results:
        kind = one.get("type") if isinstance(one, dict) else None
        if kind in ("rectangle", "polygon") and str(one.get("id")) in labelled:
            continue
        if isinstance(kind, str) and kind in _WHOLE_PICTURE:
            passed[NO_OBJECT] = passed.get(NO_OBJECT, 0) + 1
            continue
        regions.append(_parse(kind, one))
    return regions


def _parse(kind: object, result: Any) -> Shape:
    value = result.get("value") if isinstance(result, dict) else None
    value = value if isinstance(value, dict) else {}
    names = value.get(kind) if kind in _LABELLED else None
    label = names[0] if isinstance(names, list) and len(names) == 1 else None
    turn = as_number(value.get("rotation") or 0)
    polygon = "points" in value
    box = _box_of_points(value["points"]) if polygon else _box(value)
    fault, detail = None, ""
    if kind not in (*_LABELLED, "rectangle", "polygon"):
        fault, detail = OTHER_TYPE, f"type {str(kind)[:40]}"
    elif not is_text(label) or not label.strip():
        fault = NO_LABEL
    elif turn is None or turn % 360:
        fault = TURNED
    elif box is None:
        fault = NO_NUMBERS
    repair = POLYGONS if polygon else None
    return Shape(str(label).strip(), box or (0, 0, 0, 0), fault, repair, result, detail)


def _box(value: Mapping[str, Any]) -> Box | None:
    found = [_fraction(value.get(name)) for name in ("x", "y", "width", "height")]
    numbers = [number for number in found if number is not None]
    if len(numbers) < 4:
        return None
    x, y, width, height = numbers
    return x, y, x + width, y + height


def _box_of_points(points: object) -> Box | None:
    pairs = points if isinstance(points, list) else []
    flat = [value for pair in pairs if isinstance(pair, list) and len(pair) == 2 for value in pair]
    numbers = [number for number in map(_fraction, flat) if number is not None]
    if len(numbers) < 2 * max(len(pairs), 3):
        return None
    xs, ys = numbers[::2], numbers[1::2]
    return min(xs), min(ys), max(xs), max(ys)


def _fraction(percent: object) -> float | None:
    number = as_number(percent)
    return number / 100 if number is not None and abs(number) < MAX_PERCENT else None
