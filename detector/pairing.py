"""Which object each detection stands for, at one IoU, and what else it overlaps: the base of what
an evaluation says in words (error kinds, confusions, thresholds, pictures).

A detection is a hit, a false alarm or ignored by COCO's rule, as in detector/coco_matching.py,
which has the outcomes for all IoU thresholds and sizes, but not the objects.

Shapes: I images, K classes, D detections, G objects. Boxes are XYXY px of the original image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from detector.coco_matching import AREA_RANGES, FALSE_ALARM, HIT, IGNORED, overlaps
from detector.decode import Detections
from detector.metrics import Truth, joined_detections, joined_truths

IOU = 0.5


@dataclass(frozen=True)
class Pairing:
    """Detections stand by image, best first, and objects by image. Images are places in
    `image_ids`; the place of an object or a detection is -1 for none.
    """

    image_ids: np.ndarray
    """(I,), ascending."""
    class_names: tuple[str, ...]
    iou: float
    image_D: np.ndarray
    label_D: np.ndarray
    score_D: np.ndarray
    boxes_D4: np.ndarray
    outcome_D: np.ndarray
    """int8: `IGNORED`, `FALSE_ALARM` or `HIT`."""
    object_D: np.ndarray
    """The object of a hit."""
    own_D: np.ndarray
    """The object of its class that it overlaps most, taken or not."""
    own_iou_D: np.ndarray
    other_D: np.ndarray
    """The object of another class that it overlaps most."""
    other_iou_D: np.ndarray
    image_G: np.ndarray
    label_G: np.ndarray
    boxes_G4: np.ndarray
    detection_G: np.ndarray
    """The detection that is the hit of an object."""

    @property
    def objects_K(self) -> np.ndarray:
        """Objects of each class."""
        return np.bincount(self.label_G, minlength=len(self.class_names))

    def detections_of(self, image: int) -> slice:
        return slice(*np.searchsorted(self.image_D, [image, image + 1]).tolist())

    def objects_of(self, image: int) -> slice:
        return slice(*np.searchsorted(self.image_G, [image, image + 1]).tolist())


def pair(
    truths: Sequence[Truth],
    detections: Mapping[int, Detections],
    class_names: Sequence[str],
    *,
    iou: float = IOU,
    max_detections: int = 100,
) -> Pairing:
    """Pair detections (by image id) with objects. Crowds are no objects here; detections in them
    are ignored.

    `max_detections`: the best of an image and class that count. `ValueError` for detections of an
    image without a truth, and for a label out of range.
    """
    truths = sorted(truths, key=lambda t: t.image_id)
    found = joined_detections(truths, detections, class_names)
    found = _taken(found, np.lexsort((-found["scores"], found["images"])))
    cell_D = found["images"] * len(class_names) + found["labels"]
    found = _taken(found, _rank(cell_D) < max_detections)
    there = joined_truths(truths, whole_crowds=True)
    there, crowds = _taken(there, ~there["crowd"]), _taken(there, there["crowd"])
    pairs = _empty(len(found["labels"]))
    # A box without a possible area is no false alarm in COCO.
    area_D = (found["boxes"][:, 2:] - found["boxes"][:, :2]).prod(axis=1)
    possible_D = (area_D >= AREA_RANGES[0, 0]) & (area_D <= AREA_RANGES[0, 1])
    detection_G = np.full(len(there["labels"]), -1)
    for image in range(len(truths)):
        d, g, c = (_of_image(columns, image) for columns in (found, there, crowds))
        if d.start < d.stop and (g.start < g.stop or c.start < c.stop):
            of = _pair_image(_taken(found, d), _taken(there, g), _taken(crowds, c), iou)
            for name, column in of.items():
                shift = g.start if name in ("object_D", "own_D", "other_D") else 0
                pairs[name][d] = np.where(column >= 0, column + shift, column)
    pairs["outcome_D"][~possible_D & (pairs["outcome_D"] == FALSE_ALARM)] = IGNORED
    hits = np.flatnonzero(pairs["object_D"] >= 0)
    detection_G[pairs["object_D"][hits]] = hits
    return Pairing(
        np.array([t.image_id for t in truths], np.int64),
        tuple(class_names),
        iou,
        found["images"],
        found["labels"],
        found["scores"],
        found["boxes"],
        image_G=there["images"],
        label_G=there["labels"],
        boxes_G4=there["boxes"],
        detection_G=detection_G,
        **pairs,
    )


def all_overlaps(found_D4: np.ndarray, boxes_G4: np.ndarray, *, crowds: bool = False) -> np.ndarray:
    """COCO's IoU (D, G); of crowds the share of the detection that lies in them."""
    d_P, g_P = np.divmod(np.arange(len(found_D4) * len(boxes_G4)), max(1, len(boxes_G4)))
    iou_P = overlaps(found_D4[d_P], boxes_G4[g_P], crowd_P=np.full(len(d_P), crowds))
    return iou_P.reshape(len(found_D4), len(boxes_G4))


def _pair_image(
    found: dict[str, np.ndarray],
    there: dict[str, np.ndarray],
    crowds: dict[str, np.ndarray],
    iou: float,
) -> dict[str, np.ndarray]:
    count = len(found["labels"])
    iou_DG = all_overlaps(found["boxes"], there["boxes"])
    same_DG = found["labels"][:, None] == there["labels"]
    pairs = _empty(count)
    for kind, chosen_DG in (("own", same_DG), ("other", ~same_DG)):
        if iou_DG.size:
            best_D = np.where(chosen_DG, iou_DG, 0).argmax(axis=1)
            best_iou_D = np.where(chosen_DG, iou_DG, 0)[np.arange(count), best_D]
            pairs[f"{kind}_iou_D"] = best_iou_D
            pairs[f"{kind}_D"] = np.where(best_iou_D > 0, best_D, -1)
    # A detection takes the free object that it overlaps most, of equals the last.
    open_DG = np.where(same_DG, iou_DG, -1.0)
    for d in np.flatnonzero((open_DG >= iou).any(axis=1)).tolist():
        last = open_DG.shape[1] - 1 - int(open_DG[d, ::-1].argmax())
        if open_DG[d, last] >= iou:
            pairs["object_D"][d] = last
            pairs["outcome_D"][d] = HIT
            open_DG[:, last] = -1
    if len(crowds["labels"]):
        inside_DC = all_overlaps(found["boxes"], crowds["boxes"], crowds=True) >= iou
        inside_DC &= found["labels"][:, None] == crowds["labels"]
        pairs["outcome_D"][(pairs["outcome_D"] != HIT) & inside_DC.any(axis=1)] = IGNORED
    return pairs


def _empty(count: int) -> dict[str, np.ndarray]:
    return {
        "outcome_D": np.full(count, FALSE_ALARM, np.int8),
        **{name: np.full(count, -1) for name in ("object_D", "own_D", "other_D")},
        **{name: np.zeros(count) for name in ("own_iou_D", "other_iou_D")},
    }


def _of_image(columns: dict[str, np.ndarray], image: int) -> slice:
    return slice(*np.searchsorted(columns["images"], [image, image + 1]).tolist())


def _taken(columns: dict[str, np.ndarray], rows: np.ndarray | slice) -> dict[str, np.ndarray]:
    return {name: column[rows] for name, column in columns.items()}


def _rank(cell_N: np.ndarray) -> np.ndarray:
    """How many equal values stand before each."""
    order = np.argsort(cell_N, kind="stable")
    rank_N = np.empty(len(cell_N), np.int64)
    rank_N[order] = np.arange(len(cell_N)) - np.searchsorted(cell_N[order], cell_N[order])
    return rank_N
