"""A config -> TorchTrainer -> result; the one function that `train` and `sweep` share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, model_validator

from cluster import pretrained, run_folder, storage
from cluster.errors import UsageError
from cluster.failures import plain_failure, stop_at_lasting_errors
from cluster.plan import READ_CPUS
from cluster.shards import ShardSet, open_shard_set
from detector.config import AugmentationConfig, CanvasConfig, DecodeConfig, LossConfig, ModelConfig, OptimizerConfig, Section, refuse_unused, shown

Event = dict[str, Any]


class DataConfig(Section):
    """Shard sets, as written by `prepare`."""

    train: str = Field(description="URI of the shard set to train on (a local folder or s3://bucket/key)")
    val: str = Field(description="URI of the shard set to evaluate on")


class SamplingConfig(Section):
    """How often the images of data.train occur in an epoch: each once, unless said otherwise. An epoch has the same number of images every time."""

    repeat_threshold: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="images of classes that a smaller share of the images has occur more often, by the square root of threshold / share "
        "(LVIS: 0.001); 0: none",
    )
    source_weights: dict[str, float] = Field(
        {}, description='how often the images of a source of the shard set occur, as JSON such as {"night": 2, "day": 0.5}; 1 where it is not named'
    )

    @model_validator(mode="after")
    def weights_are_positive(self) -> SamplingConfig:
        for name, weight in self.source_weights.items():
            if not 0 < weight <= 1000:
                raise ValueError(f"sampling.source_weights {name} {weight:g}: must be above 0 and at most 1000; else prepare a set without it")
        return self


class TrainingConfig(Section):
    """How long, how wide, how often."""

    epochs: int = Field(12, ge=1, le=10_000, description="passes over the training images")
    batch_size: int = Field(16, ge=1, le=65_536, description="images of the global batch, shared evenly by the workers")
    accumulate: int = Field(
        1, ge=1, le=65_536, description="equal parts in which a worker runs its share of the batch, one after the other: the memory of one part"
    )
    seed: int = Field(0, ge=0, description="covers weights, order and augmentation")
    amp: bool = Field(True, description="bfloat16 autocast in the network; losses and weights stay float32")
    evaluate_every: int = Field(1, ge=1, description="epochs between evaluations on data.val; the last epoch is always evaluated")
    checkpoint_every: int = Field(1, ge=1, description="epochs between checkpoints; an evaluation takes one too")
    checkpoint_images: int = Field(0, ge=0, description="images between checkpoints inside an epoch; 0: none inside")
    keep_checkpoints: int = Field(2, ge=1, le=1000, description="newest checkpoints kept, beside the best")
    log_steps: int = Field(10, ge=1, description="steps averaged in one line of progress")
    log_seconds: float = Field(10.0, ge=0, description="least seconds between lines of progress where the output is not a terminal")
    workers: int = Field(2, ge=1, le=4096, description="processes; each is one rank of the data-parallel training")
    cpus_per_worker: float = Field(0.75, gt=0, le=256, description="CPUs each worker books; reading needs 0.25 more a worker")
    gpus_per_worker: float = Field(0, ge=0, le=1, description="GPUs each worker books: 0 (gloo) or 1 (nccl)")
    decode: Literal["auto", "threads", "tasks"] = Field(
        "auto",
        description="where images are decoded and augmented: in threads beside each worker, in tasks of Ray Data on any node, or auto: "
        "tasks where workers have GPUs and nodes without any are there, else threads; the pixels are the same",
    )
    decode_threads: int = Field(1, ge=1, le=64, description="threads that decode and augment beside each worker")
    retries: int = Field(2, ge=0, description="restarts of the worker group after a failure, each from the newest checkpoint")


EXECUTION = {
    "workers",
    "accumulate",
    "cpus_per_worker",
    "gpus_per_worker",
    "decode",
    "decode_threads",
    "retries",
    "log_steps",
    "log_seconds",
    "keep_checkpoints",
    "checkpoint_every",
    "checkpoint_images",
}
"""Fields of `TrainingConfig` that change how a run is executed and not what it is; they may differ when a run is continued."""


class TrainConfig(Section):
    """One training run."""

    name: str = Field(
        "train", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", description="the run's name; the same name and configuration continue the run"
    )
    storage: str = Field("runs", description="folder or s3:// prefix that holds all runs")
    data: DataConfig
    sampling: SamplingConfig = SamplingConfig()
    model: ModelConfig = ModelConfig()
    pretrained: str | None = Field(
        None,
        description="weight file a new run starts from, torchvision's, detectron2's or our own: a path, s3://bucket/key or https:// URL; unset: none",
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
                f"training.batch_size {self.training.batch_size}: must be a multiple of training.workers {self.training.workers}, "
                "every rank takes the same number of images a step"
            )
        share = self.training.batch_size // self.training.workers
        if share % self.training.accumulate:
            raise ValueError(
                f"training.accumulate {self.training.accumulate}: must divide the {share} images of a worker "
                f"(batch_size {self.training.batch_size} / workers {self.training.workers}) evenly; take a divisor of {share}"
            )
        return self

    @model_validator(mode="after")
    def augmentation_has_room(self) -> TrainConfig:
        if self.training.batch_size == self.training.workers:
            refuse_unused(self.augmentation, "augmentation", ["mixup"], "where a worker has one image a step", "raise training.batch_size")
        sides, room = self.augmentation.short_sides, max(map(min, self.canvas.canvases))
        if sides is not None and sides[0] > room:
            raise ValueError(
                f"augmentation.short_sides {shown(sides)}: the canvas holds short sides of at most {room} px, so none of these is ever reached; "
                "take smaller ones, or a larger canvas"
            )
        return self

    @model_validator(mode="after")
    def sync_has_gpus(self) -> TrainConfig:
        # Ray Train makes a process group for a single worker too, and torch's SyncBatchNorm then refuses tensors of a CPU.
        if self.model.norm == "sync" and not self.training.gpus_per_worker:
            raise ValueError("model.norm sync: needs training.gpus_per_worker 1, its statistics are summed on GPUs; on CPUs take frozen or group")
        return self

    @model_validator(mode="after")
    def only_trained_weights_are_fixed(self) -> TrainConfig:
        fixed = "norm frozen" if self.model.norm == "frozen" else f"frozen_stages {self.model.frozen_stages}" if self.model.frozen_stages else ""
        if fixed and self.pretrained is None:
            remedy = "give --pretrained, or" if self.model.architecture == "retinanet" else "take"
            raise ValueError(f"model.{fixed}: fixes weights that nothing has trained; {remedy} norm batch or group, frozen_stages 0")
        return self

    @model_validator(mode="after")
    def baselines_bring_their_own(self) -> TrainConfig:
        if self.model.architecture == "retinanet":
            return self
        if self.pretrained is not None:
            raise ValueError(f"pretrained {self.pretrained}: {self.model.architecture} trains from scratch, weight files are for retinanet; unset it")
        others = [name for name in LossConfig.model_fields if name != "box_weight"]
        refuse_unused(self.loss, "loss", others, f"in the baseline {self.model.architecture}, which has losses of its own")
        if self.model.architecture == "faster_rcnn":
            refuse_unused(self.decode, "decode", ["top_per_level"], "in the baseline faster_rcnn, which keeps 1000 proposals an image")
        return self

    @property
    def run_uri(self) -> str:
        return storage.join(storage.absolute(self.storage), "runs", self.name)


def identity(config: TrainConfig, train_set: ShardSet, val_set: ShardSet, *, weights: str | None) -> dict[str, Any]:
    """What makes two runs the same run: hyper-parameters and the digests of the data and of the weight file; not worker counts and URIs."""
    fields = config.model_dump(mode="json", exclude={"name": True, "storage": True, "data": True, "training": EXECUTION})
    return {**fields, "pretrained": weights, "data": {"train": train_set.digest, "val": val_set.digest}}


def package_of(config: TrainConfig, shard_set: ShardSet) -> dict[str, Any]:
    """What a predictor needs beside the weights: see `detector.predict.write_package`."""
    anchors = config.model.anchors.model_dump(mode="json")
    model = {"classes": len(shard_set.categories), **config.model.model_dump(mode="json", exclude={"anchors"}), **anchors}
    description = {
        "model": model,
        "canvases": [list(canvas) for canvas in config.canvas.canvases],
        "long_side": config.canvas.long_side,
        "decode": config.decode.model_dump(mode="json"),
        "amp": config.training.amp,
    }
    return {"description": description, "classes": [category._asdict() for category in shard_set.categories]}


@dataclass(frozen=True)
class Checked:
    """A configuration that may be launched: what `check` opened and read on the way."""

    train_set: ShardSet
    identity: dict[str, Any]
    begun: bool
    """Whether the run has a checkpoint to go on from."""


def check(config: TrainConfig) -> Checked:
    """Everything that can be wrong before a machine is spent: the data, the storage, the weight file, the run's name."""
    for uri in (config.data.train, config.data.val):
        storage.check_reachable(uri)
    train_set, val_set = open_shard_set(config.data.train), open_shard_set(config.data.val)
    if not train_set.num_rows or not val_set.num_rows:
        empty = "data.train" if not train_set.num_rows else "data.val"
        raise UsageError(f"{empty}: holds no images; prepare it from a JSON that lists some")
    if train_set.categories != val_set.categories:
        raise UsageError(
            f"data.val {config.data.val}: its categories {val_set.class_names[:5]} are not those of data.train {train_set.class_names[:5]}; "
            "prepare both from JSON files with the same categories"
        )
    unknown = sorted(set(config.sampling.source_weights) - set(train_set.source_names))
    if unknown:
        known = ", ".join(train_set.source_names)
        raise UsageError(f"sampling.source_weights {unknown[0]}: is no source of data.train, which has {known}; name one of these")
    storage.check_writable(config.run_uri)
    begun = bool(run_folder.checkpoints(config.run_uri))
    weights = weights_digest(config, train_set, begun=begun)
    same = identity(config, train_set, val_set, weights=weights)
    run_folder.claim(config.run_uri, config.model_dump(mode="json"), same, begun=begun)
    return Checked(train_set, same, begun)


