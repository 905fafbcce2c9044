"""A model over images -> detections, spread over the cluster: over files by Ray Data (`predict`), over a shard set by shares (evaluation)."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch

from cluster.compute.session import fetch
from cluster.loading.epoch_plan import READ_CPUS
from cluster.loading.stream import evaluation_batches, ordered_map
from cluster.shards.format import ShardSet, open_shard_set, read_annotations
from detector.decode import Detections
from detector.image import ImageError, open_image
from detector.metrics import Truth
from detector.predict import CLASSES_FILE, MODEL_FILE, WEIGHTS_FILE, Predictor

BATCH = 8
"""Images a network takes at once."""

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
"""What scoring adds to a row: status ok or error (then the reason), px of the upright image, detections best first in its frame."""


class Scorer:
    """A predictor in a Ray actor; the weights arrive through the object store, so that no node needs to see the driver's disk."""

    def __init__(self, package_ref: ray.ObjectRef, threads: int, device: str):
        package: dict[str, bytes] = ray.get(package_ref)
        torch.set_num_threads(threads)
        self.predictor = load_predictor(package, device)
        self.names = [entry["name"] for entry in json.loads(package[CLASSES_FILE])]

    def __call__(self, table: pa.Table) -> pa.Table:
        """Replace the column `image` by the columns of `FOUND`. A row whose `error` is set already, or whose image cannot be decoded, keeps its
        place.
        """
        errors: list[str | None] = table["error"].to_pylist() if "error" in table.column_names else [None] * table.num_rows
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
        kept = table.drop_columns([name for name in ("image", "error") if name in table.column_names])
        columns = pa.Table.from_pylist(scored, schema=FOUND)
        for field in FOUND:
            if field.name in kept.column_names:
                kept = kept.drop_columns([field.name])
            kept = kept.append_column(field, columns[field.name])
        return kept

    def row(self, found: Detections | None, size: tuple[int, int] | None, error: str | None) -> dict[str, Any]:
        if found is None or size is None:
            return {"status": "error", "error": error, "height": None, "width": None, "boxes": [], "scores": [], "labels": [], "names": []}
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


def score(images: ray.data.Dataset, package_folder: str, *, workers: int, cpus_per_worker: float, gpus_per_worker: float = 0) -> ray.data.Dataset:
    """Detections for a dataset with a column `image` (encoded bytes) and any others, lazily: see `Scorer`. Every row comes out exactly once."""
    return images.map_batches(
        Scorer,
        fn_constructor_args=(ray.put(read_package(package_folder)), max(1, int(cpus_per_worker)), "cuda" if gpus_per_worker else "cpu"),
        batch_size=BATCH,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=cpus_per_worker,
        num_gpus=gpus_per_worker or None,
    )


def detect_set(
    package: dict[str, bytes], data: str, *, workers: int, cpus_per_worker: float, gpus_per_worker: float = 0, here: bool = False
) -> dict[int, Detections]:
    """The detections of every image of a shard set, from `workers` Ray tasks; one share is made `here`, by a caller that is such a task itself."""
    package_ref = ray.put(package)
    threads, device = max(1, int(cpus_per_worker)), "cuda" if gpus_per_worker else "cpu"
    # A task that failed is tried again by whoever asked for the whole.
    task = ray.remote(detect_share).options(num_cpus=cpus_per_worker + READ_CPUS, num_gpus=gpus_per_worker or None, max_retries=0)
    parts = [task.remote(package_ref, data, rank, workers, threads, device) for rank in range(int(here), workers)]
    found = detect_share(package, data, 0, workers, threads, device) if here else {}
    for part in fetch(parts):
        found |= part
    return found


def detect_share(package: dict[str, bytes], data: str, rank: int, ranks: int, threads: int, device: str) -> dict[int, Detections]:
    """What `detect_set` runs in each task. Threads are for the network on CPUs, for the decoder beside a GPU."""
    apart = {"threads": threads} if device == "cpu" else {"decode_threads": threads}
    return detections(load_predictor(package, device), open_shard_set(data), rank=rank, ranks=ranks, **apart)


def detections(
    predictor: Predictor,
    shard_set: ShardSet,
    *,
    rank: int = 0,
    ranks: int = 1,
    threads: int = 1,
    decode_threads: int = 1,
    progressed: Callable[[], None] = lambda: None,
) -> dict[int, Detections]:
    """The detections of one rank's share of a set, by image id: the same to the last bit for any number of ranks and threads of a machine.
    `progressed` is called after every batch.

    The batches do not depend on the ranks, and on CPUs each is one thread's, several batches side by side: in float32 two threads to a convolution
    round otherwise than one.
    """
    predictor.model.eval()
    frame = dict(canvases=predictor.canvases, long_side=predictor.long_side)
    batches = evaluation_batches(shard_set, rank=rank, ranks=ranks, batch=BATCH, threads=decode_threads, **frame)
    found: dict[int, Detections] = {}
    for ids, of_images in ordered_map(lambda pair: (pair[0].image_ids.tolist(), predictor.detect(*pair)), batches, threads=threads):
        found.update(zip(ids, of_images, strict=True))
        progressed()
    return found


def read_package(folder: str) -> dict[str, bytes]:
    """The files of a package by name, as they travel through the object store."""
    package = {}
    for name in (WEIGHTS_FILE, MODEL_FILE, CLASSES_FILE):
        with open(os.path.join(folder, name), "rb") as file:
            package[name] = file.read()
    return package


def load_predictor(package: dict[str, bytes], device: str) -> Predictor:
    with tempfile.TemporaryDirectory(prefix="package-") as folder:
        for name, content in package.items():
            with open(os.path.join(folder, name), "wb") as file:
                file.write(content)
        return Predictor.load(folder, device=device)


def detections_of(row: dict[str, Any]) -> Detections:
    return Detections(np.asarray(row["boxes"], np.float32).reshape(-1, 4), np.asarray(row["scores"], np.float32), np.asarray(row["labels"], np.int64))


def read_truths(shard_set: ShardSet) -> list[Truth]:
    """The annotated objects of every image of a set; no pixel is read."""
    return [
        Truth(
            image_id=row["image_id"],
            height=row["height"],
            width=row["width"],
            boxes_N4=np.asarray(row["boxes"], np.float32).reshape(-1, 4),
            labels_N=np.asarray(row["labels"], np.int64),
            crowd_N=np.asarray(row["crowd"], bool),
            area_N=np.asarray(row["area"], np.float64),
        )
        for row in read_annotations(shard_set).to_pylist()
    ]
