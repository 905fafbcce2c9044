"""Launches a training: a configuration -> Ray's TorchTrainer -> the run's best checkpoint. `train`
and `sweep` share it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import closing, nullcontext, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cluster.compute.resources import reading_worker
from cluster.errors import PlainError
from cluster.runs import evaluations, lease, parent_checkpoint, run_folder, weight_file
from cluster.runs.config import TrainConfig
from cluster.runs.events import Event
from cluster.runs.identity import default_identity
from cluster.runs.job import Job
from cluster.runs.package import package_of
from cluster.storage import files
from cluster.storage.uris import absolute, join
from cluster.training.background_evaluation import ActorEvaluator, BackgroundEvaluation
from cluster.training.event_channel import EventChannel, Sender
from cluster.training.failures import RetriesSpent, plain_failure
from cluster.training.placement import (
    decode_place,
    describe_workers,
    evaluation_place,
    workers_share,
)
from cluster.training.preflight import Checked, check

if TYPE_CHECKING:
    from cluster.training.evaluation import Judge
    from cluster.training.worker import Worker

RESIZE_LOOK_S = 60.0
"""Seconds between two looks whether a group with fewer workers than configured could grow; growing
costs a restart.
"""


def launch(
    config: TrainConfig,
    *,
    checked: Checked | None = None,
    on_event: Callable[[Event], None] | None = None,
    judge: Judge | None = None,
    callbacks: Sequence[Any] = (),
    pictures: bool = False,
) -> evaluations.Evaluation:
    """Train, continue, or find the run finished; Ray must be connected. Returns the run's best
    evaluation.

    `checked` is the result of an earlier `check` of this configuration. `on_event` gets the events
    of workers and controller (`cluster.runs.events`) in this process. The `judge` travels to rank
    0, see `EpochEvaluations`; `callbacks` go to Ray Train. With `pictures` the first batches are
    events too.
    Raises `PlainError` with the failing rank's last line when the retries are spent, or immediately
    if a restart cannot fix the failure (`failures.LASTING`), and `UsageError` if another driver
    trains the run.
    """
    checked = checked or check(config)
    run = config.run_uri
    finished = run_folder.read_finished(run) is not None
    if not finished or evaluations.waiting(run):
        outcome: Future[None] = Future()
        with (
            lease.Lease(run, lambda reason: _set_outcome(outcome, PlainError(reason))),
            EventChannel(on_event) as mailbox,
        ):
            background = BackgroundEvaluation(run, _evaluator(config), tell=Sender(mailbox))
            if not finished:
                _train(
                    config,
                    claim_again(config, checked),
                    outcome,
                    mailbox=mailbox,
                    background=background,
                    judge=judge,
                    callbacks=callbacks,
                    pictures=pictures,
                )
            background.finish(workers_share(config))
    return evaluations.best_checkpoint(run)


def claim_again(config: TrainConfig, checked: Checked) -> Checked:
    """`checked`, brought up to date now that this driver has the lease: another driver may have
    claimed the folder, or trained, in between.
    """
    begun = bool(run_folder.checkpoints(config.run_uri))
    run_uuid = run_folder.claim(
        config.run_uri,
        config.model_dump(mode="json"),
        checked.identity,
        begun=begun,
        defaults=default_identity(config),
    )
    return replace(checked, begun=begun, run_uuid=run_uuid)


def _evaluator(config: TrainConfig) -> ActorEvaluator:
    return ActorEvaluator(
        absolute(config.data.val),
        weights="ema" if config.optimizer.ema_images else "model",
        share=config.evaluation_share,
    )


def _train(
    config: TrainConfig,
    checked: Checked,
    outcome: Future[None],
    *,
    mailbox: Any,
    background: BackgroundEvaluation,
    judge: Judge | None,
    callbacks: Sequence[Any],
    pictures: bool,
) -> None:
    # Imported here: `--help` reads the sections above, and this import takes seconds.
    from ray.train import TrainingFailedError

    from cluster.training.retries import Retries, is_start_failure
    from cluster.training.supervisor import Supervisor

    training = config.training
    retries = Retries(config.run_uri, allowed=training.retries, tell=Sender(mailbox))
    supervisor = Supervisor(
        retries, wait_s=60 * training.wait_minutes, wanted=describe_workers(config)
    )
    job = replace(job_of(config, checked), pictures=pictures)

    def fit() -> None:
        while True:
            try:
                return _attempt(job, mailbox, judge, [*callbacks, supervisor])
            except TrainingFailedError as error:
                if not is_start_failure(error):
                    raise
                retries.spend_on_start(error.controller_failure)

    try:
        with background if job.evaluate == "beside" else nullcontext():
            _in_thread(fit, outcome)
    except (TrainingFailedError, RetriesSpent) as error:
        raise plain_failure(error, config.name) from error


def _attempt(job: Job, mailbox: Any, judge: Judge | None, callbacks: list[Any]) -> None:
    """One Ray Train run, from its start to the end of the training or a failure of its start."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    training = job.config.training
    # A client of Ray's own would take another proxy or region, and a % of the path for a code.
    file_system, folder = files.resolve(join(job.run, "ray"))
    TorchTrainer(
        train_on_worker,
        train_loop_config={"job": job.to_json(), "mailbox": mailbox, "judge": judge},
        torch_config=TorchConfig(backend="nccl" if training.gpus_per_worker else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=training.workers
            if training.min_workers is None
            else (training.min_workers, training.workers),
            use_gpu=training.gpus_per_worker > 0,
            resources_per_worker=reading_worker(training.cpus_per_worker, training.gpus_per_worker),
            elastic_resize_monitor_interval_s=RESIZE_LOOK_S,
        ),
        # Our own checkpoints continue a run under any version of Ray. Ray's record of an attempt is
        # never resumed, so each attempt has a name of its own.
        run_config=RunConfig(
            name=f"attempt-{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 1_000_000:06d}",
            storage_path=folder,
            storage_filesystem=file_system,
            # The supervisor counts failures.
            failure_config=FailureConfig(max_failures=-1, controller_failure_limit=-1),
            callbacks=callbacks,
        ),
    ).fit()