def weights_digest(config: TrainConfig, train_set: ShardSet, *, begun: bool) -> str | None:
    """sha256 of the weight file, which must be there and fit until the run has `begun`; after that it may be gone, but not be another one."""
    if config.pretrained is None:
        return None
    try:
        return pretrained.check(config.pretrained, None if begun else package_of(config, train_set)["description"]["model"])
    except UsageError:
        before = run_folder.read(config.run_uri, run_folder.CONFIG)
        if not begun or before is None or before["config"].get("pretrained") != config.pretrained:
            raise
        return before["identity"]["pretrained"]


def launch(
    config: TrainConfig, *, checked: Checked | None = None, on_event: Callable[[Event], None] | None = None, callbacks: Sequence[Any] = ()
) -> dict[str, Any]:
    """Train, or continue, or find it finished; Ray must be connected. Returns the run's best.json.

    `checked` is what `check` returned for this configuration, where it was called before. `on_event` gets the workers' events (weights, start,
    resume, step, checkpoint, evaluation) in this process; `callbacks` go to Ray Train.
    Raises `PlainError` with the first failing rank's last line when the retries are spent, or at once where they would not help (`LASTING`).
    """
    checked = checked or check(config)
    run = config.run_uri
    if run_folder.read(run, run_folder.FINISHED) is not None:
        return run_folder.best_checkpoint(run)

    # Imported here: the sections above are read by `--help`, and this import takes seconds.
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    training = config.training
    data = {"train": storage.absolute(config.data.train), "val": storage.absolute(config.data.val)}
    sections = config.model_dump(mode="json")
    weights = None
    if config.pretrained is not None and not checked.begun:
        weights = pretrained.publish(config.pretrained, run, digest=checked.identity["pretrained"], root=config.storage)
    with Board(on_event) as board:
        job = {
            **{name: sections[name] for name in ("sampling", "loss", "augmentation", "optimizer", "training")},
            "decode": decode_place(training.decode, gpus_per_worker=training.gpus_per_worker),
            "data": data,
            "run": run,
            "pretrained": weights,
            "package": package_of(config, checked.train_set),
            "config": sections,
            "board": board,
        }
        trainer = TorchTrainer(
            train_on_worker,
            train_loop_config=job,
            torch_config=TorchConfig(backend="nccl" if training.gpus_per_worker else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=training.workers,
                use_gpu=training.gpus_per_worker > 0,
                resources_per_worker={"CPU": training.cpus_per_worker, **({"GPU": training.gpus_per_worker} if training.gpus_per_worker else {})},
            ),
            # Our own checkpoints carry a run on, under any Ray version; Ray's record of one attempt is never resumed, so each has a name of its own.
            run_config=RunConfig(
                name=f"attempt-{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 1_000_000:06d}",
                storage_path=storage.join(run, "ray"),
                failure_config=FailureConfig(max_failures=training.retries, controller_failure_limit=2),
                callbacks=[*callbacks, stop_at_lasting_errors()],
            ),
        )
        try:
            trainer.fit()
        except TrainingFailedError as error:
            raise plain_failure(error, config.name, retries=training.retries) from error
    return run_folder.best_checkpoint(run)


