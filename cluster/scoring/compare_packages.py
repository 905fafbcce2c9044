"""Two model packages on one shard set -> comparison.html and comparison.json in a local folder."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.errors import UsageError
from cluster.reports.comparison_report import Compared, comparison_page, verdict
from cluster.reports.evaluation_report import Source
from cluster.runs.package_files import read_package
from cluster.scoring import evaluate
from cluster.scoring.detect import detect_set
from cluster.scoring.evaluate_package import limit_detections, settings_in_words
from cluster.scoring.truths import read_frequencies, read_truths
from cluster.shards.classes import ClassMatch
from cluster.shards.index import ShardSet
from detector.choices import WHOLE_PICTURE, ViewSettings
from detector.decode import Detections
from detector.judgement import SEED, judge
from detector.metrics import Truth
from detector.resampling import (
    DifferenceTable,
    PairedDifference,
    paired_differences,
    resamples_for,
    said,
)
from detector.scores import shown

REPORT, NUMBERS = "comparison.html", "comparison.json"
VERSION = 1


@dataclass(frozen=True)
class Candidate:
    """A detector: its package in a local folder, what it is called, and the classes of the set in
    terms of its own.
    """

    package: str
    name: str
    classes: ClassMatch


def compare_packages(
    first: Candidate,
    second: Candidate,
    shard_set: ShardSet,
    folder: str,
    *,
    precision: float | None = None,
    max_detections: int | None = None,
    views: ViewSettings = WHOLE_PICTURE,
    notes: Sequence[str] = (),
    **resources: Any,
) -> list[str]:
    """Score both on every image of the set, fill `folder`, and return the result, to read.
    `precision`: see `judge`; `max_detections`: see `limit_detections`; `resources`: see
    `detect_set`. `UsageError` where the two have different classes.
    """
    refuse_other_classes(first, second)
    names = first.classes.names
    truths = read_truths(shard_set, first.classes)
    frequencies = read_frequencies(shard_set, first.classes)
    compared = []
    for each in (first, second):
        limits = limit_detections(each.package, max_detections)
        relabelled = detect_as(names, each, shard_set, settings=views, **resources)
        metrics = [*evaluate.metrics_of(frequencies, limits=limits), evaluate.voc]
        compared.append(_compared(truths, relabelled, names, metrics, limits[-1], precision))
    one, other = compared
    differences = None
    if len(truths) > 1:
        differences = paired_differences(
            one.judged.matches,
            other.judged.matches,
            seed=SEED,
            resamples=resamples_for(one.judged.matches),
        )
    source = Source(first.name, shard_set.uri, shard_set.digest, settings_in_words(limits, views))
    os.makedirs(folder, exist_ok=True)
    stored = {"first": first.name, "second": second.name, "data": shard_set.uri}
    stored |= {"data_digest": shard_set.digest, **_numbers(one, other, differences)}
    with open(os.path.join(folder, NUMBERS), "w", encoding="utf-8") as file:
        json.dump({"version": VERSION, **stored}, file, indent=1)
    page = comparison_page(
        one, other, differences, shard_set, source=source, other_model=second.name, notes=notes
    )
    with open(os.path.join(folder, REPORT), "wb") as file:
        file.write(page.encode("utf-8", "replace"))
    return _lines(one, other, differences)


def refuse_other_classes(first: Candidate, second: Candidate) -> None:
    """`UsageError` where the two have different classes."""
    if differing := set(first.classes.names) ^ set(second.classes.names):
        raise UsageError(
            f"{first.name} and {second.name} have different classes, such as"
            f" {sorted(differing)[0]!r}; compare detectors of the same classes"
        )


def detect_as(
    names: Sequence[str], candidate: Candidate, shard_set: ShardSet, **resources: Any
) -> dict[int, Detections]:
    """The detections of a candidate, by image id, whose labels are places in `names`, its classes
    in another order. `resources`: see `detect_set`.
    """
    label_K = np.array([names.index(name) for name in candidate.classes.names])
    found = detect_set(read_package(candidate.package), shard_set.uri, **resources)
    return {
        image_id: Detections(its.boxes_N4, its.scores_N, label_K[its.labels_N])
        for image_id, its in found.items()
    }


def _compared(
    truths: Sequence[Truth],
    detections: Mapping[int, Detections],
    names: Sequence[str],
    metrics: Sequence[evaluate.Metric],
    limit: int,
    precision: float | None,
) -> Compared:
    table = evaluate.evaluate_detections(detections, truths, names, metrics)
    judged = judge(
        truths, detections, names, max_detections=limit, precision=precision, resamples=0
    )
    return Compared(judged, table)


def _numbers(
    first: Compared, second: Compared, differences: DifferenceTable | None
) -> dict[str, Any]:
    """The numbers of both, and the difference where it has an interval."""
    of_all = {} if differences is None else differences.summary
    of_classes = {} if differences is None else differences.per_class
    one, other = first.table, second.table
    return {
        "numbers": _pairs(one.summary, other.summary, of_all),
        "per_class": {
            name: _pairs(one.per_class[name], other.per_class[name], of_classes.get(name, {}))
            for name in one.per_class
        },
    }


def _pairs(
    first: Mapping[str, float | None],
    second: Mapping[str, float | None],
    differences: Mapping[str, PairedDifference | None],
) -> dict[str, dict[str, Any]]:
    pairs: dict[str, dict[str, Any]] = {}
    for name in first:
        pairs[name] = {"first": first[name], "second": second[name]}
        if (found := differences.get(name)) is not None:
            pairs[name] |= {
                "difference": found.estimate,
                "low": found.interval.low,
                "high": found.interval.high,
                "confidence": found.interval.confidence,
                "share_above_zero": found.share_above_zero,
            }
    return pairs


def _lines(first: Compared, second: Compared, differences: DifferenceTable | None) -> list[str]:
    """The result, for a terminal."""
    lines = ["            first  second"]
    for name, value in first.table.summary.items():
        other = second.table.summary[name]
        found = None if differences is None else differences.summary.get(name)
        words = "" if found is None else f"  second is {said(found)}"
        lines.append(f"  {name:<10} {shown(value):>7} {shown(other):>7}{words}")
    if differences is None:
        return lines
    judged = {name: verdict(row["AP"]) for name, row in differences.per_class.items()}
    for word in ("better", "worse"):
        if its := [name for name, said_of in judged.items() if said_of == word]:
            lines.append(f"second is {word} in AP of: {', '.join(its[:10])}" + _and(its[10:]))
    return lines


def _and(more: Sequence[str]) -> str:
    return f" and {len(more)} more" if more else ""
