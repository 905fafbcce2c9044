"""What a training run is told, what makes two runs the same run, and what a predictor needs of it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from cluster.shards.index import ShardSet
from cluster.storage.uris import absolute, join
from detector.config import (
    AugmentationConfig,
    CanvasConfig,
    DecodeConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    Section,
    refuse_unused,
    shown,
)

COMPILE_AFTER = 3000
"""Steps from which compiling pays on a GPU: it is won back by 970 to 3450 steps
(docs/benchmarks.md).
"""
PROFILE_AFTER = 5
"""Steps before a profile: they allocate and, where it is asked for, compile."""


class DataConfig(Section):
    """Shard sets, as written by `prepare`."""

    train: str = Field(
        description="URI of the shard set to train on (a local folder or s3://bucket/key)"
    )
    val: str = Field(description="URI of the shard set to evaluate on")


class SamplingConfig(Section):
    """How often the images of data.train occur in an epoch: each once, unless said otherwise. An
    epoch has the same number of images every time.
    """

    repeat_threshold: float = Field(
        0.0,
        ge=0,
        lt=1,
        description=(
            "images of classes that a smaller share of the images has occur more often, by the"
            " square root of threshold / share (LVIS: 0.001); 0: none"
        ),
    )
    source_weights: dict[str, float] = Field(
        {},
        description=(
            'how often the images of a source of the shard set occur, as JSON such as {"night": 2,'
            ' "day": 0.5}; 1 where it is not named'
        ),
    )

    @model_validator(mode="after")
    def weights_are_positive(self) -> SamplingConfig:
        for name, weight in self.source_weights.items():
            if not 0 < weight <= 1000:
                raise ValueError(
                    f"sampling.source_weights {name} {weight:g}: must be above 0 and at most 1000;"
                    " else prepare a set without it"
                )
        return self


class TrainingConfig(Section):
    """How long, how wide, how often."""

    epochs: int = Field(12, ge=1, le=10_000, description="passes over the training images")
    batch_size: int = Field(
        16, ge=1, le=65_536, description="images of the global batch, shared evenly by the workers"
    )
    accumulate: int = Field(
        1,
        ge=1,
        le=65_536,
        description=(
            "equal parts in which a worker runs its share of the batch, one after the other: the"
            " memory of one part"
        ),
    )
    seed: int = Field(0, ge=0, lt=2**63, description="covers weights, order and augmentation")
    amp: bool = Field(
        True,
        description=(
            "bfloat16 autocast in the network where every device gains by it; losses and weights"
            " stay float32"
        ),
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto",
        description=(
            "compile network and loss by torch.compile, which takes about a minute and needs a C++"
            f" compiler; auto: on a GPU, in a run of {COMPILE_AFTER} steps or more"
        ),
    )
    skip_nonfinite: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description=(
            "updates of a run that are left out, each with a warning, because their loss or"
            " gradient is not finite; the next stops it"
        ),
    )
    evaluate_every: int = Field(
        1,
        ge=1,
        description="epochs between evaluations on data.val; the last epoch is always evaluated",
    )
    evaluation: Literal["auto", "beside", "between"] = Field(
        "auto",
        description=(
            "where checkpoints are scored: beside training in processes of their own, between"
            " epochs by the workers, or auto: beside where the cluster has room for it beyond the"
            " workers, else between; AP is the same. Sweeps evaluate between epochs"
        ),
    )
    evaluation_workers: int = Field(
        1,
        ge=1,
        le=4096,
        description="processes that score a checkpoint beside training, each a share of the images",
    )
    evaluation_cpus: float = Field(
        0.75,
        gt=0,
        le=256,
        description="CPUs each of these processes books; reading needs 0.25 more for each",
    )
    evaluation_gpus: float | None = Field(
        None,
        ge=0,
        le=1,
        description="GPUs each of these processes books; unset: as many as a worker",
    )
    patience: int = Field(
        0,
        ge=0,
        le=10_000,
        description=(
            "evaluations without a better AP after which training stops, at an epoch's end; 0:"
            " never"
        ),
    )
    min_improvement: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="rise of AP that patience takes for better must be above this, 0..1",
    )
    checkpoint_every: int = Field(
        1, ge=1, description="epochs between checkpoints; an evaluation takes one too"
    )
    checkpoint_images: int = Field(
        0, ge=0, description="images between checkpoints inside an epoch; 0: none inside"
    )
    checkpoint_minutes: float = Field(
        0,
        ge=0,
        description=(
            "minutes after a checkpoint until the next one inside an epoch; 0: as long as it takes"
        ),
    )
    checkpoint_folder: str | None = Field(
        None,
        pattern="^/",
        description=(
            "absolute path of a folder on the disk of each node, where checkpoints wait for their"
            " upload; unset: below TMPDIR or /tmp"
        ),
    )
    keep_checkpoints: int = Field(
        2, ge=1, le=1000, description="newest checkpoints kept, beside the best"
    )
    log_steps: int = Field(10, ge=1, description="steps averaged in one line of progress")
    log_seconds: float = Field(
        10.0,
        ge=0,
        description="least seconds between lines of progress where the output is not a terminal",
    )
    profile_steps: int = Field(
        0,
        ge=0,
        le=1000,
        description=(
            "steps of rank 0 that torch's profiler records into the run's folder, after the first"
            f" {PROFILE_AFTER}; 0: none"
        ),
    )
    workers: int = Field(
        2, ge=1, le=4096, description="processes; each is one rank of the data-parallel training"
    )
    min_workers: int | None = Field(
        None,
        ge=1,
        le=4096,
        description=(
            "fewest workers with which training starts and goes on while nodes are missing; it"
            " grows up to training.workers when they come; unset: always training.workers"
        ),
    )
    resized_batch: Literal["keep", "scale"] = Field(
        "keep",
        description=(
            "the global batch while there are fewer workers than training.workers: keep (each takes"
            " more images, in parts of its usual size) or scale (as many images a worker as before;"
            " the learning rate in proportion for sgd, with the square root for adamw)"
        ),
    )
    cpus_per_worker: float = Field(
        0.75, gt=0, le=256, description="CPUs each worker books; reading needs 0.25 more a worker"
    )
    gpus_per_worker: int = Field(
        0, ge=0, le=1, description="GPUs each worker books: 0 (gloo) or 1 (nccl)"
    )
    decode: Literal["auto", "threads", "tasks"] = Field(
        "auto",
        description=(
            "where images are decoded and augmented: in threads beside each worker, in tasks of Ray"
            " Data on any node, or auto: tasks where workers have GPUs and nodes without any are"
            " there, else threads; the pixels are the same"
        ),
    )
    decode_threads: int = Field(
        1, ge=1, le=64, description="threads that decode and augment beside each worker"
    )
    retries: int = Field(
        2,
        ge=0,
        description=(
            "failures in a row, without a new checkpoint between them, after which workers are"
            " still restarted from the newest one"
        ),
    )
    hang_minutes: float = Field(
        15.0,
        ge=0,
        description=(
            "minutes without a step or an evaluated batch after which a worker counts as hanging"
            " and is ended; the first step has four times as long; 0: never"
        ),
    )
    wait_minutes: float = Field(
        60.0,
        ge=0,
        description=(
            "minutes that nodes are waited for when no worker is left, before the training ends"
        ),
    )


EVALUATION_SHARE = ["evaluation_workers", "evaluation_cpus", "evaluation_gpus"]
EXECUTION = {
    "workers",
    "accumulate",
    "compile",
    "skip_nonfinite",
    "evaluation",
    *EVALUATION_SHARE,
    "cpus_per_worker",
    "gpus_per_worker",
    "decode",
    "decode_threads",
    "min_workers",
    "retries",
    "hang_minutes",
    "wait_minutes",
    "log_steps",
    "log_seconds",
    "profile_steps",
    "keep_checkpoints",
    "checkpoint_every",
    "checkpoint_images",
    "checkpoint_minutes",
    "checkpoint_folder",
}
"""Fields of `TrainingConfig` that change how a run is executed and not what it is; they may differ
when a run is continued.
"""


class TrainConfig(Section):
    """One training run."""

    name: str = Field(
        "train",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        description="the run's name; the same name and configuration continue the run",
    )
    storage: str = Field("runs", description="folder or s3:// prefix that holds all runs")
    data: DataConfig
    sampling: SamplingConfig = SamplingConfig()
    model: ModelConfig = ModelConfig()
    pretrained: str | None = Field(
        None,
        description=(
            "weight file a new run starts from, torchvision's, detectron2's or our own: a path,"
            " s3://bucket/key or https:// URL; unset: none"
        ),
    )
    from_checkpoint: str | None = Field(
        None,
        description=(
            "another run's checkpoint that a new run starts from, <its"
            " folder>/checkpoints/images-...: a path or s3:// URI; unset: none"
        ),
    )
    from_state: Literal["weights", "full"] = Field(
        "weights",
        description=(
            "what is taken from it: weights (the averaged ones where there are any), "
            "or full: also optimiser, average, images seen and the place in the data"
        ),
    )
    canvas: CanvasConfig = CanvasConfig()
    loss: LossConfig = LossConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    decode: DecodeConfig = DecodeConfig()
    training: TrainingConfig = TrainingConfig()

    @model_validator(mode="after")
    def batch_is_shared_evenly(self) -> TrainConfig:
        if self.training.batch_size % self.training.workers:
            raise ValueError(
                f"training.batch_size {self.training.batch_size}: must be a multiple of"
                f" training.workers {self.training.workers}, every rank takes the same number of"
                " images a step"
            )
        share = self.training.batch_size // self.training.workers
        if share % self.training.accumulate:
            raise ValueError(
                f"training.accumulate {self.training.accumulate}: must divide the {share} images of"
                f" a worker (batch_size {self.training.batch_size} / workers"
                f" {self.training.workers}) evenly; take a divisor of {share}"
            )
        return self

    @model_validator(mode="after")
    def fewest_workers_are_fewer(self) -> TrainConfig:
        fewest, workers = self.training.min_workers, self.training.workers
        if fewest is None:
            refuse_unused(
                self.training,
                "training",
                ["resized_batch"],
                "where training.min_workers is unset",
                "set that",
            )
        elif fewest > workers:
            raise ValueError(
                f"training.min_workers {fewest}: must be at most training.workers {workers}; lower"
                " it, or raise that"
            )
        return self

    @model_validator(mode="after")
    def evaluation_heeds_its_settings(self) -> TrainConfig:
        if self.training.evaluation == "between":
            reason = "with training.evaluation between, where the workers evaluate"
            refuse_unused(self.training, "training", EVALUATION_SHARE, reason, "set that to beside")
        if not self.training.patience:
            refuse_unused(
                self.training,
                "training",
                ["min_improvement"],
                "without training.patience",
                "set that",
            )
        return self

    @model_validator(mode="after")
    def augmentation_has_room(self) -> TrainConfig:
        if self.training.batch_size == self.training.workers:
            refuse_unused(
                self.augmentation,
                "augmentation",
                ["mixup"],
                "where a worker has one image a step",
                "raise training.batch_size",
            )
        sides, room = self.augmentation.short_sides, max(map(min, self.canvas.canvases))
        if sides is not None and sides[0] > room:
            raise ValueError(
                f"augmentation.short_sides {shown(sides)}: the canvas holds short sides of at most"
                f" {room} px, so none of these is ever reached; take smaller ones, or a larger"
                " canvas"
            )
        return self

    @model_validator(mode="after")
    def sync_has_gpus(self) -> TrainConfig:
        # Ray Train makes a process group for a single worker too, and torch's SyncBatchNorm then
        # refuses tensors of a CPU.
        if self.model.norm == "sync" and not self.training.gpus_per_worker:
            raise ValueError(
                "model.norm sync: needs training.gpus_per_worker 1, its statistics are summed on"
                " GPUs; on CPUs take frozen or group"
            )
        return self

    @model_validator(mode="after")
    def one_start(self) -> TrainConfig:
        if self.pretrained is not None and self.from_checkpoint is not None:
            raise ValueError(
                f"pretrained {self.pretrained} and from_checkpoint {self.from_checkpoint}: a run"
                " starts from one of them; unset the other"
            )
        if self.from_checkpoint is None and self.from_state == "full":
            raise ValueError(
                "from_state full: does nothing without from_checkpoint, the checkpoint that it is"
                " taken from"
            )
        return self

    @model_validator(mode="after")
    def only_trained_weights_are_fixed(self) -> TrainConfig:
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
    def baselines_bring_their_own(self) -> TrainConfig:
        if self.model.architecture == "retinanet":
            return self
        if self.pretrained is not None:
            raise ValueError(
                f"pretrained {self.pretrained}: {self.model.architecture} trains from scratch,"
                " weight files are for retinanet; unset it"
            )
        others = [name for name in LossConfig.model_fields if name != "box_weight"]
        refuse_unused(
            self.loss,
            "loss",
            others,
            f"in the baseline {self.model.architecture}, which has losses of its own",
        )
        if self.model.architecture == "faster_rcnn":
            refuse_unused(
                self.decode,
                "decode",
                ["top_per_level"],
                "in the baseline faster_rcnn, which keeps 1000 proposals an image",
            )
        return self

    @property
    def evaluation_share(self) -> dict[str, Any]:
        """What an evaluation beside training takes of the machines."""
        chosen = self.training
        gpus = chosen.gpus_per_worker if chosen.evaluation_gpus is None else chosen.evaluation_gpus
        return {
            "workers": chosen.evaluation_workers,
            "cpus_per_worker": chosen.evaluation_cpus,
            "gpus_per_worker": gpus,
        }

    @property
    def run_uri(self) -> str:
        return join(absolute(self.storage), "runs", self.name)


def compiles(training: dict[str, Any], *, device: str, images: int) -> bool:
    """Whether a run over so many images is compiled; `training` is `TrainingConfig`, dumped. On a
    CPU nothing was won that is above the noise (docs/benchmarks.md)."""
    steps = images // training["batch_size"]
    return training["compile"] == "on" or (
        training["compile"] == "auto" and device == "cuda" and steps >= COMPILE_AFTER
    )


def package_of(config: TrainConfig, shard_set: ShardSet) -> dict[str, Any]:
    """What a predictor needs beside the weights: see `detector.predict.write_package`."""
    anchors = config.model.anchors.model_dump(mode="json")
    model = {
        "classes": len(shard_set.categories),
        **config.model.model_dump(mode="json", exclude={"anchors"}),
        **anchors,
    }
    description = {
        "model": model,
        "canvases": [list(canvas) for canvas in config.canvas.canvases],
        "long_side": config.canvas.long_side,
        "decode": config.decode.model_dump(mode="json"),
        "amp": config.training.amp,
    }
    return {
        "description": description,
        "classes": [category._asdict() for category in shard_set.categories],
    }
