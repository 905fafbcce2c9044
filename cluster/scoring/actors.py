"""A model over a dataset of images: Ray actors that hold the network."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import ray
import torch

from cluster.runs.package_files import load_predictor, read_package
from cluster.scoring.detect import BATCH
from detector.decode import Detections
from detector.image import ImageError, open_image
from detector.predict import CLASSES_FILE

FOUND = pa.schema(
    [
        ("status", pa.string()),
        ("error", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("boxes", pa.list_(pa.list_(pa.float32(), 4))),
        ("scores", pa.list_(pa.float32())),
        ("labels", pa.list_(pa.int32())),
        ("names", pa.list_(pa.string())),
    ]
)
"""What scoring adds to a row: status ok or error (then the reason), px of the upright image,
detections best first in its frame.
"""


class Scorer:
    """A predictor in a Ray actor; the weights arrive through the object store, so that no node
    needs to see the driver's disk.
    """

    def __init__(self, package_ref: ray.ObjectRef, threads: int, device: str):
        package: dict[str, bytes] = ray.get(package_ref)
        torch.set_num_threads(threads)
        self.predictor = load_predictor(package, device)
        self.names = [entry["name"] for entry in json.loads(package[CLASSES_FILE])]

    def __call__(self, table: pa.Table) -> pa.Table:
        """Replace the column `image` by the columns of `FOUND`. A row whose `error` is set already,
        or whose image cannot be decoded, keeps its place.
        """
        errors: list[str | None] = (
            table["error"].to_pylist() if "error" in table.column_names else [None] * table.num_rows
        )
        samples = []
        for place, data in enumerate(table["image"]):
            if errors[place] is None:
                try:
                    samples.append(self.predictor.sample(open_image(data.as_py()), place))
                except ImageError as error:
                    errors[place] = str(error)
        found = self.predictor.detect_all(samples)
        sizes = {sample.image_id: size for sample, size in samples}
        scored = [self.row(found.get(i), sizes.get(i), errors[i]) for i in range(table.num_rows)]
        kept = table.drop_columns(
            [name for name in ("image", "error") if name in table.column_names]
        )
        columns = pa.Table.from_pylist(scored, schema=FOUND)
        for field in FOUND:
            if field.name in kept.column_names:
                kept = kept.drop_columns([field.name])
            kept = kept.append_column(field, columns[field.name])
        return kept

    def row(
        self, found: Detections | None, size: tuple[int, int] | None, error: str | None
    ) -> dict[str, Any]:
        if found is None or size is None:
            return {
                "status": "error",
                "error": error,
                "height": None,
                "width": None,
                "boxes": [],
                "scores": [],
                "labels": [],
                "names": [],
            }
        labels = found.labels_N.tolist()
        return {
            "status": "ok",
            "error": None,
            "height": size[0],
            "width": size[1],
            "boxes": found.boxes_N4.tolist(),
            "scores": found.scores_N.tolist(),
            "labels": labels,
            "names": [self.names[label] for label in labels],
        }


def score(
    images: ray.data.Dataset,
    package_folder: str,
    *,
    workers: int,
    cpus_per_worker: float,
    gpus_per_worker: float = 0,
) -> ray.data.Dataset:
    """Detections for a dataset with a column `image` (encoded bytes) and any others, lazily: see
    `Scorer`. Every row comes out exactly once.
    """
    return images.map_batches(
        Scorer,
        fn_constructor_args=(
            ray.put(read_package(package_folder)),
            max(1, int(cpus_per_worker)),
            "cuda" if gpus_per_worker else "cpu",
        ),
        batch_size=BATCH,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=cpus_per_worker,
        num_gpus=gpus_per_worker or None,
    )
