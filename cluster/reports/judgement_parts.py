"""Tables and charts of a judgement, as values for the templates of pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cluster.reports.line_charts import LineChart, across, line
from detector.calibration import Reliability
from detector.error_kinds import KINDS, ErrorKinds
from detector.judgement import Judgement
from detector.metrics import SIZES, CocoTable
from detector.operating_points import threshold_curve
from detector.resampling import Interval, IntervalTable
from detector.scores import shown

MOST_CLASSES = 100
"""Classes of a table, those with the most objects."""
MOST_CHARTS = 12
MOST_CONFUSED = 14
"""Classes of the confusion matrix."""
MOST_PAIRS = 10
RECALL_R = np.linspace(0, 1, 101)
NAMES_OF_KINDS = {
    "class": ("wrong class", "on an object of another class, IoU 0.5 or more"),
    "box": ("box does not fit", "IoU 0.1 to 0.5 with an object of its class"),
    "both": ("class and box", "another class, and the box does not fit"),
    "duplicate": ("found twice", "on an object that a better detection has"),
    "background": ("background", "IoU 0.1 or less with every object"),
    "missed": ("missed", "an object that no detection is about"),
}


@dataclass(frozen=True)
class NumberRow:
    """A number of 0..1 with its interval, as text and as parts of a bar in percent. `low` and
    `width` are None without an interval, `at` without a number.
    """

    name: str
    value: str
    range: str
    at: float | None
    low: float | None = None
    width: float | None = None


def number_row(name: str, value: float | None, interval: Interval | None) -> NumberRow:
    if value is None:
        return NumberRow(name, "-", "", None)
    if interval is None:
        return NumberRow(name, shown(value, 3), "", 100 * value)
    low, high = interval.low, interval.high
    span = f"{low:.3f} to {high:.3f}"
    return NumberRow(name, shown(value, 3), span, 100 * value, 100 * low, 100 * (high - low))


def number_rows(table: CocoTable, intervals: IntervalTable | None) -> list[NumberRow]:
    """All numbers of the summary, in the order of the table."""
    known = {} if intervals is None else intervals.summary
    return [number_row(name, value, known.get(name)) for name, value in table.summary.items()]


def by_objects(table: CocoTable, most: int) -> list[str]:
    """The names of the classes with the most objects."""
    return sorted(table.per_class, key=lambda name: -(table.per_class[name]["objects"] or 0))[:most]


@dataclass(frozen=True)
class ClassRow:
    name: str
    objects: int
    ap: NumberRow
    ap50: str
    point: Sequence[str]
    """Threshold, precision, recall, F1; dashes where there is no threshold."""


def class_rows(judged: Judgement, table: CocoTable) -> list[ClassRow]:
    rows = []
    for name in by_objects(table, MOST_CLASSES):
        numbers, point = table.per_class[name], judged.thresholds.classes[name]
        found = {} if judged.intervals is None else judged.intervals.per_class[name]
        rows.append(
            ClassRow(
                name,
                int(numbers["objects"] or 0),
                number_row(name, numbers["AP"], found.get("AP")),
                shown(numbers["AP50"], 3),
                ["-"] * 4
                if point is None
                else [
                    f"{value:.3f}"
                    for value in (point.threshold, point.precision, point.recall, point.f1)
                ],
            )
        )
    return rows


@dataclass(frozen=True)
class Cost:
    """A kind of error: how many, and what it costs in AP50. `share` is of the largest cost."""

    name: str
    meaning: str
    count: int
    cost: str
    share: float


def costs(errors: ErrorKinds) -> list[Cost]:
    """The kinds, the most costly first."""
    counts = dict(zip(KINDS, errors.count_K6.sum(axis=0).tolist(), strict=True))
    top = max([errors.cost.get(kind, 0.0) for kind in KINDS] + [1e-9])
    ordered = sorted(KINDS, key=lambda kind: -errors.cost.get(kind, 0.0))
    return [
        Cost(
            *NAMES_OF_KINDS[kind],
            counts[kind],
            shown(errors.cost.get(kind), 3),
            errors.cost.get(kind, 0.0) / top,
        )
        for kind in ordered
    ]


@dataclass(frozen=True)
class Cell:
    """`shade` is 0..1; None without a number."""

    text: str
    shade: float | None

    @property
    def dark(self) -> bool:
        return self.shade is not None and self.shade > 0.55


def heat_rows(table: CocoTable) -> list[tuple[str, list[Cell]]]:
    """Of each class the AP of all, small, medium and large objects."""
    names = ["AP", *(f"AP_{size}" for size in SIZES)]
    return [
        (name, [Cell(shown(row[key], 2), row[key]) for key in names])
        for name in by_objects(table, MOST_CLASSES)
        for row in [table.per_class[name]]
    ]


def class_charts(judged: Judgement, table: CocoTable) -> list[tuple[LineChart, LineChart]]:
    """Of each class its precision over recall, and precision, recall and F1 over the threshold."""
    return [
        (_recall_chart(table, name), _threshold_chart(judged, name))
        for name in by_objects(table, MOST_CHARTS)
        if table.per_class[name]["AP50"] is not None
    ]


def _recall_chart(table: CocoTable, name: str) -> LineChart:
    label = list(table.per_class).index(name)
    curve = line("precision", RECALL_R, table.precision_RK[:, label])
    note = f"AP50 {shown(table.per_class[name]['AP50'], 3)}"
    return LineChart(name, [curve], "recall, at IoU 0.5", note)


def _threshold_chart(judged: Judgement, name: str) -> LineChart:
    curve = threshold_curve(judged.pairing, judged.pairing.class_names.index(name))
    lines = [
        line(what, curve.threshold_N, values_N, pattern)
        for what, values_N, pattern in (
            ("F1", curve.f1_N, "solid"),
            ("precision", curve.precision_N, "dashed"),
            ("recall", curve.recall_N, "dotted"),
        )
    ]
    point = judged.thresholds.classes[name]
    if point is None:
        return LineChart(name, lines, "score threshold", "no threshold")
    note = f"threshold {point.threshold:.3f}: F1 {point.f1:.3f}"
    return LineChart(name, lines, "score threshold", note, across(point.threshold))


def calibration_chart(found: Reliability) -> LineChart:
    """The share of hits over the mean score, a ring for each bin."""
    some = found.count_B > 0
    ends = np.array([0.0, 1.0])
    lines = [
        line("share that is right", found.score_B[some], found.right_B[some], rings=True),
        line("a score that is the share", ends, ends, "dotted"),
    ]
    return LineChart("Calibration", lines, "mean score of the bin")


@dataclass(frozen=True)
class ConfusionTable:
    """Rows are objects, columns detections, in the same order. The last row counts detections of
    nothing, the last column objects that were missed.
    """

    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]
    left_out: int
    """Classes without a row; the others are those with the most errors."""
    pairs: Sequence[str]
    """The most frequent confusions in words."""


def confusion_table(judged: Judgement) -> ConfusionTable:
    matrix = judged.confusion
    names = judged.pairing.class_names
    classes = len(names)
    wrong = matrix - np.diag(np.diag(matrix))
    chosen = np.argsort(-(wrong.sum(axis=0) + wrong.sum(axis=1))[:classes], kind="stable")
    chosen = [*sorted(chosen[:MOST_CONFUSED].tolist()), classes]
    shares = matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
    all_names = [*names, "nothing"]
    rows = [
        (
            all_names[r],
            [
                Cell(f"{matrix[r, c]:,}" if matrix[r, c] else "", float(shares[r, c]))
                for c in chosen
            ],
        )
        for r in chosen
    ]
    order = np.argsort(-wrong[:classes, :classes], axis=None, kind="stable")[:MOST_PAIRS]
    pairs = [
        f"{wrong[r, c]:,} x {names[r]} taken for {names[c]}"
        for r, c in zip(*np.unravel_index(order, (classes, classes)), strict=True)
        if wrong[r, c]
    ]
    columns = [*(names[c] for c in chosen[:-1]), "missed"]
    return ConfusionTable(columns, rows, max(0, classes - MOST_CONFUSED), pairs)


def rule_in_words(judged: Judgement) -> str:
    """How the thresholds were chosen."""
    wished = judged.thresholds.precision
    if wished is None:
        return "the score threshold with the highest F1"
    return f"the lowest score threshold with a precision of {wished:g} or more"


def calibration_bins(found: Reliability) -> list[tuple[str, str, str, str]]:
    """(scores, detections, mean score, share that is right) of each bin with detections."""
    bins = len(found.count_B)
    return [
        (
            f"{b / bins:g} to {(b + 1) / bins:g}",
            f"{found.count_B[b]:,}",
            f"{found.score_B[b]:.3f}",
            f"{found.right_B[b]:.3f}",
        )
        for b in range(bins)
        if found.count_B[b]
    ]


def slice_numbers(scores: Mapping[str, Interval | None]) -> list[NumberRow]:
    return [
        number_row(name, None if interval is None else interval.estimate, interval)
        for name, interval in scores.items()
    ]
