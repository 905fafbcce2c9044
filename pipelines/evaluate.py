"""Score a training run's best checkpoint, or a registered model, on a shard set.

    python -m pipelines.evaluate --run runs/runs/cells --data runs/data/val
    python -m pipelines.evaluate --model models:/cells@champion --data s3://bucket/data/val \
        --output s3://bucket/evaluation
"""

from __future__ import annotations

from pydantic import Field, model_validator

from cluster.compute.resources import READ_CPUS
from cluster.compute.session import RayConfig
from cluster.tracking.config import TrackingConfig
from detector.config import Section
from pipelines.command_line import run_verb
from pipelines.view_options import FLIP, OVERLAP_OF_TILES, TILE, view_settings


class EvaluateConfig(Section):
    """Evaluate a detector."""

    run: str | None = Field(
        default=None,
        description=(
            "folder of a training run, <storage>/runs/<name>; its best checkpoint is scored"
        ),
    )
    model: str | None = Field(
        default=None, description="or a registered model: models:/NAME@champion or models:/NAME/3"
    )
    data: str = Field(description="shard set to score on, a local folder or s3://bucket/key")
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
    workers: int = Field(
        default=2, ge=1, le=4096, description="processes, each with a copy of the model"
    )
    cpus_per_worker: float = Field(
        default=0.75,
        gt=0,
        le=256,
        description=f"CPUs that each process books; reading books {READ_CPUS} more for each",
    )
    gpus_per_worker: float = Field(
        default=0, ge=0, le=1, description="GPUs that each process books"
    )
    ray: RayConfig = RayConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _one_model(self) -> EvaluateConfig:
        if (self.run is None) == (self.model is None):
            raise ValueError("give either --run or --model, the detector to score")
        if self.model is not None and self.output is None:
            raise ValueError("--model needs --output, the folder for the table and the pictures")
        view_settings(self.tile, self.overlap, self.flip)
        return self


def main(config: EvaluateConfig) -> None:
    from pipelines.scoring_run import Replicas, evaluate

    evaluated = evaluate(
        config.data,
        run=config.run,
        model=config.model,
        output=config.output,
        overlays=config.overlays,
        max_detections=config.max_detections,
        class_map=config.classes,
        views=view_settings(config.tile, config.overlap, config.flip),
        replicas=Replicas(config.workers, config.cpus_per_worker, config.gpus_per_worker),
        ray=config.ray,
        tracking=config.tracking,
        storage=config.storage,
    )
    print("\n".join(evaluated.lines()))


if __name__ == "__main__":
    run_verb(
        EvaluateConfig,
        main,
        resumes=False,
        description=(
            "Score a run's best checkpoint or a registered model: COCO table, per-class AP, PR"
            " curves, overlays."
        ),
    )
