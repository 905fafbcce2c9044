"""The settings of the training loop and of its processes: length, batch, evaluation, checkpoints,
workers, failures.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from detector.config import Section

COMPILE_AFTER = 3000
"""Steps of a run from which `compile` auto compiles on a GPU. Compiling costs as much time as 970
to 3450 steps gain (docs/benchmarks.md).
"""
MOST_DECODE_THREADS = 8
"""Beside a GPU. Decoding for 443 images/s takes 1.7 cores; more threads wait for each other."""
PROFILE_AFTER = 5
"""Steps before a profile begins: the first ones allocate memory and may compile."""

Auto = Literal["auto"]
"""Decided when the cluster is known, see `cluster.training.automatic`."""
CompileMode = Literal["auto", "on", "off"]
EvaluationPlace = Literal["beside", "between"]
DecodePlace = Literal["threads", "tasks"]
ResizedBatch = Literal["keep", "scale"]


class TrainingOptions(Section):
    """Length, batch, evaluation, checkpoints, workers and failures of a training."""

    epochs: int = Field(default=12, ge=1, le=10_000, description="passes over the training images")
    batch_size: int = Field(
        default=16,
        ge=1,
        le=65_536,
        description="images of the global batch, split evenly over the workers",
    )
    accumulate: int = Field(
        default=1,
        ge=1,
        le=65_536,
        description=(
            "equal parts into which each worker splits its images of a step; the parts run one"
            " after the other, which needs the memory of one part"
        ),
    )
    seed: int = Field(
        default=0,
        ge=0,
        lt=2**63,
        description="seed of the initial weights, the image order and the augmentation",
    )
    amp: bool = Field(
        default=True,
        description=(
            "run the network in bfloat16 (autocast) if that is faster on every device; losses and"
            " weights stay float32"
        ),
    )
    compile: CompileMode = Field(
        default="auto",
        description=(
            "compile network and loss with torch.compile, which takes about a minute and needs a"
            f" C++ compiler; auto: on a GPU, in a run of {COMPILE_AFTER} steps or more"
        ),
    )
    skip_nonfinite: int = Field(
        default=0,
        ge=0,
        le=1_000_000,
        description=(
            "number of updates with a non-finite loss or gradient that are skipped with a warning"
            " before the run stops"
        ),
    )
    evaluate_every: int = Field(
        default=1,
        ge=1,
        description="epochs between evaluations on data.val; the last epoch is always evaluated",
    )
    evaluation: Literal["auto", EvaluationPlace] = Field(
        default="auto",
        description=(
            "where checkpoints are evaluated: beside training in separate processes, between"
            " epochs by the workers, or auto: beside if the cluster has room for more processes"
            " than the workers, else between. AP is the same. Sweeps evaluate between epochs"
        ),
    )
    evaluation_workers: int = Field(
        default=1,
        ge=1,
        le=4096,
        description="processes that evaluate a checkpoint beside training; they split the images",
    )
    evaluation_cpus: float = Field(
        default=0.75,
        gt=0,
        le=256,
        description="CPUs that each evaluation process books; reading needs 0.25 more in each",
    )
    evaluation_gpus: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="GPUs that each evaluation process books; unset: as many as a worker",
    )
    patience: int = Field(
        default=0,
        ge=0,
        le=10_000,
        description=(
            "evaluations without a better AP after which training stops, at the end of an epoch;"
            " 0: never"
        ),
    )
    min_improvement: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="AP must rise by more than this, 0..1, to count as better for patience",
    )
    checkpoint_every: int = Field(
        default=1,
        ge=1,
        description="epochs between checkpoints; an evaluation takes a checkpoint too",
    )
    checkpoint_images: int = Field(
        default=0, ge=0, description="images between checkpoints within an epoch; 0: no image limit"
    )
    checkpoint_minutes: float = Field(
        default=0,
        ge=0,
        description="minutes between checkpoints within an epoch; 0: no time limit",
    )
    checkpoint_folder: str | None = Field(
        default=None,
        pattern="^/",
        description=(
            "absolute path of a folder on the disk of each node, where checkpoints wait for their"
            " upload; unset: below TMPDIR or /tmp"
        ),
    )
    keep_checkpoints: int = Field(
        default=2,
        ge=1,
        le=1000,
        description="newest checkpoints to keep, in addition to the best one",
    )
    log_steps: int = Field(default=10, ge=1, description="steps averaged in one progress line")
    log_seconds: float = Field(
        default=10.0,
        ge=0,
        description="minimum seconds between progress lines where the output is not a terminal",
    )
    profile_steps: int = Field(
        default=0,
        ge=0,
        le=1000,
        description=(
            "steps of rank 0 that torch's profiler records into the run's folder, after the first"
            f" {PROFILE_AFTER}; 0: no profile"
        ),
    )
    workers: Annotated[int, Field(ge=1, le=4096)] | Auto = Field(
        default="auto",
        description=(
            "processes; each is one rank of the data-parallel training. auto: one for each GPU;"
            " without GPUs one for each node, but two on a single node. They are fewer where"
            " training.batch_size could not be split evenly or would leave a worker one image"
        ),
    )
    min_workers: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description=(
            "fewest workers with which training starts, and continues while nodes are missing; it"
            " grows back to training.workers when they return; unset: always training.workers"
        ),
    )
    resized_batch: ResizedBatch = Field(
        default="keep",
        description=(
            "the global batch while there are fewer workers than training.workers: keep (each"
            " worker takes more images, in parts of the usual size) or scale (each worker takes as"
            " many images as before; the learning rate scales with the batch for sgd, with its"
            " square root for adamw)"
        ),
    )
    cpus_per_worker: float = Field(
        default=0.75,
        gt=0,
        le=256,
        description="CPUs that each worker books; reading needs 0.25 more in each",
    )
    gpus_per_worker: Annotated[int, Field(ge=0, le=1)] | Auto = Field(
        default="auto",
        description=(
            "GPUs that each worker books: 0 (gloo) or 1 (nccl); auto: 1 if the cluster has GPUs for"
            " all workers"
        ),
    )
    decode: Literal["auto", DecodePlace] = Field(
        default="auto",
        description=(
            "where images are decoded and augmented: in threads beside each worker, in Ray Data"
            " tasks on any node, or auto: tasks if the workers have GPUs and the cluster has nodes"
            " without any, else threads. The pixels are the same"
        ),
    )
    decode_threads: Annotated[int, Field(ge=1, le=64)] | Auto = Field(
        default="auto",
        description=(
            "threads that decode and augment beside each worker; auto: 1, and beside a GPU as many"
            " as its node has CPUs for each GPU, less one for the worker, up to"
            f" {MOST_DECODE_THREADS}"
        ),
    )
    retries: int = Field(
        default=2,
        ge=0,
        description=(
            "consecutive failures without a new checkpoint between them after which the workers"
            " are still restarted from the newest checkpoint"
        ),
    )
    hang_minutes: float = Field(
        default=15.0,
        ge=0,
        description=(
            "minutes without a step or an evaluated batch after which a worker counts as hanging"
            " and is killed; the first step gets four times as long; 0: never"
        ),
    )
    wait_minutes: float = Field(
        default=60.0,
        ge=0,
        description="minutes to wait for nodes when no worker is left, before the training ends",
    )


class TrainingConfig(TrainingOptions):
    """`TrainingOptions` with every `auto` decided that depends on the cluster."""

    # pyright does not see that sections are frozen, which lets a field be narrower here.
    workers: int = Field(default=2, ge=1, le=4096)  # pyright: ignore[reportIncompatibleVariableOverride]
    gpus_per_worker: int = Field(default=0, ge=0, le=1)  # pyright: ignore[reportIncompatibleVariableOverride]
    decode_threads: int = Field(default=1, ge=1, le=64)  # pyright: ignore[reportIncompatibleVariableOverride]


EVALUATION_SHARE = ("evaluation_workers", "evaluation_cpus", "evaluation_gpus")
"""Fields that have an effect only where checkpoints are evaluated beside training."""
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
"""Fields that change how a run is executed and not its result; they may change when a run is
continued.
"""


def compiles(mode: CompileMode, *, batch_size: int, device: str, images: int) -> bool:
    """Whether a run over so many images compiles. On a CPU compiling gained nothing that is above
    the noise (docs/benchmarks.md).
    """
    steps = images // batch_size
    return mode == "on" or (mode == "auto" and device == "cuda" and steps >= COMPILE_AFTER)
