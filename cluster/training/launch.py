"""A config -> TorchTrainer -> result; the one function that `train` and `sweep` share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import closing, nullcontext, suppress
from dataclasses import replace
from typing import Any

from cluster.compute.resources import reading_worker
from cluster.errors import PlainError
from cluster.runs import evaluations, lease, parent_checkpoint, run_folder, weight_file
from cluster.runs.config import TrainConfig
from cluster.runs.package import package_of
from cluster.storage.uris import absolute, join
from cluster.training.background_evaluation import Evaluator
from cluster.training.event_channel import Board, Event
from cluster.training.failures import RetriesSpent, plain_failure
from cluster.training.placement import (
    decode_place,
    evaluation_place,
    evaluator_of,
    wanted,
    workers_share,
)
from cluster.training.preflight import Checked, check

RESIZE_LOOK_S = 60.0
"""Seconds between two looks at whether a group with fewer workers than it may have could grow;
growing costs a restart.
"""


def launch(
    config: TrainConfig,
    *,
    checked: Checked | None = None,
    on_event: Callable[[Event], None] | None = None,
    callbacks: Sequence[Any] = (),
) -> evaluations.Evaluation:
    """Train, or continue, or find it finished; Ray must be connected. Returns the run's best.json.

    `checked` is what `check` returned for this configuration, where it was called before.
    `on_event` gets the events of workers and controller (weights, start, workers, resume, step,
    timing, checkpoint, evaluating, evaluation, evaluation_failed, stopped, profile, warning, hang,
    failure, start_failed, waiting, resize) in this process; `callbacks` go to Ray Train. Raises
    `PlainError` with the failing rank's last line when the retries are spent, or at once where they
    would not help (`failures.LASTING`), and `UsageError` where another driver trains the run.
    """
    checked = checked or check(config)
    run = config.run_uri
    finished = run_folder.read_finished(run) is not None
    if not finished or evaluations.waiting(run):
        outcome: Future[None] = Future()
        with (
            lease.Lease(run, lambda reason: end(outcome, PlainError(reason))),
            Board(on_event) as board,
        ):
            evaluator = evaluator_of(config, board)
            if not finished:
                train(
                    config,
                    held(config, checked),
                    outcome,
                    board=board,
                    evaluator=evaluator,
                    callbacks=callbacks,
                )
            evaluator.finish(workers_share(config))
    return evaluations.best_checkpoint(run)


def held(config: TrainConfig, checked: Checked) -> Checked:
    """`checked` as it is now that this driver has the lease: another one may have claimed the
    folder, or trained, between the two.
    """
    begun = bool(run_folder.checkpoints(config.run_uri))
    run_uuid = run_folder.claim(
        config.run_uri, config.model_dump(mode="json"), checked.identity, begun=begun
    )
    return replace(checked, begun=begun, run_uuid=run_uuid)


def train(
    config: TrainConfig,
    checked: Checked,
    outcome: Future[None],
    *,
    board: Any,
    evaluator: Evaluator,
    callbacks: Sequence[Any],
) -> None:
    # Imported here: the sections above are read by `--help`, and this import takes seconds.
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    from cluster.training.supervisor import Retries, Supervisor, is_of_the_start

    training, run = config.training, config.run_uri
    evaluation = evaluation_place(config)
    retries = Retries(run, allowed=training.retries, board=board)
    job = {**job_of(config, checked), "evaluation": evaluation, "board": board}
    scaling = ScalingConfig(
        num_workers=training.workers
        if training.min_workers is None
        else (training.min_workers, training.workers),
        use_gpu=training.gpus_per_worker > 0,
        resources_per_worker=reading_worker(training.cpus_per_worker, training.gpus_per_worker),
        elastic_resize_monitor_interval_s=RESIZE_LOOK_S,
    )

    def attempt() -> None:
        TorchTrainer(
            train_on_worker,
            train_loop_config=job,
            torch_config=TorchConfig(backend="nccl" if training.gpus_per_worker else "gloo"),
            scaling_config=scaling,
            # Our own checkpoints carry a run on, under any Ray version; Ray's record of one attempt
            # is never resumed, so each has a name of its own.
            run_config=RunConfig(
                name=f"attempt-{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 1_000_000:06d}",
                storage_path=join(run, "ray"),
                # The supervisor counts.
                failure_config=FailureConfig(max_failures=-1, controller_failure_limit=-1),
                callbacks=[
                    *callbacks,
                    Supervisor(retries, wait_s=60 * training.wait_minutes, wanted=wanted(config)),
                ],
            ),
        ).fit()

    def fit() -> None:
        while True:
            try:
                return attempt()
            except TrainingFailedError as error:
                if not is_of_the_start(error):
                    raise
                retries.spend_on_start(error.controller_failure)

    try:
        with evaluator if evaluation == "beside" else nullcontext():
            in_thread(fit, outcome)
    except (TrainingFailedError, RetriesSpent) as error:
        raise plain_failure(error, config.name) from error


def job_of(config: TrainConfig, checked: Checked) -> dict[str, Any]:
    """What every worker is told, but for where it evaluates and whom it tells."""
    sections, run = config.model_dump(mode="json"), config.run_uri
    weights, start = None, None
    if config.pretrained is not None and not checked.begun:
        weights = weight_file.publish(
            config.pretrained, run, digest=checked.identity["pretrained"], root=config.storage
        )
    if config.from_checkpoint is not None and not checked.begun:
        start = parent_checkpoint.publish(
            config.from_checkpoint,
            run,
            name=checked.identity["from_checkpoint"],
            root=config.storage,
        )
    return {
        **{
            name: sections[name]
            for name in ("sampling", "loss", "augmentation", "optimizer", "training")
        },
        "decode": decode_place(
            config.training.decode, gpus_per_worker=config.training.gpus_per_worker
        ),
        "data": {"train": absolute(config.data.train), "val": absolute(config.data.val)},
        "run": run,
        "run_uuid": checked.run_uuid,
        "pretrained": weights,
        "start": start,
        "from_state": config.from_state,
        "package": package_of(config, checked.train_set).to_json(),
        "config": sections,
    }


def in_thread(work: Callable[[], Any], outcome: Future[None]) -> None:
    """Wait for `work`, done in a thread so that Ctrl-C reaches this one as `KeyboardInterrupt`: in
    the main thread Ray Train's handler ends the process with code 1 and no word (Ray 2.60). Raises
    what it raised, or what `outcome` was given before.
    """

    def run() -> None:
        try:
            work()
        except BaseException as error:
            end(outcome, error)
        else:
            end(outcome, None)

    threading.Thread(target=run, daemon=True, name="fit").start()
    outcome.result()


def end(outcome: Future[None], error: BaseException | None) -> None:
    """The first end counts."""
    with suppress(InvalidStateError):
        if error is None:
            outcome.set_result(None)
        else:
            outcome.set_exception(error)


def train_on_worker(job: dict[str, Any]) -> None:
    """What Ray Train runs on every worker. The loop is imported there: driver and controller do
    without torch's compiler and the rest (5 CPU seconds each).
    """
    from cluster.training.worker import Worker

    worker = Worker(job)
    # After an error threads would go on reading the epoch that was begun ahead.
    with closing(worker.stream):
        worker.train()
