"""The files of a whole prediction, made of its parts one after another: no more than one part is in
memory.

    predictions.parquet   all rows, in the order of the list
    coco_results.json     the detections of images with an id, in COCO's form
    overlays/             pictures with their detections, see `overlays`
    summary.json          `Summary`
    summary.html          the same to read, with pictures
    manifest.json         written last: the prediction is finished
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.errors import DataError
from cluster.prediction import plan as plans
from cluster.prediction import summary_page
from cluster.prediction.overlays import OverlayJob
from cluster.prediction.part import MADE_OF, PARTS, made_of
from cluster.prediction.plan import Plan
from cluster.prediction.samples import SampleRows
from cluster.prediction.summary import PAGE, SUMMARY, Summary, Timing, counts_of
from cluster.storage import files, record_files
from cluster.storage.parquet_tables import read_table
from cluster.storage.pictures import PREDICTIONS
from cluster.storage.publish import staged
from cluster.storage.uris import join
from detector.detection_counts import DetectionCounts
from detector.drift import find_drift

RESULTS, MANIFEST = "coco_results.json", "manifest.json"
VERSION = 1


Draw = Callable[[list[OverlayJob]], list[str]]
"""Draws overlays, and returns what could not be drawn."""


def finish(
    output: str,
    plan: Plan,
    *,
    class_names: Sequence[str],
    category_ids: Sequence[int | None],
    timing: Timing,
    validation: DetectionCounts | None = None,
    draw: Draw = lambda jobs: [],
    look: Callable[[], None] = lambda: None,
) -> Summary:
    """Write the files of the whole. `validation` is what the model detected on data.val. `draw`
    makes overlays of the parts and returns which failed. `look` is called after every part; what it
    raises ends the work. `DataError` where a part is not that of the plan.
    """
    assert plan.parts is not None and plan.images is not None
    summary = Summary(
        plan.claim["model_version"], passed_over=dict(plan.passed_over or {}), timing=timing
    )
    counts, samples = counts_of([], class_names), SampleRows(plan.images)
    overlays: list[OverlayJob] = []
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
            first = summary.ok
            summary.count(rows)
            ok = summary.ok - first
            overlays.append(OverlayJob(output, len(overlays), first, ok, class_names))
            counts += counts_of(rows, class_names)
            samples.see(rows)
            text, count = _coco_results(table, category_ids)
            results.write(", " if count and summary.detections_with_image_id else "")
            results.write(text)
            summary.detections_with_image_id += count
            look()
        results.write("]")
    summary.not_drawn = draw(overlays)
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
    return record_files.read(join(output, SUMMARY), Summary.from_json, remedy=plans.REMEDY)


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


def _coco_results(table: pa.Table, category_ids: Sequence[int | None]) -> tuple[str, int]:
    """The detections as JSON with commas between: XYWH px boxes with the user's own ids of images
    and classes; and how many there are.

    Arrow puts the text together: for 1,024 images of 100 detections in 0.07 s of CPU time. From
    rows and Python's numbers it took 0.72 s, in which a GPU would have detected in hundreds of
    images.
    """
    ids_N = _column(table, "image_id")
    counts_N = np.diff(_column(table, "scores").offsets.to_numpy())
    labels_M = _column(table, "labels").flatten().to_numpy()
    boxes_M4 = _column(table, "boxes").flatten().flatten().to_numpy().reshape(-1, 4)
    scores_M = _column(table, "scores").flatten().to_numpy()
    has_id_N = ids_N.is_valid().to_numpy(zero_copy_only=False)
    has_id_K = np.array([id_ is not None for id_ in category_ids], bool)
    kept_M = np.repeat(has_id_N, counts_N) & has_id_K[labels_M]
    id_of_K = np.array([id_ or 0 for id_ in category_ids], np.int64)
    image_M = np.repeat(ids_N.fill_null(0).to_numpy(), counts_N)[kept_M]
    x, y, right, bottom = boxes_M4[kept_M].astype(np.float64).T
    columns = (image_M, id_of_K[labels_M[kept_M]], x, y, right - x, bottom - y)
    texts = [
        pc.cast(pa.array(np.ascontiguousarray(column)), pa.string())
        for column in (*columns, scores_M[kept_M].astype(np.float64))
    ]
    keys = ('{"image_id": ', ', "category_id": ', ', "bbox": [', ", ", ", ", ", ", '], "score": ')
    pieces = [piece for key, text in zip(keys, texts, strict=True) for piece in (key, text)]
    pieces = [pa.scalar(piece) if isinstance(piece, str) else piece for piece in (*pieces, "}", "")]
    entries = pc.call_function("binary_join_element_wise", pieces)
    together = pa.ListArray.from_arrays(pa.array([0, len(entries)], pa.int32()), entries)
    text = pc.call_function("binary_join", [together, pa.scalar(", ")])[0].as_py()
    return text, len(entries)


def _column(table: pa.Table, name: str) -> Any:
    """As one array, that begins at its first value."""
    return pa.concat_arrays([*table[name].chunks, pa.array([], table.schema.field(name).type)])
