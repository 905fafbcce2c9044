"""Detections and truths -> the COCO table, equal to that of pycocotools in every number. Boxes are
XYXY px of the original image; labels 0..K-1.

hotcoco computes it: of the libraries compared in tests/benchmarks/scoring.py it is one of the two
whose precision and recall equal those of pycocotools to the last bit, and the only one of them that
takes columns; for 5,000 images with 100 detections each it needs 1 % of pycocotools' time.

Shapes: T IoU thresholds, R recall points, K classes, S sizes (all, small, medium, large), M limits
on the detections of an image and class; N objects or detections.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from hotcoco import COCO, COCOeval

from detector.decode import Detections
from detector.scores import shown

SIZES = ("small", "medium", "large")
_WIDEST = 40
"""Characters of a class name in a table."""
SUMMARY_NAMES = (
    "AP",
    "AP50",
    "AP75",
    "AP_small",
    "AP_medium",
    "AP_large",
    "AR1",
    "AR10",
    "AR100",
    "AR_small",
    "AR_medium",
    "AR_large",
)
"""COCO's twelve numbers, in COCOeval's order; None where there is no such object. AR<n> is the
recall of the n best detections of an image and class.
"""
_COLUMNS = {
    "AP": "AP",
    "AP50": "AP50",
    "AP75": "AP75",
    "small": "AP_small",
    "medium": "AP_medium",
    "large": "AP_large",
}
"""Heading of a column of the text table -> the name of a class's number."""


@dataclass(frozen=True)
class Truth:
    """The annotated objects of one image."""

    image_id: int
    height: int
    width: int
    boxes_N4: np.ndarray
    """XYXY px of the original image."""
    labels_N: np.ndarray
    """int (N,), 0..K-1."""
    crowd_N: np.ndarray
    """bool (N,): regions in which a detection is neither a hit nor a false alarm."""
    area_N: np.ndarray
    """px^2 as annotated (of the mask where there is one): it decides small, medium or large."""
    searched: np.ndarray | None = None
    """int: the labels that the image was searched for, those of its objects among them. Detections
    of others are not scored. None: all labels, as in COCO.
    """
    incomplete: np.ndarray | None = None
    """int: the labels that may have more objects. Detections of them that have no object here are
    neither hits nor false alarms.
    """


@dataclass(frozen=True)
class CocoTable:
    summary: dict[str, float | None]
    """The twelve COCO numbers by `SUMMARY_NAMES`, or with other limits one AR for each of them; and
    the numbers of other metrics.
    """
    per_class: dict[str, dict[str, float | None]]
    """Class name -> objects, AP, AP50, AP75, AP_small .. AP_large, AR, AR_small .. AR_large: the
    summary's numbers of this class alone, AR at the largest limit.
    """
    precision_RK: np.ndarray
    """Precision at IoU 0.5 over 101 recall points for each class, (101, K); -1 for a class without
    truth.
    """
    images: int
    detections: int

    def as_dict(self) -> dict[str, Any]:
        return {
            "images": self.images,
            "detections": self.detections,
            **self.summary,
            "per_class": self.per_class,
        }

    def as_text(self) -> str:
        """A table to read: a dash stands for a number without such objects."""
        lines = [f"{self.images} images, {self.detections} detections"]
        lines += [f"  {name:<10} {shown(value):>7}" for name, value in self.summary.items()]
        names = {name: _in_a_cell(name) for name in self.per_class}
        width = max([len(name) for name in names.values()] + [5])
        columns = {
            head: name
            for head, name in {**_COLUMNS, "AR": "AR"}.items()
            if all(name in row for row in self.per_class.values())
        }
        lines.append(f"  {'class':<{width}}  objects " + " ".join(f"{head:>7}" for head in columns))
        for name, row in self.per_class.items():
            lines.append(
                f"  {names[name]:<{width}}  {int(row['objects'] or 0):7d} "
                + " ".join(f"{shown(row[column]):>7}" for column in columns.values())
            )
        return "\n".join(lines)


