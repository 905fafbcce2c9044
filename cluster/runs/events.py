"""What a training says while it runs: one frozen class for each kind of event.

Workers, the controller and the driver's evaluator create events; the driver prints them
(`cluster.training.console`) and records them in MLflow (`cluster.tracking.training_run`). Ray
pickles them between processes. Only `StepsDone` is stored too: recent ones are part of every
checkpoint, so that MLflow can be backfilled after an outage.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from cluster.runs.evaluations import Evaluation
from cluster.runs.pictures import BatchPicture

STEPS_VERSION = 1
"""Version of the stored form of `StepsDone`. Lines without one were written before it existed."""


@dataclass(frozen=True)
class WeightsLoaded:
    """A new run starts from a weight file or from another run's checkpoint."""

    uri: str
    source: str
    """Which project wrote the file, see `detector.weights.SIGNS`."""
    loaded: int
    """Number of the model's tensors that have the file's values now."""
    reinitialised: tuple[str, ...] = ()
    """Tensors that keep the model's own start because the number of classes differs."""
    missing: tuple[str, ...] = ()
    """Tensors of the model that the file does not have."""
    unused: tuple[str, ...] = ()
    """Tensors of the file that the model does not have."""
    notes: tuple[str, ...] = ()
    """Settings that would match the file better."""


@dataclass(frozen=True)
class Started:
    """All workers are ready and begin to train, at the run's start or after a restart."""

    ranks: int
    """Workers of this group."""
    workers: int
    """Workers that the configuration asks for."""
    batch_size: int
    """Images of the global batch that the configuration asks for."""
    batch: int
    """Images of this group's global batch."""
    parts: int
    """Parts in which each worker runs its share of the batch."""
    threads: int
    """CPU threads of each worker."""
    precision: str
    """In words."""
    images_seen: int
    images_total: int
    epoch: int


@dataclass(frozen=True)
class WorkerProcess:
    """Where one worker runs."""

    rank: int
    node: str
    """IP address."""
    pid: int

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.node} (pid {self.pid})"


@dataclass(frozen=True)
class WorkersPlaced:
    """The processes of a worker group that starts to train, in the order of ranks."""

    workers: tuple[WorkerProcess, ...]


@dataclass(frozen=True)
class Resumed:
    """Training continues from a checkpoint."""

    checkpoint: str
    """Its URI."""
    images_seen: int
    epoch: int


@dataclass(frozen=True)
class BatchSeen:
    """What the network of rank 0 got in one of the first batches of the run."""

    number: int
    """From 0."""
    canvas: tuple[int, int]
    """(height, width) px."""
    pictures: tuple[BatchPicture, ...]
    """Some of the batch."""


@dataclass(frozen=True)
class StepsDone:
    """Means over the steps since the last event of this kind, as rank 0 sees them; the losses are
    those of the global batch. In a stored line NaN stands for a metric that the line lacks.
    """

    images_seen: int
    epoch: float
    """Epochs done, with the fraction of the current one."""
    images_per_second: float
    """Of all ranks together."""
    data_share: float
    """Share of the time in which rank 0 waited for data, 0..1."""
    step_share: float
    """Share of the time in steps."""
    rest_share: float
    """Share of the time in everything else: checkpoints, reports."""
    classification: float
    """Classification loss, normalised."""
    box: float
    """Box loss, normalised, without its weight."""
    positives: float
    """Positive anchors of the global batch."""
    gradient_norm: float
    """Before clipping."""
    loss_normalizer: float
    """Moving average of the positive anchors."""
    learning_rate: float

    def to_json(self) -> dict[str, Any]:
        values = {k: v for k, v in asdict(self).items() if not math.isnan(v)}
        return {"version": STEPS_VERSION, **values}

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> StepsDone:
        """Reads a line of any version. `KeyError` without `images_seen`."""
        metrics = {
            metric.name: float(line.get(metric.name, math.nan))
            for metric in fields(cls)
            if metric.name != "images_seen"
        }
        return cls(images_seen=line["images_seen"], **metrics)


