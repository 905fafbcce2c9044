"""A model package over a folder or bucket of images -> one Parquet row an image, COCO results and
pictures.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.errors import DataError
from cluster.loading import datasets
from cluster.scoring import actors
from cluster.scoring.detect import detections_of
from cluster.storage import files
from detector.image import decode_image
from detector.plots import overlay_figure

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")
PREDICTIONS, RESULTS, SUMMARY = "predictions.parquet", "coco_results.json", "summary.json"


def list_images(uri: str) -> list[str]:
    """URIs of all files below `uri` that are named like an image, sorted. `DataError` where there
    is none.
    """
    found = [name for name, _ in files.list_files(uri, IMAGE_SUFFIXES)]
    if not found:
        raise DataError(
            f"{uri}: no image below it (looked for {', '.join(IMAGE_SUFFIXES)}); check --images"
        )
    return found


def image_ids(
    uris: Sequence[str], images: str, annotations: dict[str, Any] | None
) -> dict[str, int]:
    """The image id of each file: that of the COCO JSON's `file_name` below `images`, or without a
    JSON its place in the sorted list, from 1.
    """
    if annotations is None:
        return {uri: i for i, uri in enumerate(uris, start=1)}
    by_name = {entry["file_name"]: entry["id"] for entry in annotations["images"]}
    root = images.rstrip("/") + "/"
    return {uri: by_name[name] for uri in uris if (name := uri.removeprefix(root)) in by_name}


def predict(
    package: str,
    uris: Sequence[str],
    folder: str,
    *,
    model_version: str,
    ids: dict[str, int],
    overlays: int,
    **resources: Any,
) -> dict[str, Any]:
    """Fill the local `folder` with predictions.parquet (one row for every URI, in order),
    coco_results.json, overlays/ and summary.json, and return the summary.

    An unreadable image is a row with status `error` and the reason. COCO results hold the data
    set's own category ids and XYWH boxes; a file without an id in `ids` has none there.
    """
    os.makedirs(os.path.join(folder, "overlays"), exist_ok=True)
    with open(os.path.join(package, "classes.json"), encoding="utf-8") as file:
        classes = json.load(file)
    category_ids = [entry["id"] for entry in classes]
    names = [entry["name"] for entry in classes]
    schema = pa.schema(
        [pa.field("uri", pa.string()), *actors.FOUND, pa.field("model_version", pa.string())]
    )
    statuses: Counter[str] = Counter()
    results: list[dict[str, Any]] = []
    errors: list[str] = []
    drawn = 0
    with pq.ParquetWriter(os.path.join(folder, PREDICTIONS), schema) as writer:
        for table in actors.score(
            datasets.file_rows(uris, workers=resources["workers"]), package, **resources
        ).iter_batches(batch_size=None, batch_format="pyarrow"):
            table = table.append_column(
                "model_version", pa.array([model_version] * table.num_rows, pa.string())
            )
            writer.write_table(table.select(schema.names).cast(schema))
            for row in table.to_pylist():
                statuses[row["status"]] += 1
                if row["status"] == "error":
                    errors.append(f"{row['uri']}: {row['error']}")
                    continue
                if row["uri"] in ids:
                    results += coco_results(row, ids[row["uri"]], category_ids)
                if drawn < overlays:
                    picture = decode_image(files.read_bytes(row["uri"]))
                    figure = overlay_figure(
                        picture, detections_of(row), names, title=os.path.basename(row["uri"])
                    )
                    figure.savefig(
                        os.path.join(
                            folder, "overlays", f"{drawn:04d}-{os.path.basename(row['uri'])}.png"
                        ),
                        dpi=90,
                    )
                    drawn += 1
    with open(os.path.join(folder, RESULTS), "w", encoding="utf-8") as file:
        json.dump(results, file)
    summary = {
        "model_version": model_version,
        "images": len(uris),
        "ok": statuses["ok"],
        "errors": statuses["error"],
        "first_errors": errors[:20],
    }
    summary["detections_with_image_id"] = len(results)
    with open(os.path.join(folder, SUMMARY), "w", encoding="utf-8") as file:
        json.dump(summary, file, indent=1)
    return summary


def coco_results(
    row: dict[str, Any], image_id: int, category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[label],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": score,
        }
        for (x1, y1, x2, y2), score, label in zip(
            row["boxes"], row["scores"], row["labels"], strict=True
        )
    ]
