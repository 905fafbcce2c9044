"""What Tune runs for each trial. A trial of one worker trains in Tune's own process, which then
takes the next trial; one of several workers is a group of Ray Train with a process around it.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from cluster.errors import PlainError
from cluster.runs import evaluations, run_folder
from cluster.runs.config import TrainConfig
from cluster.runs.evaluations import Evaluation
from cluster.runs.events import Event, TrainingWarning
from cluster.runs.identity import identity
from cluster.shards.index import ShardSet
from cluster.training.failures import LASTING
from cluster.training.preflight import Checked
from tune.board import PostingJudge, result_of
from tune.config import SweepConfig
from tune.trials import trial_config

TAKE_S = 1.0
"""Seconds between two looks whether a trial of several workers has ended."""
_NO_MEMORY = ("OutOfMemoryError", "out of memory")


@dataclass(frozen=True)
class TrialEvent:
    """An event of a trial's training, for the driver."""

    trial: str
    event: Event


@dataclass(frozen=True)
class Told:
    """What the driver gives every trial. It has read and checked all of it once."""

    config: TrainConfig
    sweep: SweepConfig
    uri: str
    train_set: ShardSet
    val_set: ShardSet
    weights: str | None
    """Digest of the weight file or checkpoint that trials start from."""
    mailbox: Any
    """Takes `TrialEvent`s."""
    board: Any
    local_size: int
    """Trials that share a node."""


def run_trial(told: Told, sample: str) -> None:
    """The training of one sample (JSON), reported to Tune evaluation by evaluation.

    A failure that a restart cannot fix is reported too, and the process goes on with the next
    trial; any other is raised, and Tune starts the trial again.
    """
    from ray.tune import report

    config = trial_config(told.config, told.sweep, told.uri, json.loads(sample))
    already = run_folder.read_finished(config.run_uri) is not None
    try:
        _train(told, config)
    except Exception as error:
        diverged = isinstance(error, ArithmeticError) or _lacks_memory(error)
        # Of a group of workers the restarts were made by Ray Train.
        if not (diverged or isinstance(error, LASTING) or told.sweep.workers > 1):
            raise
        exit_code = error.exit_code if isinstance(error, PlainError) else 1
        report({"failed": _one_line(error), "exit_code": exit_code, "diverged": diverged})
        return
    if already:
        # The sweep was killed between the end of the training and its record.
        for evaluation in evaluations.read(config.run_uri):
            report(result_of(evaluation))


def _train(told: Told, config: TrainConfig) -> None:
    try:
        _train_once(told, config)
    except Exception as error:
        parts = _more_parts(config)
        if parts is None or not _lacks_memory(error):
            raise
        # The traceback holds the tensors for which there was no room.
        error.__traceback__ = None
        text = f"the batch did not fit into memory; its images now run in {parts} parts"
        _tell(told, config.name, TrainingWarning(text))
        training = config.training.model_copy(update={"accumulate": parts})
        _train_once(told, config.model_copy(update={"training": training}))


def _train_once(told: Told, config: TrainConfig) -> Evaluation:
    from cluster.training import launch
    from cluster.training.alone import train_alone

    same = identity(config, told.train_set, told.val_set, weights=told.weights)
    begun = bool(run_folder.checkpoints(config.run_uri))
    checked = Checked(told.train_set, same, begun, run_uuid="")

    def tell(event: Event) -> None:
        _tell(told, config.name, event)

    if told.sweep.workers == 1:
        return train_alone(
            config,
            checked,
            tell=tell,
            judge=lambda evaluation: _report(told, config.name, result_of(evaluation)),
            local_size=told.local_size,
        )
    judge = PostingJudge(told.board, config.name)
    with ThreadPoolExecutor(1) as pool:
        group = pool.submit(launch.launch, config, checked=checked, on_event=tell, judge=judge)
        _relay(told, config.name, group)
        return group.result()


def _relay(told: Told, trial: str, group: Any) -> None:
    """Report what the workers post, until their group has ended."""
    import ray

    while True:
        ended = group.done()
        result: Any = ray.get(told.board.take.remote(trial, 0.0 if ended else TAKE_S))
        if result is not None:
            _report(told, trial, result)
        elif ended:
            return


def _report(told: Told, trial: str, result: dict[str, Any]) -> str | None:
    """Report to Tune, and the verdict of the driver."""
    import ray
    from ray.tune import report

    # It returns when the driver has asked for the next result, so the verdict is there or on its
    # way.
    report(result)
    return ray.get(told.board.verdict.remote(trial, result["images_seen"]))


def _tell(told: Told, trial: str, event: Event) -> None:
    told.mailbox.put.remote(TrialEvent(trial, event))


def _lacks_memory(error: BaseException) -> bool:
    return any(words in f"{type(error).__name__}: {error}" for words in _NO_MEMORY)


def _more_parts(config: TrainConfig) -> int | None:
    """The next larger number of parts into which a worker's images can be split evenly."""
    training = config.training
    share = training.batch_size // training.workers
    larger = range(2 * training.accumulate, share + 1)
    return next((parts for parts in larger if share % parts == 0), None)


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[-1] if lines else "no message"
    return text if isinstance(error, PlainError) else f"{type(error).__name__}: {text}"
