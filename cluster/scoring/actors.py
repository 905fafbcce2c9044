"""Detections for a Ray dataset of encoded images, by Ray actors that each hold the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch

from cluster.compute.resources import booked, task_options
from cluster.runs.package_files import PackageFiles, load_predictor, read_package, stored_classes
from cluster.scoring.detect import BATCH
from detector.decode import Detections
from detector.image import ImageError, open_image
from detector.predict import CLASSES_FILE, Predictor

SCORED = pa.schema(
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
"""The columns of `Scored`."""


@dataclass(frozen=True)
class Scored:
    """The values that scoring adds to a row."""

    status: Literal["ok", "error"]
    error: str | None = None
    """Why there are no detections."""
    height: int | None = None
    """px of the upright image."""
    width: int | None = None
    boxes: tuple[tuple[float, float, float, float], ...] = ()
    """XYXY px of the upright image, best score first."""
    scores: tuple[float, ...] = ()
    """0..1."""
    labels: tuple[int, ...] = ()
    """0..K-1."""
    names: tuple[str, ...] = ()
    """Class names."""

    @property
    def detections(self) -> Detections:
        return Detections(
            np.asarray(self.boxes, np.float32).reshape(-1, 4),
            np.asarray(self.scores, np.float32),
            np.asarray(self.labels, np.int64),
        )


class TableScorer:
    """Scores the rows of Arrow tables with a predictor."""

    def __init__(self, predictor: Predictor, class_names: list[str]):
        self.predictor = predictor
        self.class_names = class_names

    def __call__(self, table: pa.Table) -> pa.Table:
        """Replace the column `image` by the columns of `Scored`. A row whose `error` is set
        already, or whose image cannot be decoded, stays in its place with status error.
        """
        errors: list[str | None] = (
            table["error"].to_pylist() if "error" in table.column_names else [None] * table.num_rows
        )
        samples = []
        for number, data in enumerate(table["image"]):
            if errors[number] is None:
                try:
                    samples.append(self.predictor.sample(open_image(data.as_py()), number))
                except ImageError as error:
                    errors[number] = str(error)
        detections = self.predictor.detect_all(samples)
        sizes = {sample.image_id: size for sample, size in samples}
        rows = [
            self._scored(detections[number], sizes[number])
            if number in detections
            else Scored("error", errors[number])
            for number in range(table.num_rows)
        ]
        columns = pa.Table.from_pylist([vars(row) for row in rows], schema=SCORED)
        replaced = {"image", *SCORED.names}
        table = table.drop_columns([name for name in table.column_names if name in replaced])
        for field in SCORED:
            table = table.append_column(field, columns[field.name])
        return table

    def _scored(self, detections: Detections, size: tuple[int, int]) -> Scored:
        labels = detections.labels_N.tolist()
        return Scored(
            "ok",
            height=size[0],
            width=size[1],
            boxes=tuple(detections.boxes_N4.tolist()),
            scores=tuple(detections.scores_N.tolist()),
            labels=tuple(labels),
            names=tuple(self.class_names[label] for label in labels),
        )


class Scorer(TableScorer):
    """`TableScorer` in a Ray actor. The weights arrive through the object store, so that no node
    needs access to the driver's disk.
    """

    def __init__(self, package_ref: ray.ObjectRef, threads: int, device: str):
        package: PackageFiles = ray.get(package_ref)
        torch.set_num_threads(threads)
        classes = stored_classes(package[CLASSES_FILE])
        super().__init__(load_predictor(package, device), [category.name for category in classes])


def score(
    images: ray.data.Dataset,
    package_folder: str,
    *,
    workers: int,
    cpus_per_worker: float,
    gpus_per_worker: float = 0,
) -> ray.data.Dataset:
    """A dataset with a column `image` (encoded bytes) and any others -> the same rows, each exactly
    once, scored by `Scorer`. Runs lazily.
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
        **task_options(booked(cpus_per_worker, gpus_per_worker)),
    )