def train_on_worker(job: dict[str, Any]) -> None:
    """What Ray Train runs on every worker. The loop is imported there: driver and controller do without torch's compiler and the rest (5 CPU
    seconds each).
    """
    from cluster.worker import Worker

    worker = Worker(job)
    # After an error threads would go on reading the epoch that was begun ahead.
    with closing(worker.stream):
        worker.train()


def decode_place(choice: str, *, gpus_per_worker: float) -> str:
    """`threads` or `tasks`, see `TrainingConfig.decode`; Ray must be connected."""
    import ray

    if choice != "auto":
        return choice
    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return "tasks" if gpus_per_worker and any(held.get("CPU") and not held.get("GPU") for held in resources) else "threads"


def cpus_needed(config: TrainConfig) -> float:
    """What a whole training books; tasks that decode need a core of their own."""
    return config.training.workers * (config.training.cpus_per_worker + READ_CPUS) + (config.training.decode == "tasks")


class Board:
    """Carries events from the workers to a function in the driver: an actor collects them, a thread fetches them twice a second."""

    def __init__(self, on_event: Callable[[Event], None] | None):
        self.on_event = on_event

    def __enter__(self) -> Any:
        if self.on_event is None:
            return None
        import ray

        self.actor = ray.remote(num_cpus=0, max_concurrency=4)(EventList).remote()
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.fetch, daemon=True, name="events")
        self.thread.start()
        return self.actor

    def __exit__(self, *_: object) -> None:
        if self.on_event is not None:
            self.stopped.set()
            self.thread.join(timeout=30)

    def fetch(self) -> None:
        import ray

        while True:
            last = self.stopped.wait(0.5)
            for event in ray.get(self.actor.take.remote()):
                self.on_event(event)
            if last:
                return


class EventList:
    """The actor of `Board`."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def put(self, event: Event) -> None:
        self.events.append(event)

    def take(self) -> list[Event]:
        taken, self.events = self.events, []
        return taken
