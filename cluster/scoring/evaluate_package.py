"""A model package on a shard set -> the table, the report and some pictures, in a local folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.reports.evaluation_report import Source
from cluster.runs.package_files import read_package
from cluster.scoring import evaluate
from cluster.scoring.detect import detect_set
from cluster.scoring.report_files import REPORT, write_report_files
from cluster.scoring.slices import single_values
from cluster.scoring.truths import read_frequencies, read_truths
from cluster.shards.classes import ClassMatch
from cluster.shards.index import ShardSet
from cluster.shards.read import read_columns, read_rows
from detector.choices import WHOLE_PICTURE, ViewSettings
from detector.decode import Detections
from detector.image import decode_image
from detector.judgement import judge
from detector.metrics import CocoTable, Truth, joined_detections
from detector.operating_points import Thresholds
from detector.plots import overlay_figure, precision_recall_figure
from detector.predict import MODEL_FILE, read_json
from detector.resampling import Interval
from detector.tiling import views_of


@dataclass(frozen=True)
class Wanted:
    """What an evaluation is to find beside the COCO and VOC numbers."""

    overlays: int = 0
    """Images that are drawn with their detections and true boxes."""
    precision: float | None = None
    """What the thresholds are to reach (0..1); None: the highest F1."""
    columns: Sequence[str] = ()
    """Columns of the shards whose values are scored apart."""


def evaluate_package(
    package: str,
    shard_set: ShardSet,
    classes: ClassMatch,
    folder: str,
    *,
    scored: str,
    wanted: Wanted = Wanted(),
    max_detections: int | None = None,
    views: ViewSettings = WHOLE_PICTURE,
    **resources: Any,
) -> tuple[CocoTable, list[str]]:
    """Score every image of the set once and fill `folder`: metrics.json, table.txt,
    precision_recall.png, overlays/ and the files of `report_files`. `classes` matches the classes
    of the set with the model's.

    `scored` names the model in metrics.json. `max_detections`: see `limit_detections`. `resources`:
    see `detect_set`. Returns the table, and lines with what a reader should know: detections that
    are not scored, images in tiles, what could not be drawn.
    """
    limits = limit_detections(package, max_detections)
    metrics = evaluate.metrics_of(read_frequencies(shard_set, classes), limits=limits)
    detections = detect_set(read_package(package), shard_set.uri, settings=views, **resources)
    truths = read_truths(shard_set, classes)
    table = evaluate.evaluate_detections(
        detections, truths, classes.names, [*metrics, evaluate.voc]
    )
    os.makedirs(os.path.join(folder, "overlays"), exist_ok=True)
    with open(os.path.join(folder, "table.txt"), "w", encoding="utf-8") as file:
        file.write(table.as_text() + "\n")
    precision_recall_figure(table).savefig(os.path.join(folder, "precision_recall.png"), dpi=110)
    source: dict[str, Any] = {"model": scored, "data": shard_set.uri}
    source |= {"data_digest": shard_set.digest}
    if views != WHOLE_PICTURE:
        source["views"] = views.as_dict()
    _write_metrics(folder, source, table)
    pictures = os.path.join(folder, "overlays")
    notes = [*_not_searched(table, truths, detections), *_in_tiles(shard_set, views)]
    notes += single_values(shard_set, wanted.columns)
    not_drawn = _draw_overlays(
        shard_set, detections, classes.names, pictures, count=wanted.overlays
    )

    def report() -> None:
        judged = judge(
            truths,
            detections,
            classes.names,
            max_detections=limits[-1],
            precision=wanted.precision,
        )
        if judged.intervals is not None:
            _write_metrics(folder, source, table, judged.intervals.summary.get("AP"))
        notes.extend(_not_reached(judged.thresholds))
        of = Source(scored, shard_set.uri, shard_set.digest, settings_in_words(limits, views))
        write_report_files(
            judged,
            table,
            shard_set,
            classes,
            folder,
            source=of,
            columns=wanted.columns,
            notes=notes,
        )

    problems = _unless_it_fails(report)
    return table, [*notes, *not_drawn, *problems]


def _write_metrics(
    folder: str, source: Mapping[str, Any], table: CocoTable, ap: Interval | None = None
) -> None:
    """metrics.json, with the ends of the 95 % interval `ap` of AP where there is one."""
    ends = {} if ap is None else {"AP_low": ap.low, "AP_high": ap.high}
    with open(os.path.join(folder, "metrics.json"), "w", encoding="utf-8") as file:
        json.dump({**source, **ends, **table.as_dict()}, file, indent=1)


def limit_detections(package: str, count: int | None) -> tuple[int, ...]:
    """COCO's limits on the detections of an image and class: (1, 10, 100) or, with `count`, those
    below it and `count`. Then it replaces the limit of the package in the local folder too.
    """
    if count is None:
        return (1, 10, 100)
    set_max_detections(package, count)
    return (*(limit for limit in (1, 10) if limit < count), count)


def settings_in_words(limits: Sequence[int], views: ViewSettings) -> list[tuple[str, str]]:
    """(name, value) of the settings that are not the usual ones."""
    given = [("max_detections", str(limits[-1]))] if limits[-1] != 100 else []
    return [*given, *((name, str(value)) for name, value in views.as_dict().items())]


def _unless_it_fails(report: Callable[[], None]) -> list[str]:
    """What to say where the report cannot be made: the table is not worth less."""
    try:
        report()
    except Exception as error:
        return [f"{REPORT} is not written: {type(error).__name__}: {error}"]
    return []


def _not_reached(thresholds: Thresholds) -> list[str]:
    """Which classes do not reach the wished precision, so that they have no threshold."""
    names = [name for name, point in thresholds.classes.items() if point is None]
    if thresholds.precision is None or not names:
        return []
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return [
        f"no threshold for {', '.join(names[:5])}{more}: no score reaches precision"
        f" {thresholds.precision:g}"
    ]


def _not_searched(
    table: CocoTable, truths: Sequence[Truth], detections: Mapping[int, Detections]
) -> list[str]:
    """What a reader should know of a set whose images were not searched for every class."""
    partly = sum(truth.searched is not None for truth in truths)
    if not partly:
        return []
    scored = len(joined_detections(truths, detections, tuple(table.per_class))["scores"])
    return [
        f"{partly} of {table.images} images were not searched for every class (as in LVIS):"
        f" {table.detections - scored} of {table.detections} detections are of other classes and"
        " are not scored"
    ]


def _in_tiles(shard_set: ShardSet, views: ViewSettings) -> list[str]:
    """How many images were detected in tiles."""
    if views.tile is None:
        return []
    sizes = read_columns(shard_set, ["height", "width"])
    pairs = zip(sizes["height"].to_pylist(), sizes["width"].to_pylist(), strict=True)
    tiles = [len(views_of(height, width, views)) - 1 for height, width in pairs]
    larger = sum(count > 0 for count in tiles)
    if not larger:
        return [f"tile {views.tile}: no image of the data is larger, so no tile was used"]
    return [f"{larger} of {len(tiles)} images were detected in {sum(tiles)} tiles too"]


def set_max_detections(package: str, count: int) -> None:
    """Let the model of a package in a local folder return the `count` best detections."""
    description = read_json(package, MODEL_FILE)
    description["decode"]["max_detections"] = count
    with open(os.path.join(package, MODEL_FILE), "w", encoding="utf-8") as file:
        json.dump(description, file, indent=1)


def _draw_overlays(
    shard_set: ShardSet,
    detections: Mapping[int, Detections],
    class_names: Sequence[str],
    folder: str,
    *,
    count: int,
) -> list[str]:
    """The first `count` images in stored order, which is pseudo-random, with their truth dashed.
    What cannot be drawn is returned, a line each.
    """
    drawn = 0
    failed: list[str] = []
    for group, rows in enumerate(shard_set.rows_per_group):
        wanted = min(rows, count - drawn)
        if wanted <= 0:
            break
        for row in read_rows(
            [shard_set.locate_group(group)], [(0, i) for i in range(wanted)]
        ).to_pylist():
            try:
                figure = overlay_figure(
                    decode_image(row["image"]),
                    detections[row["image_id"]],
                    class_names,
                    truth_N4=np.asarray(row["boxes"], np.float32).reshape(-1, 4),
                    title=row["file_name"],
                )
                figure.savefig(os.path.join(folder, f"{row['image_id']}.png"), dpi=90)
            except Exception as error:  # a picture is not worth the table
                failed.append(f"{row['file_name']} is not drawn: {type(error).__name__}: {error}")
        drawn += wanted
    return failed
