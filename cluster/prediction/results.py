"""The files of a whole prediction, made of its parts one after another: no more than one part is in
memory.

    predictions.parquet   all rows, in the order of the list
    coco_results.json     the detections of images with an id, in COCO's form
    overlays/             pictures with their detections
    summary.json          `Summary`
    summary.html          the same to read, with pictures
    manifest.json         written last: the prediction is finished
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.errors import DataError
from cluster.prediction import plan as plans
from cluster.prediction import summary_page
from cluster.prediction.part import MADE_OF, PARTS, made_of
from cluster.prediction.plan import Plan
from cluster.prediction.samples import SampleRows
from cluster.prediction.summary import PAGE, SUMMARY, Summary, Timing, counts_of
from cluster.storage import files, parquet_pictures
from cluster.storage.parquet_tables import read_table
from cluster.storage.pictures import OVERLAYS, PREDICTIONS
from cluster.storage.publish import staged
from cluster.storage.uris import join
from detector.decode import Detections
from detector.detection_counts import DetectionCounts
from detector.drift import find_drift
from detector.image import decode_image
from detector.plots import overlay_figure

RESULTS, MANIFEST = "coco_results.json", "manifest.json"
VERSION = 1
NAME_BYTES = 200
NOT_DRAWN = 100
"""Overlays that failed, in the summary."""


def finish(
    output: str,
    plan: Plan,
    *,
    class_names: Sequence[str],
    category_ids: Sequence[int | None],
    overlays: int | None,
    timing: Timing,
    validation: DetectionCounts | None = None,
    look: Callable[[], None] = lambda: None,
) -> Summary:
    """Write the files of the whole. `overlays` pictures are drawn, all for None; `validation` is
    what the model detected on data.val. `look` is called after every part; what it raises ends the
    work. `DataError` where a part is not that of the plan.
    """
    assert plan.parts is not None and plan.images is not None
    summary = Summary(
        plan.claim["model_version"], passed_over=dict(plan.passed_over or {}), timing=timing
    )
    counts, samples = counts_of([], class_names), SampleRows(plan.images)
    with ExitStack() as stack:
        table_path = stack.enter_context(staged(join(output, PREDICTIONS)))
        results_path = stack.enter_context(staged(join(output, RESULTS)))
        results = stack.enter_context(open(results_path, "w", encoding="utf-8"))
        writer: pq.ParquetWriter | None = None
        results.write("[")
        for table in read_parts(output, plan):
            writer = writer or stack.enter_context(
                pq.ParquetWriter(table_path, table.schema.remove_metadata())
            )
            writer.write_table(table.replace_schema_metadata(None))
            rows = table.to_pylist()
            summary.count(rows)
            counts += counts_of(rows, class_names)
            samples.see(rows)
            for result in _coco_results(rows, category_ids):
                between = ", " if summary.detections_with_image_id else ""
                results.write(between + json.dumps(result))
                summary.detections_with_image_id += 1
            look()
        results.write("]")
    if overlays != 0:
        summary.not_drawn = _draw(output, plan, class_names, overlays, look)
    drift = [] if validation is None else find_drift(counts, validation)
    summary.describe(counts, validation, drift)
    pictures = samples.pictures(class_names)
    page = summary_page.render_page(output, plan.claim, summary, counts, validation, pictures)
    files.write_bytes(join(output, PAGE), page.encode("utf-8", "replace"))
    files.write_json(join(output, SUMMARY), summary.to_json())
    _write_manifest(output, plan, summary)
    return summary


def _write_manifest(output: str, plan: Plan, summary: Summary) -> None:
    manifest = {
        "version": VERSION,
        "claim_digest": plan.claim_digest,
        "images": summary.images,
        "parts": [
            {"name": f"{PARTS}/{plans.name_of(number)}", "rows": part.rows}
            for number, part in enumerate(plan.parts or ())
        ],
        "files": [PREDICTIONS, RESULTS, SUMMARY, PAGE],
    }
    files.write_json(join(output, MANIFEST), manifest)


def read_summary(output: str) -> Summary | None:
    """That of a finished prediction; None where it is not finished, or an earlier version finished
    it, which wrote no page.
    """
    if not all(files.exists(join(output, name)) for name in (MANIFEST, PAGE)):
        return None
    return Summary.from_json(files.read_json(join(output, SUMMARY)))


def read_parts(output: str, plan: Plan) -> Iterator[pa.Table]:
    """The results of each part, in order. `DataError` where one is missing or not that of the
    plan.
    """
    remedy = "delete it and run the command again"
    for number, part in enumerate(plan.parts or ()):
        uri = join(output, PARTS, plans.name_of(number))
        with files.content_errors(uri, remedy):
            table = read_table(files.read_bytes(uri))
        found = (table.schema.metadata or {}).get(MADE_OF, b"").decode()
        if found != made_of(plan.claim_digest, part.digest) or table.num_rows != part.rows:
            raise DataError(
                f"{uri}: has {table.num_rows} rows of another prediction than the {part.rows} of"
                f" the plan; {remedy}"
            )
        yield table


def _coco_results(
    rows: Sequence[Mapping[str, Any]], category_ids: Sequence[int | None]
) -> Iterator[dict[str, Any]]:
    """XYWH px boxes with the user's own ids of images and classes."""
    for row in rows:
        if row["image_id"] is None:
            continue
        for (x1, y1, x2, y2), score, label in zip(
            row["boxes"], row["scores"], row["labels"], strict=True
        ):
            if (category_id := category_ids[label]) is not None:
                yield {
                    "image_id": row["image_id"],
                    "category_id": category_id,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "score": score,
                }


def _draw(
    output: str,
    plan: Plan,
    class_names: Sequence[str],
    most: int | None,
    look: Callable[[], None],
) -> list[str]:
    """Draw the first images with detections or without; return the first that cannot be drawn, as
    "<uri>: <reason>".
    """
    failed: list[str] = []
    drawn = (row for table in read_parts(output, plan) for row in table.to_pylist())
    drawn = (row for row in drawn if row["status"] == "ok")
    for number, row in enumerate(drawn):
        if most is not None and number >= most:
            break
        look()
        try:
            _draw_one(output, number, row, class_names)
        except Exception as error:  # a picture is not worth the results
            if len(failed) < NOT_DRAWN:
                failed.append(f"{row['uri']}: {type(error).__name__}: {error}")
    return failed


def _draw_one(output: str, number: int, row: Mapping[str, Any], class_names: Sequence[str]) -> None:
    name = os.path.basename(row["uri"])
    figure = overlay_figure(
        decode_image(parquet_pictures.read_picture(row["uri"])),
        Detections(
            np.asarray(row["boxes"], np.float32).reshape(-1, 4),
            np.asarray(row["scores"], np.float32),
            np.asarray(row["labels"], np.int64),
        ),
        class_names,
        title=name,
    )
    with tempfile.TemporaryFile() as file:
        figure.savefig(file, dpi=90, format="png")
        file.seek(0)
        files.write_bytes(
            join(output, OVERLAYS, f"{number:04d}-{short_name(name)}.png"), file.read()
        )


def short_name(name: str) -> str:
    """A file name that leaves room for a number and a suffix: file systems take 255 bytes."""
    return name.encode()[:NAME_BYTES].decode(errors="ignore")