def job_of(config: TrainConfig, checked: Checked) -> Job:
    """What every worker is told. A new run gets its weight file, or the checkpoint that it starts
    from, copied into its folder first.
    """
    run = config.run_uri
    weights, parent = None, None
    if config.pretrained is not None and not checked.begun:
        weights = weight_file.publish(
            config.pretrained, run, digest=checked.identity["pretrained"], root=config.storage
        )
    if config.from_checkpoint is not None and not checked.begun:
        parent = parent_checkpoint.publish(
            config.from_checkpoint,
            run,
            name=checked.identity["from_checkpoint"],
            root=config.storage,
        )
    return Job(
        config=config,
        run=run,
        run_uuid=checked.run_uuid,
        train_data=absolute(config.data.train),
        val_data=absolute(config.data.val),
        decode_in=decode_place(
            config.training.decode, gpus_per_worker=config.training.gpus_per_worker
        ),
        evaluate=evaluation_place(config),
        weight_file=weights,
        parent_checkpoint=parent,
        package=package_of(config, checked.train_set),
    )


def _in_thread(work: Callable[[], Any], outcome: Future[None]) -> None:
    """Run `work` in a thread and wait for it, so that Ctrl-C reaches this thread as
    `KeyboardInterrupt`: in the main thread Ray Train's handler ends the process with code 1 and
    prints nothing (Ray 2.60). Raises what `work` raised, or the error that `outcome` was given
    before.
    """

    def run() -> None:
        try:
            work()
        except BaseException as error:
            _set_outcome(outcome, error)
        else:
            _set_outcome(outcome, None)

    threading.Thread(target=run, daemon=True, name="fit").start()
    outcome.result()


def _set_outcome(outcome: Future[None], error: BaseException | None) -> None:
    """Set the outcome once; later calls are ignored."""
    with suppress(InvalidStateError):
        if error is None:
            outcome.set_result(None)
        else:
            outcome.set_exception(error)


def train_on_worker(told: dict[str, Any]) -> None:
    """Ray Train runs this on every worker. The loop is imported there: driver and controller do
    without torch's compiler and the rest (5 CPU seconds each).
    """
    worker = worker_of(told)
    # After an error its threads would otherwise read the epoch that was begun ahead.
    with closing(worker.stream):
        worker.train()


def worker_of(told: dict[str, Any]) -> Worker:
    """The worker of this process's rank in Ray Train."""
    import ray.train
    from ray.train.torch import get_device

    from cluster.training.build import build_worker
    from cluster.training.ranks import Ranks

    context = ray.train.get_context()
    return build_worker(
        Job.from_json(told["job"]),
        Sender(told["mailbox"]),
        ranks=Ranks(
            context.get_world_rank(),
            context.get_world_size(),
            get_device(),
            context.get_local_rank(),
            context.get_local_world_size(),
        ),
        find_notice=ray.train.get_preemption_info,
        judge=told["judge"],
    )
