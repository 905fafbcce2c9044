"""Detections + truth -> the COCO table, scored by pycocotools. Boxes are XYXY px of the original image; labels contiguous 0..K-1."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detector.decode import Detections

SUMMARY_NAMES = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large")
"""COCO's twelve numbers, in COCOeval's order; -1 where there is no such truth."""


@dataclass(frozen=True)
class Truth:
    """The annotated objects of one image."""

    image_id: int
    height: int
    width: int
    boxes_N4: np.ndarray
    labels_N: np.ndarray
    crowd_N: np.ndarray
    """bool (N,): regions in which detections count neither for nor against."""
    area_N: np.ndarray
    """px^2 as annotated (of the mask where there was one): decides small, medium, large."""


@dataclass(frozen=True)
class CocoTable:
    summary: dict[str, float]
    """The twelve COCO numbers by `SUMMARY_NAMES`."""
    per_class: dict[str, dict[str, float]]
    """Class name -> AP, AP50, objects."""
    precision_RK: np.ndarray
    """Precision at IoU 0.5 over 101 recall points for each class, (101, K); -1 for a class without truth."""
    images: int
    detections: int

    def as_dict(self) -> dict:
        return {"images": self.images, "detections": self.detections, **self.summary, "per_class": self.per_class}

    def as_text(self) -> str:
        lines = [f"{self.images} images, {self.detections} detections"]
        lines += [f"  {name:<10} {self.summary[name]:7.4f}" for name in SUMMARY_NAMES]
        width = max([len(name) for name in self.per_class] + [5])
        lines.append(f"  {'class':<{width}}  objects      AP    AP50")
        lines += [f"  {name:<{width}}  {int(row['objects']):7d} {row['AP']:7.4f} {row['AP50']:7.4f}" for name, row in self.per_class.items()]
        return "\n".join(lines)


def coco_table(truths: Sequence[Truth], detections: Mapping[int, Detections], class_names: Sequence[str]) -> CocoTable:
    """Score detections (by image id) against the truth of every image, exactly as pycocotools does.

    Ids are our own, from 1, because COCOeval takes id 0 for "no match". Equal scores are ordered by image id, then by rank within the image.
    Raises `ValueError` for detections of an image without truth record, and for a label out of range: pycocotools would drop both silently.
    """
    truths = sorted(truths, key=lambda t: t.image_id)
    unknown = set(detections) - {t.image_id for t in truths}
    if unknown:
        raise ValueError(
            f"detections of {len(unknown)} images that are not in the truth, the first is image_id {min(unknown)}; score the set they come from"
        )
    rows = []
    for truth in truths:
        found = detections.get(truth.image_id)
        if found is None or not len(found.scores_N):
            continue
        if found.labels_N.min() < 0 or found.labels_N.max() >= len(class_names):
            raise ValueError(f"image_id {truth.image_id}: labels {np.unique(found.labels_N)} are not all in 0..{len(class_names) - 1}")
        xywh = np.concatenate([found.boxes_N4[:, :2], found.boxes_N4[:, 2:] - found.boxes_N4[:, :2]], axis=1)
        ids = np.full((len(xywh), 1), truth.image_id)
        rows.append(np.concatenate([ids, xywh, found.scores_N[:, None], found.labels_N[:, None] + 1], axis=1).astype(np.float64))
    total = sum(len(r) for r in rows)
    objects = np.bincount(np.concatenate([t.labels_N[~t.crowd_N] for t in truths] or [[]]).astype(int), minlength=len(class_names))
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools narrates
        truth_index = coco_index(truths, class_names)
        if not rows:
            empty = np.where(objects.sum() > 0, 0.0, -1.0)
            per_class = {
                n: {"AP": 0.0 if c else -1.0, "AP50": 0.0 if c else -1.0, "objects": float(c)} for n, c in zip(class_names, objects, strict=True)
            }
            return CocoTable(dict.fromkeys(SUMMARY_NAMES, float(empty)), per_class, np.where(objects, 0.0, -1.0)[None].repeat(101, 0), len(truths), 0)
        evaluation = COCOeval(truth_index, truth_index.loadRes(np.concatenate(rows)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision_TRK = evaluation.eval["precision"][:, :, :, 0, -1]  # (IoU thresholds, recall points, classes) for all sizes and 100 detections
    per_class = {}
    for k, name in enumerate(class_names):
        valid = precision_TRK[:, :, k].min() > -1
        ap, ap50 = (float(precision_TRK[:, :, k].mean()), float(precision_TRK[0, :, k].mean())) if valid else (-1.0, -1.0)
        per_class[name] = {"AP": ap, "AP50": ap50, "objects": float(objects[k])}
    summary = dict(zip(SUMMARY_NAMES, map(float, evaluation.stats), strict=True))
    return CocoTable(summary, per_class, precision_TRK[0], len(truths), total)


def coco_index(truths: Sequence[Truth], class_names: Sequence[str]) -> COCO:
    """The truth as pycocotools wants it, with annotation ids from 1 and category ids label + 1."""
    annotations = []
    for truth in truths:
        for box, label, crowd, area in zip(
            truth.boxes_N4.tolist(), truth.labels_N.tolist(), truth.crowd_N.tolist(), truth.area_N.tolist(), strict=True
        ):
            xywh = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": truth.image_id, "category_id": label + 1, "bbox": xywh, "area": area, "iscrowd": int(crowd)}
            )
    index = COCO()
    index.dataset = {
        "images": [{"id": t.image_id, "height": t.height, "width": t.width} for t in truths],
        "annotations": annotations,
        "categories": [{"id": k + 1, "name": name} for k, name in enumerate(class_names)],
    }
    index.createIndex()
    return index