def _in_a_cell(name: str) -> str:
    """A class name on one line of a terminal, at most `_WIDEST` characters."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
    return shown if len(shown) <= _WIDEST else shown[: _WIDEST - 3] + "..."


def coco_table(
    truths: Sequence[Truth],
    detections: Mapping[int, Detections],
    class_names: Sequence[str],
    *,
    max_detections: Sequence[int] = (1, 10, 100),
) -> CocoTable:
    """Score detections (by image id) against the truth of every image, exactly as pycocotools does,
    in any order.

    `max_detections`: limits on the detections of an image and class, each with its AR; all other
    numbers are those of the largest. Equal scores are ordered by image id, then by rank within the
    image. `ValueError` for detections of an image without a truth, and for a label out of range:
    both would be dropped silently.
    """
    truths = sorted(truths, key=lambda t: t.image_id)
    limits = sorted(set(max_detections))
    columns = joined_detections(truths, detections, class_names)
    precision_TRKSM, recall_TKSM = _curves(_coco_index(truths, class_names), columns, limits)
    summary = _average_precisions(precision_TRKSM[..., -1])
    summary |= {f"AR{limit}": mean(recall_TKSM[:, :, 0, m]) for m, limit in enumerate(limits)}
    summary |= {
        f"AR_{size}": mean(recall_TKSM[:, :, s, -1]) for s, size in enumerate(SIZES, start=1)
    }
    labels = np.concatenate([t.labels_N[~t.crowd_N] for t in truths] or [np.zeros(0, np.int64)])
    objects = np.bincount(labels, minlength=len(class_names))
    per_class = {}
    for k, name in enumerate(class_names):
        recalls = {
            "AR" if s == 0 else f"AR_{SIZES[s - 1]}": mean(recall_TKSM[:, k, s, -1])
            for s in range(4)
        }
        per_class[name] = {
            "objects": float(objects[k]),
            **_average_precisions(precision_TRKSM[:, :, k : k + 1, :, -1]),
            **recalls,
        }
    return CocoTable(
        summary, per_class, precision_TRKSM[0, :, :, 0, -1], len(truths), len(columns["scores"])
    )


def _curves(
    truth_index: COCO, columns: dict[str, np.ndarray], limits: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """COCOeval's arrays: precision (T, R, K, S, M) and recall (T, K, S, M); -1 without objects."""
    rows = np.column_stack(
        [columns["images"], _as_xywh(columns["boxes"]), columns["scores"], columns["labels"] + 1]
    ).astype(np.float64)
    evaluation = COCOeval(truth_index, truth_index.loadRes(rows), "bbox")
    evaluation.params.maxDets = list(limits)
    evaluation.evaluate()
    evaluation.accumulate()
    arrays = evaluation.eval
    assert arrays is not None
    return arrays["precision"], arrays["recall"]


def _average_precisions(precision_TRKS: np.ndarray) -> dict[str, float | None]:
    # The thresholds are 0.50, 0.55, ... 0.95: AP75 is the sixth.
    of_all = {
        "AP": mean(precision_TRKS[..., 0]),
        "AP50": mean(precision_TRKS[:1, ..., 0]),
        "AP75": mean(precision_TRKS[5:6, ..., 0]),
    }
    return of_all | {
        f"AP_{size}": mean(precision_TRKS[..., s]) for s, size in enumerate(SIZES, start=1)
    }


def mean(values: np.ndarray) -> float | None:
    """The mean of the numbers above -1, added in the order in which pycocotools adds them, so that
    the last digit is the same; None without any.
    """
    valid = values[values > -1]
    return float(np.mean(valid)) if valid.size else None


def _coco_index(truths: Sequence[Truth], class_names: Sequence[str]) -> COCO:
    """The truths as a COCO index with category ids label + 1 and annotation ids from 1: COCO's
    evaluation takes id 0 for "no match".

    The id of an image is its index in the list: detections are passed as float64, which cannot hold
    every id from 2^53 on.
    """
    objects = joined_truths(truths, whole_crowds=True)
    return COCO.from_arrays(
        [{"id": index, "height": t.height, "width": t.width} for index, t in enumerate(truths)],
        [{"id": k + 1, "name": name} for k, name in enumerate(class_names)],
        objects["images"],
        objects["labels"] + 1,
        _as_xywh(objects["boxes"]),
        ids=np.arange(1, len(objects["boxes"]) + 1),
        area=objects["area"],
        iscrowd=objects["crowd"],
    )


