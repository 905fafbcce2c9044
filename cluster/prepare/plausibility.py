"""Is a set as a whole what its owner means? Each check looks at all annotations at once and gives a
sentence with the figure, the likely cause and the remedy. No picture is read. A set that cannot be
trained on or scored is refused, unless its owner accepts this by the fault's name.
"""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from cluster.formats.annotations import Images
from cluster.formats.box_order import MARGIN, ORDERS, Order, from_xyxy, misfits, to_xyxy
from cluster.formats.read import MergedSources
from cluster.shards.index import IndexedSource

MOST_EMPTY, ENOUGH_IMAGES = 0.9, 10
"""A larger share of images without objects, in a set of at least so many images, is named."""
ENOUGH_BOXES = 3
"""So many boxes that leave their picture, and none that speaks against it, are no chance."""
SHOWN = 5
"""Names in a sentence."""

Fault = Literal["no_objects", "only_crowds", "boxes_as_shares", "box_order"]
"""What makes a set unfit for training and scoring."""


class Finding(NamedTuple):
    """What looks wrong, as a sentence; the `fault` where the set is refused for it."""

    sentence: str
    fault: Fault | None = None


def implausible(merged: MergedSources) -> tuple[Finding, ...]:
    """What looks wrong in the sources as a whole."""
    images = merged.source.images
    names = [category.name for category in merged.source.categories]
    found = [
        _no_objects(images),
        *map(Finding, merged.source.doubts),
        *(_of_source(images, number, entry) for number, entry in enumerate(merged.entries)),
        _repeated_names(images),
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


_ORDERS: dict[str, Order] = {"coco": "xywh", "yolo": "cxcywh", "csv": "xyxy"}
"""What the four numbers of a box are in a format whose owners often write another order."""


def _of_source(images: Images, number: int, entry: IndexedSource) -> Finding | None:
    """What speaks against the convention of one source's format."""
    owners_N = _owners(images)
    mine_N = (images.sources_I == number)[owners_N]
    boxes_N4, owners_N = images.boxes_N4[mine_N], owners_N[mine_N]
    if not len(boxes_N4):
        return None
    shares = bool(images.normalised_I[owners_N].any())
    # A share of the picture is never above 1, and a box of a pixel is no object. The reader of VOC
    # has subtracted 1 from the first corner.
    if not shares and (boxes_N4[:, 2:] <= 1).all() and (boxes_N4 >= -1).all():
        return Finding(
            f"{entry.name}: all {len(boxes_N4)} boxes lie within one pixel: their numbers are"
            " probably shares of the picture; multiply them by its width and height",
            "boxes_as_shares",
        )
    if entry.format in _ORDERS:
        sides_N2 = np.stack([images.widths_I[owners_N], images.heights_I[owners_N]], axis=1)
        sides_N2 = np.ones_like(sides_N2) if shares else sides_N2
        return _order(entry, boxes_N4, sides_N2, margin=MARGIN if shares else 1.0)
    if entry.format == "voc" and not shares:
        zeros = int((boxes_N4[:, :2] == -1).any(axis=1).sum())
        if zeros:
            return Finding(
                f"{entry.name}: {zeros} of {len(boxes_N4)} boxes begin at pixel 0, but VOC counts"
                " from 1: a tool that counts from 0 wrote them, and every box of it is moved by one"
                " pixel; add 1 to all four numbers"
            )
    return None


def _order(
    entry: IndexedSource, boxes_N4: np.ndarray, sides_N2: np.ndarray, *, margin: float
) -> Finding | None:
    """Boxes that leave their pictures in the order of the format, and fit in another one."""
    known_N = (sides_N2 > 0).all(axis=1)
    boxes_N4, sides_N2 = boxes_N4[known_N], sides_N2[known_N]
    own = _ORDERS[entry.format]
    outside = int(misfits(boxes_N4, sides_N2, margin).sum())
    if not outside:
        return None
    given_N4 = from_xyxy(boxes_N4, own)
    for other, words in ORDERS.items():
        if other == own or misfits(to_xyxy(given_N4, other), sides_N2, margin).any():
            continue
        return Finding(
            f"{entry.name}: {outside} of {len(boxes_N4)} boxes leave their picture as"
            f" {ORDERS[own]}, the order of {entry.format}, and none does as {words}: they are"
            " probably that; write them in the order of the format",
            "box_order" if outside >= ENOUGH_BOXES else None,
        )
    return None


def _repeated_names(images: Images) -> Finding | None:
    counts = Counter(zip(images.sources_I.tolist(), images.names, strict=True))
    repeated = [name for (_, name), count in counts.items() if count > 1]
    if not repeated:
        return None
    return Finding(
        f"{len(repeated)} file names are those of several images (such as {repeated[0]}), each with"
        " annotations of its own: the picture is stored several times, and each time the others'"
        " objects count as background; merge their annotations"
    )


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
