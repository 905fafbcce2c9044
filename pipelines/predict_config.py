"""What `predict` takes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, model_validator

from cluster.compute.resources import FEW_IMAGES, READ_CPUS
from cluster.compute.session import RayConfig
from cluster.tracking.config import TrackingConfig
from detector.config import Section
from detector.image import MAX_PIXELS
from pipelines.replica_options import GPUS_PER_WORKER
from pipelines.view_options import FLIP, OVERLAP_OF_TILES, TILE, view_settings
from pipelines.worker_range import WorkerRange


class PredictConfig(Section):
    """Batch prediction."""

    model: str = Field(
        description=(
            "registered model: models:/NAME@champion or models:/NAME/3; an alias is resolved once,"
            " at the start"
        )
    )
    images: str = Field(
        description=(
            "folder or s3://bucket/prefix, of which all pictures are read; a pattern such as"
            " data/**/*.jpg; a list of URIs as .txt, .csv, .jsonl or .parquet; a Parquet file with"
            " pictures; a shard set; or a single picture"
        )
    )
    column: str = Field(
        default="uri",
        description=(
            "column of a CSV, JSON lines or Parquet list that has the URIs; all others are carried"
            " through to predictions.parquet"
        ),
    )
    output: str = Field(
        description=(
            "folder for predictions.parquet, coco_results.json, overlays/, summary.html to read,"
            " summary.json and, last, manifest.json; what is missing after an interruption is done"
            " by the same command"
        )
    )
    annotations: str | None = Field(
        default=None,
        description=(
            "COCO JSON that gives the ids of coco_results.json: of images by file name, of classes"
            " by name; unset: column image_id of a list, else positions in the list, from 1, and"
            " the ids of the training"
        ),
    )
    classes: str | None = Field(
        default=None,
        description=(
            "YAML file with lines `class of the annotations: class of the model`, for classes of"
            " other names; detections of a class that is in no line and has no name in the"
            " annotations are left out of coco_results.json; only used with --annotations"
        ),
    )
    overwrite: bool = Field(
        default=False, description="delete the prediction in output and start over"
    )
    overlays: NonNegativeInt | Literal["all"] = Field(
        default=0, description="images that are drawn with their detections, at the end; or all"
    )
    max_pixels: int = Field(
        default=MAX_PIXELS,
        ge=1,
        description="px of an image; a larger one is a row with the reason too_many_pixels",
    )
    thresholds: str = Field(
        default="none",
        min_length=1,
        description=(
            "detections that are kept: none, all that the model gives; f1, those that reach the"
            " score with the highest F1 of their class in validation; or the thresholds.json that"
            " evaluate writes"
        ),
    )
    tile: int | None = TILE
    overlap: float = OVERLAP_OF_TILES
    flip: bool = FLIP
    storage: str = Field(default="runs", description="storage root, which has the embedded MLflow")
    workers: WorkerRange | None = Field(
        default=None,
        description=(
            "processes, each with a copy of the model: N, or MIN,MAX. The work begins with MIN and"
            " grows to MAX as the cluster has room or, with an autoscaler, makes some; it goes on"
            " with fewer when nodes leave. Unset: 2; or none, where there is no cluster and there"
            f" are at most {FEW_IMAGES} images: this process predicts, without Ray"
        ),
    )
    cpus_per_worker: float = Field(
        default=0.75,
        gt=0,
        le=256,
        description=(
            "CPUs that each process books: threads of the network, beside a GPU those that decode;"
            f" reading books {READ_CPUS} more for each"
        ),
    )
    gpus_per_worker: float = GPUS_PER_WORKER
    ray: RayConfig = RayConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> PredictConfig:
        if self.classes is not None and self.annotations is None:
            raise ValueError(
                f"classes {self.classes}: does nothing without --annotations, whose classes it"
                " renames; give both"
            )
        view_settings(self.tile, self.overlap, self.flip)
        return self