def stored_steps(lines: Iterable[Any]) -> list[StepsDone]:
    """The readable ones among a checkpoint's lines. They serve only the record in MLflow, so a line
    of another version that cannot be read must not stop the run.
    """
    steps = []
    for line in lines:
        try:
            steps.append(StepsDone.from_json(line))
        except (KeyError, TypeError, ValueError, AttributeError):
            continue
    return steps


@dataclass(frozen=True)
class RankTiming:
    """Where one rank's time went in the interval that ends at `images_seen`, by its own clock."""

    worker: WorkerProcess
    images_seen: int
    seconds: float
    """Length of the interval."""
    data_seconds: float
    """Waiting for data."""
    step_seconds: float
    """In steps, in which all ranks wait for the slowest."""
    forward_seconds: float
    """Mean of a step's forward passes, in which no rank waits for another."""
    system: dict[str, float] = field(default_factory=dict)
    """CPU, memory and GPU load of the node under the names of MLflow's own monitor."""


@dataclass(frozen=True)
class CheckpointStored:
    """A checkpoint is complete in storage."""

    uri: str
    images_seen: int


@dataclass(frozen=True)
class EvaluationStarted:
    """A checkpoint is being evaluated beside training."""

    images_seen: int
    epoch: int
    waiting: int
    """Checkpoints that wait for their evaluation after this one."""


@dataclass(frozen=True)
class EvaluationDone:
    """A checkpoint was evaluated."""

    evaluation: Evaluation


@dataclass(frozen=True)
class EvaluationFailed:
    """An evaluation beside training failed, which does not stop training."""

    subject: str
    """What failed, in words."""
    reason: str
    consequence: str


@dataclass(frozen=True)
class StoppedEarly:
    """Training ends before its last epoch."""

    images_seen: int
    epoch: int
    reason: str


@dataclass(frozen=True)
class ProfileStored:
    """A torch profile of some steps is in storage."""

    uri: str
    steps: int


@dataclass(frozen=True)
class TrainingWarning:
    """Something that the user should know and that does not stop training."""

    text: str


@dataclass(frozen=True)
class WorkerHung:
    """A worker made no progress for too long and ends itself."""

    worker: WorkerProcess
    seconds: float
    """Since its last progress."""
    location: str
    """Where its thread is, in words."""


@dataclass(frozen=True)
class WorkerFailed:
    """A worker failed while it trained."""

    worker: WorkerProcess
    reason: str
    traceback_uri: str
    """Empty where storage did not take the traceback."""
    consequence: str


@dataclass(frozen=True)
class GroupStartFailed:
    """A worker group failed before its workers trained."""

    subject: str
    """What failed, in words."""
    reason: str
    traceback_uri: str
    """Empty where storage did not take the traceback."""
    consequence: str


@dataclass(frozen=True)
class WaitingForNodes:
    """The cluster has no room for the workers."""

    seconds: float
    """Waited so far."""
    wanted: str
    """The fewest workers with which training starts, in words."""


@dataclass(frozen=True)
class GroupResized:
    """The worker group restarts with another number of workers."""

    before: int
    workers: int
    """The new number."""
    checkpointed: bool
    """Whether a checkpoint was stored just before."""


Event = (
    WeightsLoaded
    | Started
    | WorkersPlaced
    | Resumed
    | BatchSeen
    | StepsDone
    | RankTiming
    | CheckpointStored
    | EvaluationStarted
    | EvaluationDone
    | EvaluationFailed
    | StoppedEarly
    | ProfileStored
    | TrainingWarning
    | WorkerHung
    | WorkerFailed
    | GroupStartFailed
    | WaitingForNodes
    | GroupResized
)
Tell = Callable[[Event], None]
"""Takes an event; returns at once and never fails."""
