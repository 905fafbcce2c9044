"""summary.html: a prediction for the browser and for print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.prediction.read_image import REMEDIES
from cluster.prediction.samples import Pictures
from cluster.prediction.summary import QUANTILES, ClassFound, Errors, Found, Sides, Summary, Timing
from cluster.reports.html import render
from detector.choices import WHOLE_PICTURE
from detector.detection_counts import DetectionCounts
from detector.drift import RULE, shown_rate
from detector.scores import shown

MOST_CLASSES = 40
"""Classes with a chart; the others are listed."""
MOST_LISTED = 2000
SHOWN_QUANTILES = ("5 %", "median", "95 %")
CHART_BINS = 20
"""Bars of the score, each 0.05 wide."""
NOT_KNOWN = (
    "Not known for this package: it does not say what the model detected in validation. A package"
    " says so if both training and register are of this version or a later one."
)
NOT_COMPARED = (
    "Not compared: of the detections here those are kept that reach the threshold of their class,"
    " in validation all were."
)
Pairs = list[tuple[str, str]]


@dataclass(frozen=True)
class Chart:
    """SVG paths in a box of 100 x 40: the share of the detections by score."""

    here: str
    validation: str
    top: str
    """The share at the upper edge."""


@dataclass(frozen=True)
class ClassCard:
    name: str
    drifts: bool
    rows: Sequence[tuple[str, str, str]]
    """(what, here, in validation)."""
    chart: Chart | None
    """None where there is no detection."""


@dataclass(frozen=True)
class Reason:
    name: str
    count: str
    remedy: str
    examples: Sequence[str]
    more: int


def render_page(
    output: str,
    claim: Mapping[str, Any],
    summary: Summary,
    counts: DetectionCounts,
    validation: DetectionCounts | None,
    pictures: Pictures,
) -> str:
    """The page. `claim` is `Claim.to_json`."""
    shown_classes, others = _by_interest(summary.classes)
    return render(
        "prediction_summary.html.j2",
        output=output,
        tiles=_tiles(summary),
        drift=summary.drift,
        compared=validation is not None,
        too_few=summary.too_few_images,
        not_known=NOT_KNOWN if claim.get("thresholds") is None else NOT_COMPARED,
        rule=RULE,
        notes=_notes(claim, summary, pictures),
        what=_what(claim, summary),
        timing=_timing(summary.timing),
        reasons=_reasons(summary.errors_by_reason),
        first_errors=summary.first_errors,
        errors=summary.errors,
        passed_over=list(summary.passed_over.items()),
        cards=[_card(each, row, counts, validation) for row, each in shown_classes],
        others=[
            (each.name, each.here.detections, each.validation and each.validation.detections)
            for _, each in others[:MOST_LISTED]
        ],
        others_left_out=max(0, len(others) - MOST_LISTED),
        sizes=_sizes(summary.image_sizes, summary.validation_sizes),
        quantiles=list(QUANTILES),
        groups=pictures.groups,
    )


def _by_interest(
    classes: Sequence[ClassFound],
) -> tuple[list[tuple[int, ClassFound]], list[tuple[int, ClassFound]]]:
    """(row, class): those with a chart and the others. All classes together come first, then those
    that drift, then by detections.
    """
    last = len(classes) - 1
    ordered = sorted(
        enumerate(classes),
        key=lambda each: (each[0] != last, not each[1].drifts, -each[1].here.detections),
    )
    # Of a single class both say the same.
    ordered = ordered[1:] if last == 1 else ordered
    return ordered[: MOST_CLASSES + 1], ordered[MOST_CLASSES + 1 :]


def _tiles(summary: Summary) -> Pairs:
    together = summary.classes[-1].here
    rate = summary.timing and summary.timing.images_per_s
    drift = "-" if summary.validation_images is None else f"{len(summary.drift):,}"
    return [
        (f"{summary.images:,}", "images"),
        (f"{summary.ok:,}", "predicted"),
        (f"{summary.errors:,}", "errors"),
        (f"{together.detections:,}", "detections"),
        (_rate(together), "detections an image"),
        (f"{summary.ok - together.images:,}", "images without detections"),
        ("-" if rate is None else f"{rate:,.1f}", "images/s"),
        (drift, "signs of drift"),
    ]


def _what(claim: Mapping[str, Any], summary: Summary) -> Pairs:
    views = claim.get("views") or {}
    return [
        ("model", summary.model_version or "a package in a folder"),
        ("digest of the package", claim["package_digest"]),
        *((name.replace("_", " "), _setting(value)) for name, value in claim["decode"].items()),
        ("images", claim["images"]),
        ("most pixels of an image", f"{claim['max_pixels']:,}"),
        *((name, _setting(value)) for name, value in views.items() if value),
        *(
            (f"threshold of {name}", "none, so it is left out" if score is None else f"{score:.3f}")
            for name, score in (claim.get("thresholds") or {}).items()
        ),
    ]


def _setting(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _timing(timing: Timing | None) -> Pairs:
    if timing is None:
        return []
    lines = [
        ("images of this command", f"{timing.images:,}"),
        ("images of earlier commands", f"{timing.images_before:,}"),
        ("wall time of this command", f"{timing.seconds:,.1f} s until the last part was done"),
    ]
    if timing.images_per_s is None or timing.seconds_a_part is None:
        return lines
    return [
        *lines,
        ("rate", f"{timing.images_per_s:,.1f} images/s, loading of the network left out"),
        ("a part", f"{timing.seconds_a_part:,.2f} s on its worker, mean of {timing.parts:,}"),
        ("workers", f"{timing.workers:,}"),
    ]


def _notes(claim: Mapping[str, Any], summary: Summary, pictures: Pictures) -> list[str]:
    notes = list[str]()
    if summary.validation_images is not None and (claim.get("views") or {}) not in (
        {},
        WHOLE_PICTURE.as_dict(),
    ):
        notes.append(
            "The images were detected in tiles or mirror images too, those of validation only as"
            " they are: a difference may come from that."
        )
    if pictures.lost:
        notes.append(
            f"{len(pictures.lost)} pictures of this page could not be read again, such as"
            f" {pictures.lost[0]}"
        )
    if summary.not_drawn:
        notes.append(f"Overlays could not be drawn, such as {summary.not_drawn[0]}")
    return notes


def _reasons(errors: Mapping[str, Errors]) -> list[Reason]:
    ordered = sorted(errors.items(), key=lambda each: -each[1].count)
    return [
        Reason(
            name,
            f"{each.count:,}",
            REMEDIES.get(name, ""),
            each.examples,
            each.count - len(each.examples),
        )
        for name, each in ordered
    ]


def _card(
    found: ClassFound, row: int, counts: DetectionCounts, validation: DetectionCounts | None
) -> ClassCard:
    here, there = found.here, found.validation

    def line(each: Found, images: int) -> list[str]:
        scores = each.score_quantiles or dict.fromkeys(QUANTILES)
        return [
            f"{each.detections:,}",
            _rate(each),
            f"{each.images / images:.0%}" if images else "-",
            shown(each.mean_score, 2),
            *(shown(scores[name], 2) for name in SHOWN_QUANTILES),
        ]

    names = (
        *("detections", "an image", "images with it", "mean score"),
        *(f"score, {name}" for name in SHOWN_QUANTILES),
    )
    ours = line(here, counts.images)
    theirs = [""] * len(names)
    if there is not None and validation is not None:
        theirs = line(there, validation.images)
    return ClassCard(
        found.name,
        found.drifts,
        list(zip(names, ours, theirs, strict=True)),
        _chart(counts.scores_CB[row], None if validation is None else validation.scores_CB[row]),
    )


def _rate(found: Found) -> str:
    return "-" if found.detections_an_image is None else shown_rate(found.detections_an_image)


def _chart(here_B: np.ndarray, validation_B: np.ndarray | None) -> Chart | None:
    shares = [_shares(here_B), None if validation_B is None else _shares(validation_B)]
    tops = [float(each.max()) for each in shares if each is not None]
    if not tops:
        return None
    ours, theirs = (None if each is None else each * 40 / max(tops) for each in shares)
    wide = 100 / CHART_BINS
    bars, steps = "", ""
    if ours is not None:
        bars = "".join(
            f"M{wide * i + 0.5:g} 40V{40 - y:.1f}h{wide - 1:g}V40z" for i, y in enumerate(ours) if y
        )
    if theirs is not None:
        steps = "M0 40" + "".join(f"V{40 - y:.1f}h{wide:g}" for y in theirs) + "V40"
    return Chart(bars, steps, f"{max(tops):.0%}")


def _shares(scores_B: np.ndarray) -> np.ndarray | None:
    total = scores_B.sum()
    return scores_B.reshape(CHART_BINS, -1).sum(axis=1) / total if total else None


def _sizes(here: Sides | None, validation: Sides | None) -> list[tuple[str, list[str]]]:
    """(side and set, its quantiles)."""
    sides = [("", here), (" in validation", validation)]
    return [
        (f"{name}{of}", [f"{getattr(each, name)[q]:,}" for q in QUANTILES])
        for name in ("width", "height")
        for of, each in sides
        if each is not None
    ]
