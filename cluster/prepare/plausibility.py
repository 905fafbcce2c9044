"""Is a set as a whole what its owner means? Each check looks at all annotations at once and gives a
sentence with the figure, the likely cause and the remedy. No picture is read. A set that cannot be
trained on or scored is refused, unless its owner accepts this by the fault's name.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from cluster.formats.annotations import Images
from cluster.formats.read import MergedSources

MOST_EMPTY, ENOUGH_IMAGES = 0.9, 10
"""A larger share of images without objects, in a set of at least so many images, is named."""
ENOUGH_BOXES = 3
"""So many boxes that leave their picture, and none that speaks against it, are no chance."""
SHOWN = 5
"""Names in a sentence."""

Fault = Literal["no_objects", "only_crowds", "boxes_as_shares", "boxes_as_corners"]
"""What makes a set unfit for training and scoring."""


class Finding(NamedTuple):
    """What looks wrong, as a sentence; the `fault` where the set is refused for it."""

    sentence: str
    fault: Fault | None = None


def implausible(merged: MergedSources) -> tuple[Finding, ...]:
    """What looks wrong in the sources as a whole."""
    images = merged.source.images
    names = [category.name for category in merged.source.categories]
    formats = [entry.format for entry in merged.entries]
    found = [
        _no_objects(images),
        *(_of_source(images, number, format) for number, format in enumerate(formats)),
        _areas(images),
        _repeated_boxes(images),
        _alike_names(names),
        _unused_classes(images, names),
    ]
    return tuple(finding for finding in found if finding is not None)


def _owners(images: Images) -> np.ndarray:
    """The position of each annotation's image."""
    return np.repeat(np.arange(len(images)), np.diff(images.first_I1))


def _no_objects(images: Images) -> Finding | None:
    boxes, crowds = len(images.labels_N), int(images.crowd_N.sum())
    if not len(images):
        return None
    if not boxes:
        return Finding(
            f"none of the {len(images)} images has an annotation, so there is nothing to learn or"
            " score; are these the right annotations?",
            "no_objects",
        )
    if crowds == boxes:
        return Finding(
            f"all {boxes} boxes are crowds, areas that are ignored, so there is nothing to learn or"
            " score; are iscrowd or difficult set by mistake?",
            "only_crowds",
        )
    empty = int((np.diff(images.first_I1) == 0).sum())
    if len(images) >= ENOUGH_IMAGES and empty > MOST_EMPTY * len(images):
        return Finding(
            f"{empty} of {len(images)} images have no objects and count as background; are their"
            " annotations missing?"
        )
    return None


def _of_source(images: Images, number: int, format: str) -> Finding | None:
    """What speaks against the convention of one source's format."""
    owners_N = _owners(images)
    mine_N = (images.sources_I == number)[owners_N] & ~images.normalised_I[owners_N]
    boxes_N4, owners_N = images.boxes_N4[mine_N], owners_N[mine_N]
    if not len(boxes_N4):
        return None
    # A share of the picture is never above 1, and a box of a pixel is no object. The reader of VOC
    # has subtracted 1 from the first corner.
    if (boxes_N4[:, 2:] <= 1).all() and (boxes_N4 >= -1).all():
        return Finding(
            f"all {len(boxes_N4)} boxes lie within one pixel: their numbers are probably shares of"
            " the picture; multiply them by its width and height",
            "boxes_as_shares",
        )
    if format == "coco":
        return _corners(images, boxes_N4, owners_N)
    if format == "voc":
        zeros = int((boxes_N4[:, :2] == -1).any(axis=1).sum())
        if zeros:
            return Finding(
                f"{zeros} of {len(boxes_N4)} boxes begin at pixel 0, but VOC counts from 1: a tool"
                " that counts from 0 wrote them, and every box of it is moved by one pixel; add 1"
                " to all four numbers"
            )
    return None


def _corners(images: Images, boxes_N4: np.ndarray, owners_N: np.ndarray) -> Finding | None:
    """COCO's x, y, width, height, of which the last two may be a corner."""
    widths_N, heights_N = images.widths_I[owners_N], images.heights_I[owners_N]
    known_N = (widths_N > 0) & (heights_N > 0)
    x1, y1, x2, y2 = boxes_N4.T
    width, height = x2 - x1, y2 - y1
    outside_N = known_N & ((x2 > widths_N + 1) | (y2 > heights_N + 1))
    as_corner_N = (width > x1) & (height > y1) & (width <= widths_N + 1) & (height <= heights_N + 1)
    outside = int(outside_N.sum())
    if outside and (as_corner_N | ~known_N).all():
        return Finding(
            f"{outside} of {len(boxes_N4)} boxes leave their picture as x, y, width,"
            " height, and none does as x1, y1, x2, y2: the last two numbers are probably a corner;"
            " subtract the first two from them",
            "boxes_as_corners" if outside >= ENOUGH_BOXES else None,
        )
    return None


def _areas(images: Images) -> Finding | None:
    """An area is that of the object's outline, which its box contains."""
    boxes_N4, area_N = images.boxes_N4, images.area_N
    whole_N = (boxes_N4[:, 2] - boxes_N4[:, 0]) * (boxes_N4[:, 3] - boxes_N4[:, 1])
    given_N = ~np.isnan(area_N) & ~images.normalised_I[_owners(images)]
    wrong_N = given_N & (whole_N > 4) & ((area_N <= 1) | (area_N > 1.01 * whole_N + 1))
    if not wrong_N.any():
        return None
    return Finding(
        f"{int(wrong_N.sum())} of {int(given_N.sum())} areas do not fit their boxes (1 or less, or"
        " larger than the box), and COCO's small, medium and large go by them; leave the field out"
        " and it is filled with width x height"
    )


def _repeated_boxes(images: Images) -> Finding | None:
    if not len(images.labels_N):
        return None
    rows = np.column_stack([_owners(images), images.labels_N, images.boxes_N4])
    repeated = len(rows) - len(np.unique(rows, axis=0))
    if not repeated:
        return None
    return Finding(
        f"{repeated} of {len(rows)} boxes repeat another box of the same image and class; were"
        " annotations merged twice?"
    )


def _alike_names(names: Sequence[str]) -> Finding | None:
    """Names of which a reader sees no difference, and names that are blank."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[unicodedata.normalize("NFKC", name).strip().casefold()].append(name)
    blank = groups.pop("", [])
    alike = [group for group in groups.values() if len(group) > 1]
    parts = []
    if alike:
        shown = "; ".join(", ".join(map(ascii, group)) for group in alike[:SHOWN])
        parts.append(f"classes whose names differ in case, blanks or Unicode form alone: {shown}")
    if blank:
        parts.append(f"a class without a name: {', '.join(map(ascii, blank))}")
    if not parts:
        return None
    return Finding(f"{'; '.join(parts)}; are they meant to be different?")


def _unused_classes(images: Images, names: Sequence[str]) -> Finding | None:
    counts_K = np.bincount(images.labels_N[~images.crowd_N], minlength=len(names))
    unused = [name for name, count in zip(names, counts_K, strict=True) if not count]
    if not unused or len(unused) == len(names):
        return None
    more = f" and {len(unused) - SHOWN} more" if len(unused) > SHOWN else ""
    return Finding(
        f"{len(unused)} of {len(names)} classes have no object here:"
        f" {', '.join(map(repr, unused[:SHOWN]))}{more}"
    )
