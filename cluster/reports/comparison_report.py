"""comparison.html: two detectors on the same images, side by side, with the paired difference. The
same detections give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cluster.reports.evaluation_report import Source
from cluster.reports.html import render
from cluster.reports.judged_pictures import JudgedPicture, judged_pictures
from cluster.reports.judgement_parts import MOST_CLASSES, NAMES_OF_KINDS, by_objects
from cluster.shards.index import ShardSet
from detector.error_kinds import KINDS
from detector.judgement import Judgement
from detector.metrics import SIZES, CocoTable
from detector.resampling import DifferenceTable, PairedDifference
from detector.scores import shown

PICTURES = 8
"""Of those on which one detector is better, and as many for the other."""


@dataclass(frozen=True)
class Compared:
    """One of the two detectors. Both have the same images, objects and class names."""

    judged: Judgement
    table: CocoTable


@dataclass(frozen=True)
class DifferenceRow:
    """A number of both, and the second minus the first. The parts of the bar are percent, 50 is no
    difference; None where there is no interval.
    """

    name: str
    first: str
    second: str
    difference: str
    range: str
    verdict: str
    at: float | None = None
    low: float | None = None
    width: float | None = None


@dataclass(frozen=True)
class PicturePair:
    words: str
    first: JudgedPicture
    second: JudgedPicture


def comparison_page(
    first: Compared,
    second: Compared,
    differences: DifferenceTable | None,
    shard_set: ShardSet,
    *,
    source: Source,
    other_model: str,
    notes: Sequence[str] = (),
) -> str:
    """The page as HTML. `differences` is None for less than two images; `source` names the first
    detector, `other_model` the second. `DataError` where a shard cannot be read.
    """
    gains_I = _gains(first.judged, second.judged)
    better = [i for i in np.argsort(-gains_I, kind="stable").tolist() if gains_I[i] > 0]
    worse = [i for i in np.argsort(gains_I, kind="stable").tolist() if gains_I[i] < 0]
    return render(
        "comparison_report.html.j2",
        source=source,
        other_model=other_model,
        notes=notes,
        resamples=None if differences is None else differences.resamples,
        numbers=difference_rows(first.table.summary, second.table.summary, differences),
        classes=_class_rows(first.table, second.table, differences),
        sizes=_size_rows(first.table, second.table, differences),
        all_classes=len(first.table.per_class),
        errors=_error_rows(first.judged, second.judged),
        points=_point_rows(first, second),
        better=_pairs(first.judged, second.judged, shard_set, better[:PICTURES]),
        worse=_pairs(first.judged, second.judged, shard_set, worse[:PICTURES]),
    )


def verdict(difference: PairedDifference | None) -> str:
    """`better` or `worse` where the interval does not hold 0."""
    if difference is None:
        return ""
    if difference.interval.low > 0:
        return "better"
    return "worse" if difference.interval.high < 0 else "not distinguishable"


def difference_rows(
    first: Mapping[str, float | None],
    second: Mapping[str, float | None],
    differences: DifferenceTable | None,
) -> list[DifferenceRow]:
    """The numbers of the summaries, in the order of the table."""
    found = {} if differences is None else differences.summary
    scale = _scale(list(found.values()))
    return [_row(name, first[name], second[name], found.get(name), scale) for name in first]


def _scale(differences: Sequence[PairedDifference | None]) -> float:
    """The difference at the end of a bar."""
    ends = [abs(end) for d in differences if d for end in (d.interval.low, d.interval.high)]
    return max([*ends, 1e-9])


def _row(
    name: str,
    first: float | None,
    second: float | None,
    difference: PairedDifference | None,
    scale: float,
) -> DifferenceRow:
    change = "" if first is None or second is None else f"{second - first:+z.3f}"
    row = (name, shown(first, 3), shown(second, 3), change)
    if difference is None:
        return DifferenceRow(*row, "", "")
    low, high = difference.interval.low, difference.interval.high
    return DifferenceRow(
        *row,
        f"{low:+z.3f} to {high:+z.3f}",
        verdict(difference),
        50 + 50 * difference.estimate / scale,
        50 + 50 * low / scale,
        50 * (high - low) / scale,
    )


def _class_rows(
    first: CocoTable, second: CocoTable, differences: DifferenceTable | None
) -> list[tuple[int, DifferenceRow]]:
    """(objects, AP) of each class."""
    names = by_objects(first, MOST_CLASSES)
    found = {
        name: None if differences is None else differences.per_class[name]["AP"] for name in names
    }
    scale = _scale(list(found.values()))
    return [
        (
            int(first.per_class[name]["objects"] or 0),
            _row(
                name,
                first.per_class[name]["AP"],
                second.per_class[name]["AP"],
                found[name],
                scale,
            ),
        )
        for name in names
    ]


def _size_rows(
    first: CocoTable, second: CocoTable, differences: DifferenceTable | None
) -> list[tuple[str, list[tuple[str, str]]]]:
    """Of each class the (difference in AP, verdict) of small, medium and large objects."""
    rows = []
    for name in by_objects(first, MOST_CLASSES):
        cells = []
        for key in (f"AP_{size}" for size in SIZES):
            one, other = first.per_class[name][key], second.per_class[name][key]
            found = None if differences is None else differences.per_class[name][key]
            change = "-" if one is None or other is None else f"{other - one:+z.3f}"
            cells.append((change, verdict(found)))
        rows.append((name, cells))
    return rows


def _error_rows(first: Judgement, second: Judgement) -> list[tuple[str, int, int, str, str]]:
    """(kind, number of the first, of the second, what it costs the first, the second)."""
    counts = [each.errors.count_K6.sum(axis=0).tolist() for each in (first, second)]
    return [
        (
            NAMES_OF_KINDS[kind][0],
            counts[0][place],
            counts[1][place],
            shown(first.errors.cost.get(kind), 3),
            shown(second.errors.cost.get(kind), 3),
        )
        for place, kind in enumerate(KINDS)
    ]


def _point_rows(first: Compared, second: Compared) -> list[tuple[str, list[str]]]:
    """Of each class threshold, precision, recall and F1 of the first, then of the second."""
    rows = []
    for name in by_objects(first.table, MOST_CLASSES):
        cells: list[str] = []
        for each in (first, second):
            point = each.judged.thresholds.classes[name]
            cells += ["-"] * 4 if point is None else [f"{v:.3f}" for v in vars(point).values()]
        rows.append((name, cells))
    return rows


def _gains(first: Judgement, second: Judgement) -> np.ndarray:
    """How much higher the F1 of each image is in the second. An image without objects and
    detections has F1 1.
    """
    one, other = (np.nan_to_num(each.images.f1_I, nan=1.0) for each in (first, second))
    return other - one


def _pairs(
    first: Judgement, second: Judgement, shard_set: ShardSet, images: Sequence[int]
) -> list[PicturePair]:
    f1 = [np.nan_to_num(each.images.f1_I, nan=1.0) for each in (first, second)]
    drawn = [judged_pictures(each, shard_set, images) for each in (first, second)]
    return [
        PicturePair(f"F1 {f1[0][image]:.2f} and {f1[1][image]:.2f}", one, other)
        for image, one, other in zip(images, *drawn, strict=True)
    ]
