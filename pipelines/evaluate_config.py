"""The settings of `evaluate`."""

from __future__ import annotations

from pydantic import Field, model_validator

from cluster.compute.session import RayConfig
from cluster.formats.kinds import Format
from cluster.tracking.config import TrackingConfig
from detector.config import Section
from pipelines.data_section import ANNOTATIONS, FORMAT, DataSection
from pipelines.replica_options import CPUS_PER_WORKER, GPUS_PER_WORKER, WORKERS
from pipelines.view_options import FLIP, OVERLAP_OF_TILES, TILE, view_settings


class EvaluateConfig(Section):
    """Evaluate a detector."""

    run: str | None = Field(
        default=None,
        description=(
            "folder of a training run, <storage>/runs/<name>; its best checkpoint is scored; or one"
            " of its checkpoints, <storage>/runs/<name>/checkpoints/images-..."
        ),
    )
    model: str | None = Field(
        default=None, description="or a registered model: models:/NAME@champion or models:/NAME/3"
    )
    compare: tuple[str, ...] = Field(
        default=(),
        description=(
            "or two detectors, each given as for --run or --model, to see side by side with the"
            " difference in AP and its interval"
        ),
    )
    data: str | None = Field(
        default=None, description="shard set to score on, a local folder or s3://bucket/key"
    )
    annotations: str | None = Field(
        default=None,
        min_length=1,
        description=(
            "or annotated images, of which a shard set is made, in the folder data of the output or"
            f" of <run>/evaluation, and used again while they stay the same; one of: {ANNOTATIONS}"
        ),
    )
    images: str | None = Field(
        default=None,
        min_length=1,
        description="folder of their images; unset: found beside them, or in Parquet files",
    )
    format: Format | None = Field(default=None, description=FORMAT)
    output: str | None = Field(
        default=None,
        description=(
            "folder for the table and the pictures; unset: <run>/evaluation/<first 12 characters of"
            " the shard set's digest; with --max_detections, --classes, --tile or --flip 8 of"
            " their digest too>"
        ),
    )
    storage: str = Field(
        default="runs",
        description="storage root, which has the embedded MLflow; only used with --model",
    )
    max_detections: int | None = Field(
        default=None,
        ge=1,
        le=10_000,
        description=(
            "limit of detections in an image, for AP and for the last AR (beside 1 and 10); unset:"
            " the model's own limit, scored at 100"
        ),
    )
    classes: str | None = Field(
        default=None,
        description=(
            "YAML file with lines `class of the data: class of the model`, for classes of other"
            " names; a class of the data without a value is left out; unset: both have the same"
            " names"
        ),
    )
    tile: int | None = TILE
    overlap: float = OVERLAP_OF_TILES
    flip: bool = FLIP
    overlays: int = Field(
        default=8,
        ge=0,
        le=1000,
        description="images that are drawn with their detections and true boxes",
    )
    precision: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description=(
            "precision that the score threshold of each class is to reach, in report.html and"
            " thresholds.json; unset: the threshold with the highest F1"
        ),
    )
    slices: tuple[str, ...] = Field(
        default=(),
        description=(
            "columns of the shards, such as file_name for its folder, whose values are scored apart"
            " in report.html, beside source and size"
        ),
    )
    workers: int = WORKERS
    cpus_per_worker: float = CPUS_PER_WORKER
    gpus_per_worker: float = GPUS_PER_WORKER
    ray: RayConfig = RayConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _one_set(self) -> EvaluateConfig:
        if (self.data is None) == (self.annotations is None):
            given = "neither is" if self.data is None else "both are"
            raise ValueError(
                f"data and annotations: {given} given; give one, --data for a shard set or"
                " --annotations FILE --images FOLDER for annotated images"
            )
        for name in ("images", "format"):
            if self.annotations is None and getattr(self, name) is not None:
                raise ValueError(f"--{name} does nothing without --annotations; leave it out")
        return self

    def scored_on(self) -> str | DataSection:
        """The shard set, or the annotated images of which one is made."""
        if self.data is not None:
            return self.data
        return DataSection(annotations=self.annotations, images=self.images, format=self.format)

    @model_validator(mode="after")
    def _one_model(self) -> EvaluateConfig:
        given = [self.run, self.model, self.compare or None]
        if sum(each is not None for each in given) != 1:
            raise ValueError(
                "give either --run or --model, the detector to score, or --compare with two of them"
            )
        if self.compare and len(self.compare) != 2:
            raise ValueError(f"--compare takes two detectors, not {len(self.compare)}; give both")
        if self.compare and self.slices:
            raise ValueError("--slices does nothing with --compare; leave it out")
        if self.run is None and self.output is None:
            option = "--compare" if self.compare else "--model"
            raise ValueError(f"{option} needs --output, the folder for the table and the pictures")
        view_settings(self.tile, self.overlap, self.flip)
        return self
