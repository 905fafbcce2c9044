"""report.html: what a shard set contains and what happened to its source, for the browser. The same
set gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cluster.reports import histograms
from cluster.reports.anchor_fit import DEFAULT_VIEW, View, best_iou_of_objects
from cluster.reports.html import BarRow, render
from cluster.reports.pictures import sample_pictures
from cluster.shards.format import REPORT
from cluster.shards.index import ShardSet
from cluster.shards.quarantine import QUARANTINE, Quarantined, by_reason
from cluster.shards.statistics import Annotations, read
from cluster.storage import files
from cluster.storage.uris import join

SAMPLES = 12
MOST_CLASSES = 40
"""Classes that get a bar; the others are listed."""
MOST_LISTED = 2000
MOST_REASONS = 40
EXAMPLES = 20
"""Entries of the quarantine shown for each reason."""


def write_report(
    shard_set: ShardSet,
    quarantined: Sequence[Quarantined],
    *,
    repairs: Mapping[str, int],
    notes: Sequence[str] = (),
    view: View = DEFAULT_VIEW,
) -> str:
    """Publish report.html in the folder of the set and return its URI. Needs the shards but not
    index.json.

    `repairs` counts what was repaired; `notes` are sentences for the reader, such as that pictures
    are in another split too; the coverage by anchors is that of `view`, on canvases that suit the
    pictures where it has none. The pictures come from few
    row groups, everything else from the annotation columns. `DataError` where a shard or a picture
    in it cannot be read.
    """
    annotations = read(shard_set)
    objects, view = annotations.objects(), view.of(annotations)
    page = render(
        "data_report.html.j2",
        uri=shard_set.uri,
        digest=shard_set.digest,
        tiles=_tiles(shard_set, annotations, left_out=len(quarantined)),
        notes=notes,
        samples=sample_pictures(shard_set, annotations, count=SAMPLES),
        classes=_class_table(objects, shard_set.class_names),
        object_sizes=histograms.object_sizes(objects),
        shapes=histograms.shapes(objects),
        objects_per_image=histograms.objects_per_image(objects),
        image_sizes=histograms.image_sizes(annotations, view.place(annotations)),
        canvas=view.describe_canvas(),
        coverage=histograms.coverage(objects, best_iou_of_objects(objects, view)),
        anchors_text=_describe_anchors(view),
        repairs=list(repairs.items()),
        left_out=_left_out(quarantined),
        quarantine_file=QUARANTINE,
    )
    uri = join(shard_set.uri, REPORT)
    files.write_bytes(uri, page.encode("utf-8", "replace"))
    return uri


@dataclass(frozen=True)
class _Tile:
    """A number with its name. `anchor` is the part of the page that it links to."""

    number: str
    name: str
    anchor: str = ""


def _tiles(shard_set: ShardSet, annotations: Annotations, *, left_out: int) -> list[_Tile]:
    crowds = int(annotations.crowd_N.sum())
    without_boxes = shard_set.num_rows - len(np.unique(annotations.image_N))
    size = sum(shard.bytes for shard in shard_set.shards)
    return [
        _Tile(f"{shard_set.num_rows:,}", "images"),
        _Tile(f"{len(annotations.labels_N) - crowds:,}", "objects"),
        _Tile(f"{len(shard_set.categories):,}", "classes"),
        _Tile(f"{without_boxes:,}", "images without boxes"),
        _Tile(f"{crowds:,}", "crowds"),
        _Tile(f"{left_out:,}", "records left out", anchor="left-out"),
        _Tile(f"{len(shard_set.shards):,}", "shards"),
        _Tile(f"{size / 2**20:,.1f}", "MiB"),
    ]


@dataclass(frozen=True)
class _ClassTable:
    """`rows` are the most frequent classes. Of `others`, which have no row, the first are listed as
    (name, objects).
    """

    rows: Sequence[BarRow]
    total: int
    without_objects: int
    others: int
    others_summary: str
    others_listed: Sequence[tuple[str, int]]


def _class_table(objects: Annotations, names: list[str]) -> _ClassTable:
    counts_K = np.bincount(objects.labels_N, minlength=len(names))
    pairs = np.unique(objects.image_N * max(1, len(names)) + objects.labels_N)
    images_K = np.bincount(pairs % max(1, len(names)), minlength=len(names))
    order = np.argsort(-counts_K, kind="stable").tolist()
    top = max(1, int(counts_K.max(initial=0)))
    rows = [
        BarRow(
            names[k],
            int(counts_K[k]) / top,
            f"{counts_K[k]:,} in {images_K[k]:,} image{'s' if images_K[k] != 1 else ''}",
            "large" if counts_K[k] else "none",
        )
        for k in order[:MOST_CLASSES]
    ]
    others = order[MOST_CLASSES:]
    objects_of_others = int(counts_K[others].sum())
    share = objects_of_others / max(1, int(counts_K.sum()))
    return _ClassTable(
        rows=rows,
        total=len(names),
        without_objects=int((counts_K == 0).sum()),
        others=len(others),
        others_summary=(
            f"The other {len(others):,} classes: {objects_of_others:,} objects, {share:.1%} of all"
        ),
        others_listed=[(names[k], int(counts_K[k])) for k in others[:MOST_LISTED]],
    )


def _describe_anchors(view: View) -> str:
    anchors = view.anchors
    default = " default" if anchors == DEFAULT_VIEW.anchors else ""
    sizes = ", ".join(f"{value:g}" for value in anchors.base_sizes)
    ratios = ", ".join(f"{value:g}" for value in anchors.ratios)
    scales = ", ".join(f"{value:.3g}" for value in anchors.scales)
    return (
        f"The highest IoU of each object with any of the{default} anchors (base sizes"
        f" {sizes} px, scales {scales}, ratios {ratios}), the picture scaled to"
        f" {view.describe_canvas()}. Best possible recall: the share of objects where it is 0.5"
        " or more. Where it is low, try a larger canvas or smaller --model.anchors.base_sizes."
    )


@dataclass(frozen=True)
class _Reason:
    """A reason, how many entries have it, and the first of them."""

    why: str
    count: int
    examples: Sequence[Quarantined]


@dataclass(frozen=True)
class _LeftOut:
    """The most frequent reasons; the number of further reasons and of their entries."""

    reasons: Sequence[_Reason]
    more_reasons: int
    more_entries: int


def _left_out(quarantined: Sequence[Quarantined]) -> _LeftOut:
    reasons = [
        _Reason(why, len(entries), entries[:EXAMPLES]) for why, entries in by_reason(quarantined)
    ]
    more = reasons[MOST_REASONS:]
    return _LeftOut(reasons[:MOST_REASONS], len(more), sum(reason.count for reason in more))
