"""The configuration of one training run: its sections, and the rules between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self, TypedDict, TypeVar

from pydantic import Field, ValidationError, model_validator

from cluster.errors import UsageError
from cluster.runs import names, weight_file
from cluster.runs.data_config import DataConfig, SamplingConfig
from cluster.runs.training_config import EVALUATION_SHARE, TrainingConfig, TrainingOptions
from cluster.storage.uris import absolute, join
from detector.choices import BASELINE_DECODE_UNUSED
from detector.config import Section, refuse_unused, shown
from detector.image_config import AugmentationConfig, CanvasConfig
from detector.model_config import DecodeConfig, ModelConfig
from detector.training_config import LossConfig, OptimizerConfig

FromState = Literal["weights", "full"]


class DetectionShare(TypedDict):
    """The processes that score a shard set together, as keywords of `detect_set`."""

    workers: int
    cpus_per_worker: float
    gpus_per_worker: float


class TrainSections(Section):
    """A training run without its data: what `train`, `sweep` and `run` share."""

    name: names.Name = Field(
        default="train",
        description=(
            f"the run's name; the same name and configuration continue the run. {names.RULE}"
        ),
    )
    storage: str = Field(default="runs", description="folder or s3:// prefix that holds all runs")
    sampling: SamplingConfig = SamplingConfig()
    model: ModelConfig = ModelConfig.model_validate({})
    pretrained: str | None = Field(
        default=None,
        description=(
            "weight file that a new run starts from, of torchvision, detectron2 or this project: a"
            " path, s3://bucket/key or https:// URL; unset: random weights"
        ),
    )
    from_checkpoint: str | None = Field(
        default=None,
        description=(
            "checkpoint of another run that a new run starts from,"
            " <that run's folder>/checkpoints/images-...: a path or s3:// URI; unset: none"
        ),
    )
    from_state: FromState = Field(
        default="weights",
        description=(
            "what the new run takes from from_checkpoint: weights (the averaged ones if there are"
            " any), or full: also optimizer, average, images seen and position in the data"
        ),
    )
    canvas: CanvasConfig = CanvasConfig.model_validate({})
    loss: LossConfig = LossConfig.model_validate({})
    augmentation: AugmentationConfig = AugmentationConfig.model_validate({})
    optimizer: OptimizerConfig = OptimizerConfig.model_validate({})
    decode: DecodeConfig = DecodeConfig.model_validate({})
    training: TrainingOptions = TrainingOptions()

    @model_validator(mode="after")
    def _check_batch(self) -> TrainSections:
        batch_size, workers = self.training.batch_size, self.training.workers
        if workers == "auto":
            workers = 1
        if batch_size % workers:
            raise ValueError(
                f"training.batch_size {batch_size}: must be a multiple of training.workers"
                f" {workers}, because every worker takes the same number of images a step"
            )
        share = batch_size // workers
        if share % self.training.accumulate:
            raise ValueError(
                f"training.accumulate {self.training.accumulate}: must divide the {share} images of"
                f" a worker (batch_size {batch_size} / workers {workers}) evenly; take a divisor of"
                f" {share}"
            )
        return self

    @model_validator(mode="after")
    def _check_min_workers(self) -> TrainSections:
        fewest, workers = self.training.min_workers, self.training.workers
        if fewest is None:
            self._refuse_in_training(
                ["resized_batch"], "where training.min_workers is unset", "set that"
            )
        elif workers != "auto" and fewest > workers:
            raise ValueError(
                f"training.min_workers {fewest}: must be at most training.workers {workers}; lower"
                " it, or raise that"
            )
        return self

    @model_validator(mode="after")
    def _check_evaluation(self) -> TrainSections:
        if self.training.evaluation == "between":
            reason = "with training.evaluation between, where the workers evaluate"
            self._refuse_in_training(EVALUATION_SHARE, reason, "set that to beside")
        if not self.training.patience:
            self._refuse_in_training(["min_improvement"], "without training.patience", "set that")
        return self

    def _refuse_in_training(self, names: Sequence[str], reason: str, remedy: str) -> None:
        refuse_unused(self.training, "training", names, reason, remedy)

    @model_validator(mode="after")
    def _check_augmentation(self) -> TrainSections:
        if self.training.batch_size == self.training.workers:
            refuse_unused(
                self.augmentation,
                "augmentation",
                ["mixup"],
                "where a worker has one image a step",
                "raise training.batch_size",
            )
        sides, limit = self.augmentation.short_sides, max(map(min, self.canvas.canvases))
        if sides is not None and sides[0] > limit:
            raise ValueError(
                f"augmentation.short_sides {shown(sides)}: the canvas holds short sides of at most"
                f" {limit} px, so none of these can be reached; take smaller ones, or a larger"
                " canvas"
            )
        return self

    @model_validator(mode="after")
    def _check_sync_norm(self) -> TrainSections:
        # Ray Train makes a process group for a single worker too, and torch's SyncBatchNorm then
        # refuses tensors of a CPU.
        if self.model.norm == "sync" and not self.training.gpus_per_worker:
            raise ValueError(
                "model.norm sync: needs training.gpus_per_worker 1, because its statistics are"
                " summed on GPUs; on CPUs take frozen or group"
            )
        return self

    @model_validator(mode="after")
    def _check_start(self) -> TrainSections:
        if self.pretrained is not None and self.from_checkpoint is not None:
            raise ValueError(
                f"pretrained {self.pretrained} and from_checkpoint {self.from_checkpoint}: a run"
                " starts from one of them; unset the other"
            )
        if self.from_checkpoint is None and self.from_state == "full":
            raise ValueError(
                "from_state full: does nothing without from_checkpoint, the checkpoint that the"
                " state is taken from"
            )
        return self

    @model_validator(mode="after")
    def _check_fixed_weights(self) -> TrainSections:
        fixed = (
            "norm frozen"
            if self.model.norm == "frozen"
            else f"frozen_stages {self.model.frozen_stages}"
            if self.model.frozen_stages
            else ""
        )
        if fixed and self.pretrained is None and self.from_checkpoint is None:
            remedy = "give --pretrained, or" if self.model.architecture == "retinanet" else "take"
            raise ValueError(
                f"model.{fixed}: fixes weights that nothing has trained; {remedy} norm batch or"
                " group, frozen_stages 0"
            )
        return self

    @model_validator(mode="after")
    def _check_baseline(self) -> TrainSections:
        architecture = self.model.architecture
        if architecture == "retinanet":
            return self
        if self.pretrained is not None:
            raise ValueError(
                f"pretrained {self.pretrained}: {architecture} trains from scratch, weight files"
                " are for retinanet; unset it"
            )
        unused = [name for name in LossConfig.model_fields if name != "box_weight"]
        reason = f"in the baseline {architecture}, which has losses of its own"
        refuse_unused(self.loss, "loss", unused, reason)
        unused, why = BASELINE_DECODE_UNUSED.get(architecture, ((), ""))
        refuse_unused(self.decode, "decode", unused, f"in the baseline {architecture}, {why}")
        return self

    @property
    def run_uri(self) -> str:
        return join(absolute(self.storage), "runs", self.name)


Options = TypeVar("Options", bound="TrainOptions")


def _validated(kind: type[Options], values: dict[str, Any]) -> Options:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UsageError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error


class TrainOptions(TrainSections):
    """One training run as the user asks for it."""

    data: DataConfig

    def settled(self, *, workers: int, gpus_per_worker: int, decode_threads: int) -> TrainConfig:
        """The run with these values for those that are auto. `UsageError` where they do not fit
        the others.
        """
        training = self.training.model_dump()
        chosen = {
            "workers": workers,
            "gpus_per_worker": gpus_per_worker,
            "decode_threads": decode_threads,
        }
        training |= {name: value for name, value in chosen.items() if training[name] == "auto"}
        return _validated(TrainConfig, {**self.model_dump(), "training": training})

    def with_canvas(self, canvas: CanvasConfig) -> Self:
        """The run with these canvases and its own `long_side`. `UsageError` where they do not fit
        the other settings.
        """
        sizes = canvas.model_dump(include={"height", "width", "shapes"})
        chosen = {**self.canvas.model_dump(), **sizes}
        return _validated(type(self), {**self.model_dump(), "canvas": chosen})

    def with_absolute_uris(self) -> Self:
        """The same run for another process, whose working directory may be another one. To be
        called where the command was typed.
        """
        uris = {
            "storage": absolute(self.storage),
            "data": DataConfig(train=absolute(self.data.train), val=absolute(self.data.val)),
            "pretrained": self.pretrained and weight_file.absolute(self.pretrained),
            "from_checkpoint": self.from_checkpoint and absolute(self.from_checkpoint),
        }
        return self.model_copy(update=uris)


class TrainConfig(TrainOptions):
    """One training run, with every `auto` decided that depends on the cluster."""

    # See there.
    training: TrainingConfig = TrainingConfig()  # pyright: ignore[reportIncompatibleVariableOverride]

    @property
    def evaluation_share(self) -> DetectionShare:
        """What an evaluation beside training books."""
        training, gpus = self.training, self.training.evaluation_gpus
        return {
            "workers": training.evaluation_workers,
            "cpus_per_worker": training.evaluation_cpus,
            "gpus_per_worker": training.gpus_per_worker if gpus is None else gpus,
        }