def joined_truths(truths: Sequence[Truth], *, whole_crowds: bool = False) -> dict[str, np.ndarray]:
    """Columns over the objects of all images: images (indices in the list), boxes (XYXY px,
    float64), labels, crowd, area. With `whole_crowds`, each incomplete label adds a crowd of the
    whole image, to which COCO's matching gives the detections that have an extent and no object.
    """
    if whole_crowds:
        truths = [_with_whole_crowds(truth) for truth in truths]
    return {
        "images": np.repeat(np.arange(len(truths)), [len(t.labels_N) for t in truths]),
        "boxes": (
            np.concatenate([np.zeros((0, 4)), *(t.boxes_N4 for t in truths)]).astype(np.float64)
        ),
        "labels": np.concatenate([np.zeros(0, np.int64), *(t.labels_N for t in truths)]),
        "crowd": np.concatenate([np.zeros(0, bool), *(t.crowd_N for t in truths)]),
        "area": np.concatenate([np.zeros(0), *(t.area_N for t in truths)]).astype(np.float64),
    }


def _with_whole_crowds(truth: Truth) -> Truth:
    if truth.incomplete is None or not len(truth.incomplete):
        return truth
    count = len(truth.incomplete)
    frames_N4 = np.tile([0, 0, truth.width, truth.height], (count, 1))
    return replace(
        truth,
        boxes_N4=np.concatenate([truth.boxes_N4, frames_N4]),
        labels_N=np.concatenate([truth.labels_N, truth.incomplete]),
        crowd_N=np.concatenate([truth.crowd_N, np.ones(count, bool)]),
        area_N=np.concatenate([truth.area_N, np.full(count, truth.width * truth.height)]),
    )


def _scored(detections: Detections, truth: Truth) -> Detections:
    """The detections of the labels that the image was searched for."""
    if truth.searched is None:
        return detections
    chosen_N = np.isin(detections.labels_N, truth.searched)
    return Detections(*(column[chosen_N] for column in vars(detections).values()))


def joined_detections(
    truths: Sequence[Truth], detections: Mapping[int, Detections], class_names: Sequence[str]
) -> dict[str, np.ndarray]:
    """Columns over the detections that are scored, in the order of the truths: images (indices in
    the list of truths), boxes (XYXY px, float64), scores, labels. `ValueError` for detections of an
    image without a truth, and for a label out of range.
    """
    unknown = set(detections) - {t.image_id for t in truths}
    if unknown:
        raise ValueError(
            f"detections of {len(unknown)} images that are not in the truth, the first is image_id"
            f" {min(unknown)}; score them against the set that they come from"
        )
    indices = [index for index, t in enumerate(truths) if t.image_id in detections]
    listed = [_scored(detections[truths[index].image_id], truths[index]) for index in indices]
    columns = {
        "images": np.repeat(np.array(indices, np.int64), [len(d.scores_N) for d in listed]),
        "boxes": (
            np.concatenate([np.zeros((0, 4)), *(d.boxes_N4 for d in listed)]).astype(np.float64)
        ),
        "scores": np.concatenate([np.zeros(0), *(d.scores_N for d in listed)]),
        "labels": np.concatenate([np.zeros(0, np.int64), *(d.labels_N for d in listed)]),
    }
    wrong = (columns["labels"] < 0) | (columns["labels"] >= len(class_names))
    if wrong.any():
        index = columns["images"][wrong][0]
        labels = np.unique(columns["labels"][columns["images"] == index])
        raise ValueError(
            f"image_id {truths[index].image_id}: labels {labels} are not all in"
            f" 0..{len(class_names) - 1}"
        )
    return columns


def _as_xywh(boxes_N4: np.ndarray) -> np.ndarray:
    """XYXY -> left, top, width, height."""
    return np.concatenate([boxes_N4[:, :2], boxes_N4[:, 2:] - boxes_N4[:, :2]], axis=1)
