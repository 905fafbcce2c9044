"""Builds the worker of one rank from what it was told. Runs inside Ray Train, or in a process that
trains alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import ray.util
import torch

from cluster.loading.stream import Stream
from cluster.runs.evaluations import store_request, waiting
from cluster.runs.events import Event, Tell, WorkerHung, WorkerProcess
from cluster.runs.job import Job
from cluster.runs.training_config import TrainingConfig, compiles
from cluster.scoring.truths import read_frequencies, read_truths
from cluster.shards.index import ShardSet, open_shard_set
from cluster.training.checkpoint_policy import FindNotice
from cluster.training.checkpoints import Checkpoints, open_checkpoints
from cluster.training.evaluation import EpochEvaluations, Judge, RankEvaluator
from cluster.training.first_batches import FirstBatches
from cluster.training.group_size import (
    amp_dtype_of,
    learning_rate,
    shared_batch,
    start_event,
    threads_each,
)
from cluster.training.preflight import match_val
from cluster.training.profile import ProfilePublisher
from cluster.training.ranks import Ranks
from cluster.training.report import Reporter
from cluster.training.resume import NewRun, Origin, resume
from cluster.training.state import TrainingState
from cluster.training.step import TrainingStep, distribute
from cluster.training.step_reports import StepReports
from cluster.training.system_metrics import SystemMetrics
from cluster.training.timing import Timing
from cluster.training.watchdog import Watchdog
from cluster.training.worker import Worker
from detector.baselines import build_model
from detector.choices import LossSettings
from detector.optimizer import (
    MovingAverage,
    build_optimizer,
)


def build_worker(
    job: Job,
    send: Tell,
    *,
    ranks: Ranks,
    find_notice: FindNotice,
    judge: Judge | None = None,
) -> Worker:
    """`send` sends an event to the driver. See `CheckpointPolicy` for `find_notice` and
    `EpochEvaluations` for `judge`.
    """
    config, training, device = job.config, job.config.training, ranks.device
    if device.type == "cpu":
        torch.set_num_threads(threads_each(ranks.local_size))
    tell = send if ranks.rank == 0 else _ignore
    train_set = open_shard_set(job.train_data)
    batches, parts = shared_batch(training, ranks=ranks.size)
    stream = _stream(job, train_set, ranks=ranks, batches=batches)
    images_total = training.epochs * stream.places
    amp_dtype = amp_dtype_of(ranks, wanted=training.amp)
    state, step = _network(job, ranks, stream.places, parts=parts, amp_dtype=amp_dtype)
    checkpoints = _checkpoints(job, ranks=ranks, find_notice=find_notice, tell=tell)
    evaluations = _evaluations(
        job, ranks, checkpoints, lambda: watchdog.progressed(), judge=judge, tell=tell
    )
    process = WorkerProcess(ranks.rank, ray.util.get_node_ip_address(), os.getpid())
    profile, timing, reporter = _reporting(
        training,
        job.run,
        state,
        process,
        device,
        tell=tell,
        send=send,
        node=ranks.local_rank == 0,
    )
    watchdog = Watchdog(
        60 * training.hang_minutes,
        on_hang=lambda seconds, location: send(WorkerHung(process, seconds, location)),
    )
    return Worker(
        run=job.run,
        training=training,
        ranks=ranks,
        batches=batches,
        stream=stream,
        state=state,
        resume=_resume(job, state, checkpoints, ranks, train_set, tell=tell),
        start_event=start_event(
            training, ranks, batches, parts=parts, amp_dtype=amp_dtype, images_total=images_total
        ),
        learning_rate=learning_rate(
            config.optimizer,
            batch=sum(batches),
            configured=training.batch_size,
            images_total=images_total,
        ),
        step=step,
        reports=StepReports(ranks, state.progress, allowed=training.skip_nonfinite, tell=tell),
        reporter=reporter,
        timing=timing,
        profile=profile,
        checkpoints=checkpoints,
        checkpoint_entries=_checkpoint_entries(job, train_set),
        evaluations=evaluations,
        first_batches=FirstBatches(tell=tell, wanted=job.pictures and ranks.rank == 0),
        watchdog=watchdog,
        tell=tell,
    )


def _stream(job: Job, train_set: ShardSet, *, ranks: Ranks, batches: list[int]) -> Stream:
    config = job.config
    return Stream(
        train_set,
        rank=ranks.rank,
        batches=batches,
        run=config.training.batch_size,
        canvases=config.canvas.canvases,
        long_side=config.canvas.long_side,
        seed=config.training.seed,
        epochs=config.training.epochs,
        augmentation=config.augmentation.model_dump(mode="json"),
        mirror_later=ranks.device.type == "cuda",
        pinned=ranks.device.type == "cuda",
        threads=config.training.decode_threads,
        decode=job.decode_in,
        repeat_threshold=config.sampling.repeat_threshold,
        source_weights=config.sampling.source_weights,
    )


def _network(
    job: Job, ranks: Ranks, images_per_epoch: int, *, parts: int, amp_dtype: torch.dtype | None
) -> tuple[TrainingState, TrainingStep]:
    """The network as the seed has it, with its optimiser and average, and what makes its steps."""
    training, chosen, device = job.config.training, job.config.optimizer, ranks.device
    torch.manual_seed(training.seed)
    model = build_model(**job.package.description.model)
    # torch's stubs do not know memory_format.
    model.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    network = model if ranks.size == 1 else distribute(model)
    average = MovingAverage(model, images=chosen.ema_images) if chosen.ema_images else None
    optimizer = build_optimizer(
        model,
        name=chosen.name,
        learning_rate=chosen.learning_rate,
        weight_decay=chosen.weight_decay,
        momentum=chosen.momentum,
    )
    step = TrainingStep(
        model,
        network,
        optimizer,
        ranks=ranks,
        parts=parts,
        loss=LossSettings(**job.config.loss.model_dump()),
        clip_norm=chosen.clip_norm,
        amp_dtype=amp_dtype,
        canvases=job.config.canvas.canvases,
        compiled=compiles(
            training.compile,
            batch_size=training.batch_size,
            device=device.type,
            images=training.epochs * images_per_epoch,
        ),
    )
    return TrainingState(model, optimizer, average, images_per_epoch=images_per_epoch), step


def _checkpoints(job: Job, *, ranks: Ranks, find_notice: FindNotice, tell: Tell) -> Checkpoints:
    return open_checkpoints(
        job.run,
        run_uuid=job.run_uuid,
        settings=job.config.training,
        writes=ranks.rank == 0,
        find_notice=find_notice,
        tell=tell,
        protected=lambda: set(waiting(job.run)),
        request_evaluation=partial(store_request, job.run),
    )


def _checkpoint_entries(job: Job, train_set: ShardSet) -> dict[str, Any]:
    return {
        "seed": job.config.training.seed,
        "data_digest": train_set.digest,
        "package": job.package.to_json(),
        "config": job.config.model_dump(mode="json"),
    }


def _resume(
    job: Job,
    state: TrainingState,
    checkpoints: Checkpoints,
    ranks: Ranks,
    train_set: ShardSet,
    *,
    tell: Tell,
) -> Callable[[], Origin]:
    start = NewRun(job.weight_file, job.parent_checkpoint, job.config.from_state)
    return lambda: resume(
        state,
        start,
        checkpoints=checkpoints,
        ranks=ranks,
        data_digest=train_set.digest,
        tell=tell,
    )


def _reporting(
    training: TrainingConfig,
    run: str,
    state: TrainingState,
    process: WorkerProcess,
    device: torch.device,
    *,
    tell: Tell,
    send: Tell,
    node: bool,
) -> tuple[ProfilePublisher, Timing, Reporter]:
    """`node`: report the node's CPUs and memory too."""
    profile = ProfilePublisher(
        run,
        steps=training.profile_steps,
        images_seen=lambda: state.progress.images_seen,
        tell=tell,
    )
    timing = Timing(
        device,
        profile_steps=training.profile_steps if process.rank == 0 else 0,
        on_profile=profile,
    )
    reporter = Reporter(
        every=training.log_steps,
        images_per_epoch=state.progress.images_per_epoch,
        worker=process,
        timing=timing,
        system_metrics=SystemMetrics(device, node=node).read,
        tell=tell,
        tell_from_every_rank=send,
    )
    return profile, timing, reporter


def _evaluations(
    job: Job,
    ranks: Ranks,
    checkpoints: Checkpoints,
    progressed: Callable[[], None],
    *,
    judge: Judge | None,
    tell: Tell,
) -> EpochEvaluations:
    config, evaluator = job.config, None
    if job.evaluate == "between":
        val_set = open_shard_set(job.val_data)
        classes = match_val(val_set, job.package.class_names)
        evaluator = RankEvaluator(
            ranks,
            val_set,
            read_truths(val_set, classes) if ranks.rank == 0 else [],
            classes.names,
            frequencies=read_frequencies(val_set, classes),
            canvases=config.canvas.canvases,
            long_side=config.canvas.long_side,
            decode=config.decode,
            amp=config.training.amp,
            decode_threads=config.training.decode_threads,
            progressed=progressed,
        )
    return EpochEvaluations(
        job.run,
        ranks=ranks,
        checkpoints=checkpoints,
        evaluator=evaluator,
        patience=config.training.patience,
        min_improvement=config.training.min_improvement,
        judge=judge,
        tell=tell,
    )


def _ignore(event: Event) -> None:
    """Only rank 0 speaks for all."""
