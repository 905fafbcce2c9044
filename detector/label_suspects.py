"""Where confident detections disagree with the labels: perhaps the labels are wrong.

A detection that counts at its class's threshold and is a false alarm is a suspect of

    wrong class  it has IoU 0.5 or more with an object of another class
    loose box    it has IoU 0.1 to 0.5 with an object of its class
    missing box  it has IoU 0.1 or less with every object

Shapes: D detections of a `Pairing`, S suspects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from detector.error_kinds import BACKGROUND, BOX, CLASS, ErrorKinds
from detector.pairing import Pairing

SUSPECTS = {CLASS: "wrong class", BOX: "loose box", BACKGROUND: "missing box"}
MOST = 300


def label_suspects(
    pairing: Pairing, errors: ErrorKinds, kept_D: np.ndarray, *, most: int = MOST
) -> np.ndarray:
    """int (S,): the suspects among the detections, the most confident first; one for an object."""
    chosen = np.flatnonzero(kept_D & np.isin(errors.kind_D, list(SUSPECTS)))
    chosen = chosen[np.argsort(-pairing.score_D[chosen], kind="stable")]
    # All "missing boxes" are about no object, and differ.
    about = np.where(errors.object_D[chosen] >= 0, errors.object_D[chosen], -1 - chosen)
    first = np.sort(np.unique(about, return_index=True)[1])
    return chosen[first][:most]


def as_coco(
    pairing: Pairing,
    errors: ErrorKinds,
    suspects_S: np.ndarray,
    *,
    images: Mapping[int, Mapping[str, Any]],
    category_ids: Sequence[int],
) -> dict[str, Any]:
    """A COCO JSON with what the detector would have labelled, and beside it what is labelled.

    `images`: file_name, height and width by image id; `category_ids` by label. Each annotation has
    the keys of COCO and `score`, `suspect` (one of `SUSPECTS`) and, but for a missing box,
    `labelled_category_id`, `labelled_bbox` (XYWH px) and `iou`.
    """
    annotations = []
    for number, d in enumerate(suspects_S.tolist(), start=1):
        box = _xywh(pairing.boxes_D4[d])
        entry = {
            "id": number,
            "image_id": int(pairing.image_ids[pairing.image_D[d]]),
            "category_id": category_ids[int(pairing.label_D[d])],
            "bbox": box,
            "area": round(box[2] * box[3], 2),
            "iscrowd": 0,
            "score": round(float(pairing.score_D[d]), 4),
            "suspect": SUSPECTS[int(errors.kind_D[d])],
        }
        if (g := int(errors.object_D[d])) >= 0:
            own = pairing.label_D[d] == pairing.label_G[g]
            iou = (pairing.own_iou_D if own else pairing.other_iou_D)[d]
            entry["labelled_category_id"] = category_ids[int(pairing.label_G[g])]
            entry["labelled_bbox"] = _xywh(pairing.boxes_G4[g])
            entry["iou"] = round(float(iou), 4)
        annotations.append(entry)
    used = sorted({entry["image_id"] for entry in annotations})
    return {
        "images": [{"id": id_, **images[id_]} for id_ in used],
        "annotations": annotations,
        "categories": [
            {"id": id_, "name": name}
            for id_, name in zip(category_ids, pairing.class_names, strict=True)
        ],
    }


def _xywh(box_4: np.ndarray) -> list[float]:
    left, top, right, bottom = box_4.tolist()
    return [round(value, 2) for value in (left, top, right - left, bottom - top)]
