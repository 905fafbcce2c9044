"""What a shard set holds and what became of its source: lines for the terminal, and report.html for
the browser.

The page is one file: no script, no font, nothing to fetch, and the same set gives the same bytes.
Whatever comes from the data is escaped.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
import torch
from PIL import Image

from cluster.errors import DataError
from cluster.reports.html import Bar, bar_row, bullets, chart, clip, page, section
from cluster.shards.format import REPORT
from cluster.shards.index import ShardSet
from cluster.shards.quarantine import QUARANTINE, Quarantined, by_reason
from cluster.shards.statistics import (
    COCO_SIDES,
    SIZES,
    Annotations,
    boxes_on_canvas,
    canvas_factors,
    read,
    read_samples,
)
from cluster.storage import files
from cluster.storage.uris import join
from detector.anchors import best_iou
from detector.image import ImageError, decode_image
from detector.image_config import CanvasConfig
from detector.model_config import AnchorConfig

SAMPLES = 12
THUMBNAIL = 480
"""px, the longer side of a sample picture: twelve of them take about 0.7 MB of the page."""
MOST_BOXES = 500
"""Boxes drawn on a sample picture, the largest first."""
MOST_CLASSES = 40
"""Classes that get a bar; the others are listed."""
MOST_LISTED = 2000
MOST_REASONS = 40
EXAMPLES = 20


def write_report(
    shard_set: ShardSet,
    quarantined: Sequence[Quarantined],
    *,
    repairs: dict[str, int],
    notes: Sequence[str] = (),
) -> str:
    """Publish report.html in the folder of the set and return its URI. Needs the shards but not
    index.json.

    `repairs` counts what was mended, `notes` are sentences for the reader, such as pictures that
    another split holds too. The pictures come from few row groups, everything else from the
    annotation columns. `DataError` where a shard or a picture in it cannot be read.
    """
    everything = read(shard_set)
    objects = everything.objects()
    canvas, anchors = CanvasConfig().canvases[0], AnchorConfig()
    boxes_N4 = boxes_on_canvas(objects, canvas=canvas)
    overlap_N = best_iou(torch.from_numpy(boxes_N4), *canvas, **anchors.model_dump()).numpy()
    names = shard_set.class_names
    parts = [
        head(shard_set, everything, left_out=len(quarantined)),
        section("Notes", bullets(notes)) if notes else "",
        section(
            "Sample pictures",
            samples(shard_set, everything),
            "Chosen to show many classes at many sizes; crowds are dashed.",
        ),
        section(
            "Classes",
            classes(objects, names),
            "Objects without crowds, and the images that hold the class.",
        ),
        '<div class="pair">',
        section(
            "Object sizes",
            object_sizes(objects),
            "Square root of the annotated area in px of the picture, as the COCO table counts it.",
        ),
        section(
            "Shapes",
            shapes(objects),
            "Height / width of the boxes, as the ratios of the anchors are given.",
        ),
        section("Objects an image", objects_an_image(objects), "Objects without crowds."),
        section(
            "Image sizes",
            image_sizes(everything, canvas),
            f"Width x height in px; the canvas is {canvas[1]} x {canvas[0]}.",
        ),
        "</div>",
        section("Anchors", coverage(objects, overlap_N), anchors_in_words(anchors, canvas)),
        section("Repaired", repaired(repairs), "The source was not changed."),
        section(
            "Left out",
            left_out(quarantined),
            f"All of it, with the records themselves, is in {QUARANTINE}.",
            mark="left-out",
        ),
    ]
    uri = join(shard_set.uri, REPORT)
    files.write_bytes(uri, page("Data report", "".join(parts)).encode("utf-8", "replace"))
    return uri


def head(shard_set: ShardSet, annotations: Annotations, *, left_out: int) -> str:
    crowds = int(annotations.crowd_N.sum())
    tiles = [
        (f"{shard_set.num_rows:,}", "images"),
        (f"{len(annotations.labels_N) - crowds:,}", "objects"),
        (f"{len(shard_set.categories):,}", "classes"),
        (f"{shard_set.num_rows - len(np.unique(annotations.image_N)):,}", "images without boxes"),
        (f"{crowds:,}", "crowds"),
        (f'<a href="#left-out">{left_out:,}</a>', "records left out"),
        (f"{len(shard_set.shards):,}", "shards"),
        (f"{sum(shard.bytes for shard in shard_set.shards) / 2**20:,.1f}", "MiB"),
    ]
    cells = "".join(f"<div><b>{value}</b>{name}</div>" for value, name in tiles)
    digest = f"digest {shard_set.digest}"
    return (
        "<header><h1>Data report</h1><p"
        f' class="where">{escape(shard_set.uri)}<br>{escape(digest)}</p></header><div'
        f' class="tiles">{cells}</div>'
    )


def classes(objects: Annotations, names: Sequence[str]) -> str:
    counts_K = np.bincount(objects.labels_N, minlength=len(names))
    pairs = np.unique(objects.image_N * max(1, len(names)) + objects.labels_N)
    images_K = np.bincount(pairs % max(1, len(names)), minlength=len(names))
    order = np.argsort(-counts_K, kind="stable").tolist()
    top = max(1, int(counts_K.max(initial=0)))
    rows = []
    for k in order[:MOST_CLASSES]:
        numbers = f"{counts_K[k]:,} in {images_K[k]:,} image{'s' if images_K[k] != 1 else ''}"
        rows.append(
            bar_row(names[k], counts_K[k] / top, numbers, "large" if counts_K[k] else "none")
        )
    shown = f'<div class="rows{" two" if len(rows) > 12 else ""}">{"".join(rows)}</div>'
    missing = int((counts_K == 0).sum())
    words = f"<p>{missing:,} of {len(names):,} classes have no object.</p>" if missing else ""
    rest = order[MOST_CLASSES:]
    if not rest:
        return shown + words
    share = counts_K[rest].sum() / max(1, counts_K.sum())
    listed = " &middot; ".join(
        f"{escape(clip(names[k]))} <i>{counts_K[k]:,}</i>" for k in rest[:MOST_LISTED]
    )
    more = f" &middot; and {len(rest) - MOST_LISTED:,} more" if len(rest) > MOST_LISTED else ""
    summary = (
        f"The other {len(rest):,} classes: {counts_K[rest].sum():,} objects, {share:.1%} of all"
    )
    return (
        f"{shown}{words}<details><summary>{summary}</summary><p"
        f' class="list">{listed}{more}</p></details>'
    )


def object_sizes(objects: Annotations) -> str:
    # From 1 px on; at least 6 to 790 px.
    side_N = np.sqrt(np.maximum(objects.area_N, 1, dtype=np.float64))
    # Four bars from 32 to 96 px, the limits being edges to the last bit, and as many more at the
    # same ratio as the data needs.
    small, large = COCO_SIDES
    first, last = np.floor(
        4
        * np.log([side_N.min(initial=6.2) / small, side_N.max(initial=700) / small])
        / np.log(large / small)
    ).astype(int)
    edges = small * (large / small) ** (np.arange(first, last + 2) / 4)
    counts = np.histogram(np.clip(side_N, edges[0], edges[-1]), edges)[0]
    bars = [
        Bar(
            f"{low:.{int(low < 10)}f} to {high:.{int(high < 10)}f} px",
            int(count),
            SIZES[np.digitize(low * 1.01, COCO_SIDES)],
        )
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]
    marks = [1, 2, 4, 8, 16, 32, 64, 96, 256, 512, 1024, 2048, 4096, 8192]
    ticks = [
        ((4 * np.log(mark / small) / np.log(large / small) - first) / len(bars), str(mark))
        for mark in marks
    ]
    numbers = np.bincount(objects.size_N, minlength=3)
    limits = (f"below {small} px", f"{small} to {large} px", f"from {large} px")
    total = max(1, len(side_N))
    keys = [
        (size, f"{size}, {limit}: {n:,} ({n / total:.0%})")
        for size, limit, n in zip(SIZES, limits, numbers, strict=True)
    ]
    return chart(bars, ticks, keys)


def shapes(objects: Annotations) -> str:
    width_N, height_N = (objects.boxes_N4[:, 2:] - objects.boxes_N4[:, :2]).T
    # Four bars an octave, squares in the middle of one; the outermost hold all that is longer.
    place_N = np.rint(4 * np.log2(height_N / width_N)).astype(int)
    counts = np.bincount(np.clip(place_N, -14, 14) + 14, minlength=29)
    middle = 2 ** (np.arange(-14, 15) / 4)
    bars = [
        Bar(f"height / width about {ratio:.2g}", int(count), "large")
        for ratio, count in zip(middle, counts, strict=True)
    ]
    bars[0], bars[-1] = (
        bars[0]._replace(what="height / width up to 0.1"),
        bars[-1]._replace(what="height / width from 10"),
    )
    ticks = [
        ((4 * octave + 14.5) / 29, text)
        for octave, text in zip(
            range(-3, 4), ("1:8", "1:4", "1:2", "1", "2", "4", "8"), strict=True
        )
    ]
    within = (np.abs(place_N) <= 4).mean() if len(place_N) else 0.0
    return chart(bars, ticks, [("large", f"{within:.0%} within 1:2 and 2")])


def objects_an_image(objects: Annotations) -> str:
    counts_I = np.bincount(objects.image_N, minlength=len(objects.heights_I))
    # All but the most crowded images decide how wide a bar is; the last bar holds those.
    usual = int(np.percentile(counts_I, 99.5)) if len(counts_I) else 0
    wide = usual // 32 + 1
    last = max(7, usual // wide)
    held = np.bincount(np.minimum(counts_I // wide, last), minlength=last + 1)
    bars = [
        Bar(
            f"{i * wide} objects" if wide == 1 else f"{i * wide} to {i * wide + wide - 1} objects",
            int(n),
            "large",
        )
        for i, n in enumerate(held)
    ]
    bars[-1] = bars[-1]._replace(what=f"{last * wide} objects or more")
    every = -(-len(bars) // 10)
    labelled = [*range(0, last - every + 1, every), last]
    ticks = [((i + 0.5) / len(bars), str(i * wide) + ("+" if i == last else "")) for i in labelled]
    words = (
        f"mean {counts_I.mean():.1f}, median {np.median(counts_I):.0f}, most {counts_I.max():,}"
        if len(counts_I)
        else "no image"
    )
    return chart(bars, ticks, [("large", words)])


def image_sizes(annotations: Annotations, canvas: tuple[int, int]) -> str:
    if not len(annotations.heights_I):
        return "<p>No image.</p>"
    sides, counts = np.unique(
        np.stack([annotations.widths_I, annotations.heights_I], axis=1), axis=0, return_counts=True
    )
    order = np.argsort(-counts, kind="stable")[:9]
    rows = [
        bar_row(
            f"{sides[i][0]} x {sides[i][1]}",
            counts[i] / len(annotations.heights_I),
            f"{counts[i]:,}",
            "large",
        )
        for i in order
    ]
    if len(counts) > len(order):
        rest = counts.sum() - counts[order].sum()
        rows.append(
            bar_row(
                f"{len(counts) - len(order):,} other sizes",
                rest / len(annotations.heights_I),
                f"{rest:,}",
                "medium",
            )
        )
    factor_I = canvas_factors(annotations.heights_I, annotations.widths_I, canvas=canvas).mean(
        axis=1
    )
    low, middle, high = np.quantile(factor_I, (0, 0.5, 1))
    return (
        f'<div class="rows">{"".join(rows)}</div><p>Scaled by {middle:.2f} to fit the canvas'
        f" (median; {low:.2f} to {high:.2f}).</p>"
    )


def coverage(objects: Annotations, overlap_N: np.ndarray) -> str:
    rows = []
    for name, chosen_N in [
        ("all", np.ones(len(overlap_N), bool)),
        *((size, objects.size_N == i) for i, size in enumerate(SIZES)),
    ]:
        mine = overlap_N[chosen_N]
        recall = f"{(mine >= 0.5).mean():.1%}" if len(mine) else "-"
        mean = f"{mine.mean():.3f}" if len(mine) else "-"
        rows.append(
            f"<tr><th>{name}</th><td>{len(mine):,}</td><td>{recall}</td><td>{mean}</td></tr>"
        )
    titles = (
        "<thead><tr><th>size</th><th>objects</th><th>best possible recall</th><th>mean best"
        " IoU</th></tr></thead>"
    )
    counts = np.histogram(overlap_N, bins=20, range=(0, 1))[0]
    kinds = ["none"] * 8 + ["between"] * 2 + ["large"] * 10
    bars = [
        Bar(f"best IoU {i / 20:.2f} to {(i + 1) / 20:.2f}", int(n), kind)
        for i, (n, kind) in enumerate(zip(counts, kinds, strict=True))
    ]
    keys = [
        ("large", "from 0.5: positive anchors"),
        ("between", "0.4 to 0.5"),
        ("none", "below 0.4: found by its best anchors alone"),
    ]
    drawn = chart(bars, [(i / 10, f"{i / 10:g}") for i in range(0, 11, 2)], keys)
    return f'<div class="split"><table>{titles}{"".join(rows)}</table><div>{drawn}</div></div>'


def anchors_in_words(anchors: AnchorConfig, canvas: tuple[int, int]) -> str:
    sizes, ratios = (
        ", ".join(f"{value:g}" for value in values)
        for values in (anchors.base_sizes, anchors.ratios)
    )
    octave = ", ".join(f"{value:.3g}" for value in anchors.scales)
    return (
        f"The highest IoU of each object with any of the default anchors (base sizes {sizes} px,"
        f" scales {octave}, ratios {ratios}), the picture scaled to the default canvas of"
        f" {canvas[1]} x {canvas[0]} px. Best possible recall: the share of objects where it is 0.5"
        " or more. Where it is low, try a larger canvas or smaller --model.anchors.base_sizes."
    )


def repaired(repairs: dict[str, int]) -> str:
    if not repairs:
        return "<p>Nothing had to be repaired.</p>"
    return f"<table>{''.join(f'<tr><td>{times:,}</td><th>{escape(what)}</th></tr>' for what, times in repairs.items())}</table>"


def left_out(quarantined: Sequence[Quarantined]) -> str:
    if not quarantined:
        return "<p>Nothing was left out.</p>"
    parts = []
    reasons = by_reason(quarantined)
    for why, records in reasons[:MOST_REASONS]:
        shown = [
            [escape(clip(text, 300)) for text in (record.what, record.where, record.why)]
            for record in records[:EXAMPLES]
        ]
        items = "".join(
            f"<li>{what} <b>{where}</b>: {its_why}</li>" for what, where, its_why in shown
        )
        items += f"<li>and {len(records) - EXAMPLES:,} more</li>" if len(records) > EXAMPLES else ""
        parts.append(
            f"<details><summary><b>{len(records):,}</b> x"
            f" {escape(clip(why, 300))}</summary><ul>{items}</ul></details>"
        )
    if rest := reasons[MOST_REASONS:]:
        parts.append(
            f"<p>And {len(rest):,} more reasons, {sum(len(records) for _, records in rest):,}"
            " records.</p>"
        )
    return "".join(parts)


def samples(shard_set: ShardSet, annotations: Annotations) -> str:
    drawn = [
        sample(row, shard_set.class_names)
        for row in read_samples(shard_set, annotations, count=SAMPLES)
    ]
    return f'<div class="pictures">{"".join(drawn)}</div>'


def sample(row: dict[str, Any], names: Sequence[str]) -> str:
    """One picture with its boxes as a vector drawing over a thumbnail: boxes stay sharp, and the
    coordinates are those of the picture.
    """
    picture = Image.fromarray(decode(row))
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    sink = io.BytesIO()
    picture.save(sink, "JPEG", quality=80)
    data = base64.b64encode(sink.getvalue()).decode()
    boxes = list(zip(row["boxes"], row["labels"], row["crowd"], strict=True))
    boxes.sort(key=lambda box: -(box[0][2] - box[0][0]) * (box[0][3] - box[0][1]))
    paths: dict[tuple[int, bool], list[str]] = {}
    for (x1, y1, x2, y2), label, crowd in boxes[:MOST_BOXES]:
        paths.setdefault((label, crowd), []).append(
            f"M{x1:.1f} {y1:.1f}H{x2:.1f}V{y2:.1f}H{x1:.1f}Z"
        )
    present = sorted({label for _, label, _ in boxes})
    # Ten colours: by label where they suffice, else by place among the classes of the picture.
    colour = {
        label: (label if len(names) <= 10 else place) % 10 for place, label in enumerate(present)
    }
    lines = "".join(
        f'<g><title>{escape(names[label])}</title><path class="under" d="{"".join(path)}"/>'
        f'<path class="c{colour[label]}{" crowd" if crowd else ""}" d="{"".join(path)}"/></g>'
        for (label, crowd), path in paths.items()
    )
    labels = [label for _, label, _ in boxes]
    chips = [
        f'<span class="c{colour[label]}">{escape(clip(names[label], 30))}'
        f" {labels.count(label)}</span>"
        for label in present[:8]
    ]
    chips += [f"and {len(present) - 8} more classes"] if len(present) > 8 else []
    chips += (
        [f"the {MOST_BOXES} largest of {len(boxes):,} boxes"] if len(boxes) > MOST_BOXES else []
    )
    height, width, name = row["height"], row["width"], escape(row["file_name"])
    return (
        f'<figure><svg viewBox="0 0 {width} {height}"><image width="{width}" height="{height}"'
        f' href="data:image/jpeg;base64,{data}"/>{lines}</svg><figcaption><b'
        f' title="{name}">{name}</b> {width} x'
        f" {height}<br>{' '.join(chips) or 'no boxes'}</figcaption></figure>"
    )


def decode(row: dict[str, Any]) -> np.ndarray:
    try:
        return decode_image(row["image"])
    except ImageError as error:
        raise DataError(
            f"{row['file_name']} (image_id {row['image_id']}): {error}; prepare the set again"
        ) from error
