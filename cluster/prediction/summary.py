"""summary.json: what a prediction did and found, beside what the model found on data.val."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from detector.detection_counts import (
    DetectionCounts,
    count_detections,
    mean_score,
    score_quantiles,
    side_quantiles,
)
from detector.drift import LEAST, Drift

SUMMARY, PAGE = "summary.json", "summary.html"
LISTED_ERRORS, EXAMPLES = 20, 5
"""Errors in the summary, in all and for each reason."""
QUANTILES = {"5 %": 0.05, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "95 %": 0.95}


@dataclass
class Errors:
    """The errors of one reason."""

    count: int = 0
    examples: list[str] = field(default_factory=list)
    """The first URIs."""


@dataclass(frozen=True)
class Timing:
    """Of the command that finished the prediction; earlier ones may have done a part of it."""

    seconds: float
    """Wall time until the last part was there, starts and loading included."""
    images: int
    """That this command predicted on."""
    images_before: int
    """That earlier commands had done."""
    images_per_s: float | None
    """Without the time until the network was loaded; None where nothing was to be done."""
    seconds_a_part: float | None
    """Mean wall time of a part on its worker."""
    parts: int
    workers: int


@dataclass(frozen=True)
class Found:
    """The detections of a class in some images."""

    detections: int
    detections_an_image: float | None
    """None where there is no image."""
    images: int
    """With a detection."""
    mean_score: float | None
    score_quantiles: Mapping[str, float] | None
    """By the names of `QUANTILES`; None where there is no detection."""


@dataclass(frozen=True)
class ClassFound:
    name: str
    here: Found
    validation: Found | None = None
    drifts: bool = False


@dataclass(frozen=True)
class Sides:
    """Quantiles of the sides of images in px, by the names of `QUANTILES`."""

    width: Mapping[str, int]
    height: Mapping[str, int]


@dataclass
class Summary:
    """summary.json. What an earlier version did not write is empty."""

    model_version: str
    images: int = 0
    ok: int = 0
    errors: int = 0
    first_errors: list[str] = field(default_factory=list)
    """The first `LISTED_ERRORS`, as "<uri>: <reason>"."""
    errors_by_reason: dict[str, Errors] = field(default_factory=dict)
    """By `read_image.Reason`."""
    detections_with_image_id: int = 0
    """Detections in coco_results.json."""
    passed_over: Mapping[str, int] = field(default_factory=dict)
    """Files below the folder that were not predicted on, by reason."""
    not_drawn: list[str] = field(default_factory=list)
    """The first overlays that failed, as "<uri>: <reason>"."""
    timing: Timing | None = None
    drift: list[str] = field(default_factory=list)
    """What differs from validation beyond chance, in words, see `detector.drift`."""
    validation_images: int | None = None
    """Images of data.val; None where the package does not say what the model detected there."""
    classes: list[ClassFound] = field(default_factory=list)
    """By label, and all classes together last."""
    image_sizes: Sides | None = None
    validation_sizes: Sides | None = None

    @property
    def too_few_images(self) -> bool:
        """So that nothing is called drift, whatever differs."""
        return min(self.ok, self.validation_images or 0) < LEAST

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> Summary:
        stored = dict(content)
        stored["errors_by_reason"] = {
            why: Errors(**each) for why, each in content["errors_by_reason"].items()
        }
        stored["classes"] = [_class_from_json(each) for each in content.get("classes", ())]
        for name, kind in (
            ("timing", Timing),
            ("image_sizes", Sides),
            ("validation_sizes", Sides),
        ):
            if content.get(name) is not None:
                stored[name] = kind(**content[name])
        return Summary(**stored)

    def count(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add the rows of a part."""
        self.images += len(rows)
        for row in rows:
            if row["status"] == "ok":
                self.ok += 1
                continue
            self.errors += 1
            if len(self.first_errors) < LISTED_ERRORS:
                self.first_errors.append(f"{row['uri']}: {row['error']}")
            alike = self.errors_by_reason.setdefault(row["reason"], Errors())
            alike.count += 1
            if len(alike.examples) < EXAMPLES:
                alike.examples.append(row["uri"])

    def describe(
        self, here: DetectionCounts, validation: DetectionCounts | None, drift: Sequence[Drift]
    ) -> None:
        """Add what was found in all images and in validation, and what differs."""
        self.drift = [each.sentence for each in drift]
        self.classes = [
            ClassFound(
                name,
                found(here, row),
                None if validation is None else found(validation, row),
                drifts=any(each.row == row for each in drift),
            )
            for row, name in enumerate(here.row_names)
        ]
        self.image_sizes = _sides(here)
        if validation is not None:
            self.validation_images = validation.images
            self.validation_sizes = _sides(validation)


def _class_from_json(stored: Mapping[str, Any]) -> ClassFound:
    validation = stored["validation"]
    return ClassFound(
        stored["name"],
        Found(**stored["here"]),
        None if validation is None else Found(**validation),
        stored["drifts"],
    )


def counts_of(rows: Sequence[Mapping[str, Any]], class_names: Sequence[str]) -> DetectionCounts:
    """What was detected in the images of these rows that could be read."""
    read = [row for row in rows if row["status"] == "ok"]
    return count_detections(
        class_names,
        image_N=np.repeat(np.arange(len(read)), [len(row["labels"]) for row in read]),
        labels_N=np.array([label for row in read for label in row["labels"]], np.int64),
        scores_N=np.array([score for row in read for score in row["scores"]]),
        heights_I=np.array([row["height"] for row in read], np.int64),
        widths_I=np.array([row["width"] for row in read], np.int64),
    )


def found(counts: DetectionCounts, row: int) -> Found:
    """A row of the counts."""
    scores_B, detections = counts.scores_CB[row], int(counts.detections_C[row])
    mean = mean_score(scores_B)
    scores = score_quantiles(scores_B, list(QUANTILES.values()))
    if scores is not None:
        scores = [round(score, 4) for score in scores]
    return Found(
        detections,
        round(detections / counts.images, 4) if counts.images else None,
        int(counts.images_C[row]),
        None if mean is None else round(mean, 4),
        None if scores is None else dict(zip(QUANTILES, scores, strict=True)),
    )


def _sides(counts: DetectionCounts) -> Sides | None:
    if not counts.images:
        return None
    width, height = (
        dict(zip(QUANTILES, side_quantiles(sides, list(QUANTILES.values())) or (), strict=True))
        for sides in (counts.widths, counts.heights)
    )
    return Sides(width, height)
