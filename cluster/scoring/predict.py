"""A model package over a folder or bucket of images -> one Parquet row an image, COCO results and
pictures.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TypedDict, cast

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.errors import DataError
from cluster.loading import datasets
from cluster.runs.package_files import read_classes
from cluster.scoring import actors
from cluster.scoring.actors import Scored
from cluster.storage import files, parquet_pictures
from cluster.storage.pictures import PREDICTIONS, Pictures, is_picture, list_pictures
from detector.image import FORMATS, decode_image
from detector.plots import overlay_figure

RESULTS, SUMMARY, OVERLAYS = "coco_results.json", "summary.json", "overlays"
SCHEMA = pa.schema(
    [pa.field("uri", pa.string()), *actors.SCORED, pa.field("model_version", pa.string())]
)
"""Of predictions.parquet: the columns of `Prediction`."""
NAME_BYTES = 200
LISTED_ERRORS = 20
"""Errors in the summary."""


@dataclass(frozen=True, kw_only=True)
class Prediction(Scored):
    """One row of predictions.parquet."""

    uri: str
    model_version: str


class CocoResult(TypedDict):
    """One detection in COCO's results format."""

    image_id: int
    category_id: int
    """The data set's own id."""
    bbox: list[float]
    """XYWH px."""
    score: float


@dataclass(frozen=True)
class Summary:
    """summary.json."""

    model_version: str
    images: int
    ok: int
    errors: int
    first_errors: list[str]
    """The first `LISTED_ERRORS`, as "<uri>: <reason>"."""
    detections_with_image_id: int
    """Detections in coco_results.json."""
    passed_over: Mapping[str, int]
    """Files below the folder that were not predicted on, by reason."""
    not_drawn: list[str]
    """Overlays that failed, as "<uri>: <reason>"."""


def list_images(uri: str) -> Pictures:
    """All pictures below `uri`, or `uri` itself if it is a picture. `DataError` where there is
    none.
    """
    if files.size(uri) is not None:
        if not is_picture(uri):
            raise DataError(
                f"{uri}: is a file and no picture that can be read ({', '.join(FORMATS)}); give a"
                " picture, or a folder of pictures"
            )
        return Pictures([uri], {}, {})
    found = list_pictures(uri)
    if not found.uris:
        there = {**found.passed_over, **found.others}
        others = "; ".join(f"{count} x {why}" for why, count in there.items())
        raise DataError(f"{uri}: no picture below it ({others or 'it is empty'}); check the folder")
    return found


def predict(
    package: str,
    uris: Sequence[str],
    folder: str,
    *,
    model_version: str,
    ids: Mapping[str, int],
    category_ids: Sequence[int | None],
    passed_over: Mapping[str, int],
    overlays: int,
    workers: int,
    cpus_per_worker: float,
    gpus_per_worker: float = 0,
) -> Summary:
    """Fill the local `folder` with predictions.parquet (one row for every URI, in order),
    coco_results.json, overlays/ and summary.json, and return the summary.

    An unreadable image is a row with status `error` and the reason. COCO results have XYWH boxes
    and the `category_ids`, one for each class of the model; files without an id in `ids` are not in
    them, nor are detections of a class whose id is None. `passed_over` goes into the summary.
    """
    os.makedirs(os.path.join(folder, OVERLAYS), exist_ok=True)
    names = [each.name for each in read_classes(package)]
    results: list[CocoResult] = []
    errors: list[str] = []
    to_draw: list[Prediction] = []
    ok = 0
    scored = actors.score(
        datasets.file_rows(uris, workers=workers),
        package,
        workers=workers,
        cpus_per_worker=cpus_per_worker,
        gpus_per_worker=gpus_per_worker,
    )
    batches = scored.iter_batches(batch_size=None, batch_format="pyarrow")
    # Ray's type is that of every batch format.
    tables = cast("Iterable[pa.Table]", batches)
    with pq.ParquetWriter(os.path.join(folder, PREDICTIONS), SCHEMA) as writer:
        for table in tables:
            versions = pa.array([model_version] * table.num_rows, pa.string())
            table = table.append_column("model_version", versions)
            table = table.select(SCHEMA.names).cast(SCHEMA)
            writer.write_table(table)
            for prediction in (Prediction(**row) for row in table.to_pylist()):
                if prediction.status == "error":
                    errors.append(f"{prediction.uri}: {prediction.error}")
                    continue
                if prediction.uri in ids:
                    results += _coco_results(prediction, ids[prediction.uri], category_ids)
                if ok < overlays:
                    to_draw.append(prediction)
                ok += 1
    with open(os.path.join(folder, RESULTS), "w", encoding="utf-8") as file:
        json.dump(results, file)
    summary = Summary(
        model_version=model_version,
        images=len(uris),
        ok=ok,
        errors=len(errors),
        first_errors=errors[:LISTED_ERRORS],
        detections_with_image_id=len(results),
        passed_over=dict(passed_over),
        not_drawn=_draw_overlays(to_draw, names, folder),
    )
    with open(os.path.join(folder, SUMMARY), "w", encoding="utf-8") as file:
        json.dump(asdict(summary), file, indent=1)
    return summary


def _coco_results(
    scored: Scored, image_id: int, category_ids: Sequence[int | None]
) -> list[CocoResult]:
    return [
        {
            "image_id": image_id,
            "category_id": category_id,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": score,
        }
        for (x1, y1, x2, y2), score, label in zip(
            scored.boxes, scored.scores, scored.labels, strict=True
        )
        if (category_id := category_ids[label]) is not None
    ]


def _draw_overlays(
    predictions: Sequence[Prediction], class_names: Sequence[str], folder: str
) -> list[str]:
    """Draw, after all results are written; return what cannot be drawn, as "<uri>: <reason>"."""
    failed = []
    for number, prediction in enumerate(predictions):
        name = os.path.basename(prediction.uri)
        try:
            figure = overlay_figure(
                decode_image(parquet_pictures.read_picture(prediction.uri)),
                prediction.detections,
                class_names,
                title=name,
            )
            path = os.path.join(folder, "overlays", f"{number:04d}-{short_name(name)}.png")
            figure.savefig(path, dpi=90)
        except Exception as error:  # a picture is not worth the results
            failed.append(f"{prediction.uri}: {type(error).__name__}: {error}")
    return failed


def short_name(name: str) -> str:
    """A file name that leaves room for a number and a suffix: file systems take 255 bytes."""
    return name.encode()[:NAME_BYTES].decode(errors="ignore")
