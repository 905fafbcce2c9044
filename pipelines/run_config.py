"""The configuration of `run`: a training run, where its data comes from and what follows it."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from cluster.compute.session import RayConfig
from cluster.runs.config import TrainSections
from cluster.runs.names import WorkflowName
from cluster.tracking.config import TrackingConfig
from detector.config import Section
from pipelines.data_section import DataSection
from tune.config import SweepConfig

StageName = Literal[
    "prepare-train", "prepare-val", "sweep", "train", "evaluate", "register", "predict"
]


class RunData(Section):
    """The annotated images, before they are prepared."""

    train: DataSection = Field(description="what is trained on, as `prepare` takes it")
    val: DataSection = Field(
        description="what is evaluated on; it is always compared with train for images in both"
    )


class RunConfig(TrainSections):
    """A training run, where its data comes from and what follows it."""

    FIRST: ClassVar[tuple[str, ...]] = (
        *("minutes", "data.train.annotations", "data.train.images", "data.val.annotations"),
        *("data.val.images", "name", "pretrained", "tune", "pictures", "training.epochs"),
        *("training.batch_size", "training.workers", "training.gpus_per_worker"),
    )
    name: WorkflowName = Field(
        default="run",
        description="name of the outputs; each folder's name has its stage's fingerprint too",
    )
    data: RunData = Field(description="the annotated images, before they are prepared")
    ray: RayConfig = Field(default=RayConfig(), description="where the work runs")
    tracking: TrackingConfig = Field(
        default=TrackingConfig(), description="where the run is recorded"
    )
    tune: bool = Field(
        default=False,
        description="run a sweep before training, and train with its best configuration",
    )
    sweep: SweepConfig = Field(
        default=SweepConfig(), description="what is searched, with what budget; only with tune"
    )
    registered_name: WorkflowName | None = Field(
        default=None, description="name of the registered model; unset: name"
    )
    pictures: str | None = Field(
        default=None,
        description=(
            "folder or s3://bucket/prefix of the images to predict on at the end, or a single"
            " image; unset: the images of data.val, with their ids"
        ),
    )
    minutes: float | None = Field(
        default=None,
        gt=0,
        description=(
            "minutes that the training of a FOLDER may take: training.epochs is chosen by a step"
            " that is measured first; unset: training.epochs is chosen from the number of pictures"
        ),
    )
    overlays: int = Field(
        default=8, ge=0, le=1000, description="images drawn by evaluate, and as many by predict"
    )
    plan: bool = Field(
        default=False,
        description=(
            "say which stages would be reused and which would run, and what changed; start nothing"
        ),
    )
    from_stage: StageName | None = Field(
        default=None, description="the stages before it must have finished; unset: the first one"
    )
    until_stage: StageName | None = Field(
        default=None, description="the stages after it are left out; unset: the last one"
    )
    only_stage: StageName | None = Field(
        default=None, description="in place of from_stage and until_stage: this stage alone"
    )

    @model_validator(mode="after")
    def _one_way_to_select(self) -> RunConfig:
        if self.only_stage and (self.from_stage or self.until_stage):
            raise ValueError(
                "only_stage is given together with from_stage or until_stage; give one or the other"
            )
        if "sweep" in (self.only_stage, self.from_stage, self.until_stage) and not self.tune:
            raise ValueError("the stage sweep is only in a run with --tune true; add it")
        return self
