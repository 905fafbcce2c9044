"""A training in the process that calls, without a group of workers: a trial of a sweep."""

from __future__ import annotations

import gc
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

from cluster.errors import PlainError
from cluster.runs import evaluations, lease, run_folder
from cluster.runs.config import TrainConfig
from cluster.runs.evaluations import Evaluation
from cluster.runs.events import Event, Tell
from cluster.training.launch import claim_again, job_of
from cluster.training.preflight import Checked

if TYPE_CHECKING:
    from cluster.training.evaluation import Judge


def train_alone(
    config: TrainConfig,
    checked: Checked,
    *,
    tell: Tell,
    judge: Judge | None = None,
    local_size: int = 1,
) -> Evaluation:
    """Train, continue, or find the run finished; Ray must be connected. Returns the run's best
    evaluation. `config` has one worker, which evaluates between epochs.

    `local_size`: how many such processes share this node. An error of the training is raised as it
    is: the caller decides about a restart, which continues from the newest checkpoint. `UsageError`
    if another driver trains the run.
    """
    run = config.run_uri
    lost: list[str] = []

    def tell_unless_lost(event: Event) -> None:
        if lost:
            raise PlainError(lost[0])
        tell(event)

    lease.wait_until_free(run)
    with lease.Lease(run, lost.append):
        if run_folder.read_finished(run) is None:
            _train(config, claim_again(config, checked), tell_unless_lost, judge, local_size)
    return evaluations.best_checkpoint(run)


def _train(
    config: TrainConfig, checked: Checked, tell: Tell, judge: Judge | None, local_size: int
) -> None:
    # Imported here: the driver reads this module and does without torch.
    import torch

    from cluster.training.build import build_worker
    from cluster.training.ranks import Ranks

    on_gpu = config.training.gpus_per_worker > 0
    job = replace(job_of(config, checked), evaluate="between")
    worker = build_worker(
        job,
        tell,
        ranks=Ranks(0, 1, torch.device("cuda" if on_gpu else "cpu"), local_size=local_size),
        find_notice=lambda: None,
        judge=judge,
    )
    try:
        # After an error its threads would otherwise read the epoch that was begun ahead.
        with closing(worker.stream):
            worker.train()
    finally:
        # The process may train again, and needs the memory.
        worker.watchdog.stop()
        del worker
        gc.collect()
        if on_gpu:
            torch.cuda.empty_cache()
