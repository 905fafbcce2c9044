"""report.html of an evaluation: what a detector finds and misses, for people who decide about it.
The same detections give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cluster.reports import judgement_parts as parts
from cluster.reports.html import render
from cluster.reports.judged_pictures import judged_pictures
from cluster.shards.index import ShardSet
from detector.image_errors import remarks
from detector.judgement import Judgement
from detector.label_suspects import SUSPECTS
from detector.metrics import CocoTable
from detector.resampling import Interval
from detector.scores import shown

WORST, BEST = 24, 12
SHOWN_SUSPECTS = 20


@dataclass(frozen=True)
class Source:
    """What was scored on what. `settings` are (name, value)."""

    model: str
    data: str
    digest: str
    settings: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Slice:
    """Some of the images, those with this value of a column, and their AP and AP50; None without
    objects or with one image alone.
    """

    column: str
    value: str
    images: int
    objects: int
    scores: Mapping[str, Interval | None]


@dataclass(frozen=True)
class SuspectRow:
    kind: str
    picture: str
    words: str


def evaluation_page(
    judged: Judgement,
    table: CocoTable,
    shard_set: ShardSet,
    *,
    source: Source,
    suspects_S: np.ndarray,
    file_names: Mapping[int, str],
    slices: Sequence[Slice] = (),
    notes: Sequence[str] = (),
) -> str:
    """The page as HTML. `suspects_S`: see `label_suspects`; `file_names` by image id. `DataError`
    where a shard cannot be read.
    """
    worst = judged.images.worst(WORST)
    best = judged.images.best(BEST, besides=worst)
    return render(
        "evaluation_report.html.j2",
        source=source,
        notes=notes,
        tiles=_tiles(judged, table, len(suspects_S)),
        resamples=None if judged.intervals is None else judged.intervals.resamples,
        numbers=parts.number_rows(table, judged.intervals),
        rule=parts.rule_in_words(judged),
        classes=parts.class_rows(judged, table),
        all_classes=len(table.per_class),
        ap50=shown(judged.errors.ap50, 3),
        costs=parts.costs(judged.errors),
        false_alarms=shown(judged.errors.cost.get("false_alarms"), 3),
        misses=shown(judged.errors.cost.get("misses"), 3),
        heat=parts.heat_rows(table),
        charts=parts.class_charts(judged, table),
        confusion=parts.confusion_table(judged),
        calibration=parts.calibration_chart(judged.reliability),
        calibration_error=shown(judged.reliability.expected_error, 3),
        bins=parts.calibration_bins(judged.reliability),
        slices=[(each, *parts.slice_numbers(each.scores)) for each in slices],
        worst=judged_pictures(judged, shard_set, worst),
        best=judged_pictures(judged, shard_set, best),
        suspects=_suspect_rows(judged, suspects_S[:SHOWN_SUSPECTS], file_names),
        all_suspects=len(suspects_S),
    )


def _tiles(judged: Judgement, table: CocoTable, suspects: int) -> list[tuple[str, str]]:
    return [
        (shown(table.summary["AP"], 3), "AP"),
        (shown(table.summary["AP50"], 3), "AP50"),
        (f"{table.images:,}", "images"),
        (f"{len(judged.pairing.label_G):,}", "objects"),
        (f"{len(table.per_class):,}", "classes"),
        (f"{table.detections:,}", "detections"),
        (shown(judged.reliability.expected_error, 3), "error of scores"),
        (f"{suspects:,}", "suspect labels"),
    ]


def _suspect_rows(
    judged: Judgement, suspects_S: np.ndarray, file_names: Mapping[int, str]
) -> list[SuspectRow]:
    rows = []
    for d in suspects_S.tolist():
        image = int(judged.pairing.image_D[d])
        said = remarks(judged.pairing, judged.errors, judged.kept_D, image)
        words = next(remark.words for remark in said if remark.detection == d)
        name = file_names[int(judged.pairing.image_ids[image])]
        rows.append(SuspectRow(SUSPECTS[int(judged.errors.kind_D[d])], name, words))
    return rows
