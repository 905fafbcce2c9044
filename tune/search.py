"""Ray Tune runs the trials of a sweep.

Tune's own files lie in the folder ray/ of the sweep and are never read back, so an interrupted
sweep can continue under another version of Ray: it continues from the trial records.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ray.tune import FailureConfig, RunConfig, TuneConfig, Tuner, with_parameters, with_resources
from ray.tune.experiment import Trial

from cluster.storage import files
from cluster.storage.uris import join
from tune import space
from tune.config import Stopping
from tune.console import Console
from tune.proposals import Proposals
from tune.recorder import Ending, Recorder, sample_of
from tune.stopping import EarlyStopping
from tune.tracked import TrackedTrials
from tune.trainable import Told, run_trial
from tune.trials import Role, TrialRecord

QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",  # the newer output prints a box whatever `verbose` says
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # with it Ctrl-C would end the sweep as if it were complete
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    # A trial that fails reports its reason in place of an AP.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    # Tune's own state is never read back.
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    # A process that is to take the next trial gets this long to leave the one before.
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "60",
}


@dataclass(frozen=True)
class Search:
    """What all trials of a command share."""

    told: Told
    records: dict[str, TrialRecord]
    """By name, those of earlier commands included; kept up to date."""
    concurrent: int
    tracked: TrackedTrials
    console: Console
    ending: Ending

    @property
    def epochs(self) -> int:
        """Length of a trial that nothing stops."""
        return self.told.sweep.epochs or self.told.config.training.epochs

    def run(
        self,
        proposals: Proposals,
        *,
        role: Role,
        stopping: Stopping,
        total: int,
        counts: Callable[[TrialRecord], bool],
        replayed: Sequence[TrialRecord] = (),
        deadline: float = float("inf"),
    ) -> None:
        """Run the trials that are proposed, until there are `total` of this role. `counts` says
        which trials of the search are not kept apart; `replayed` are earlier ones, which the early
        stopping knows. Raises what ends the whole sweep: trials that all fail alike, a lost lease.
        """
        told, sweep = self.told, self.told.sweep
        epochs = self.epochs

        def name_of(trial: Trial) -> str:
            return space.trial_name(sample_of(trial), epochs)

        scheduler = EarlyStopping(
            stopping,
            epochs=epochs,
            grace_epochs=sweep.grace_epochs,
            images_per_epoch=told.train_set.num_rows,
            name_of=name_of,
            deadline=deadline,
        )
        scheduler.replay(replayed)
        recorder = Recorder(
            told.config,
            sweep,
            told.uri,
            records=self.records,
            role=role,
            counts=counts,
            name_of=name_of,
            stopping=scheduler,
            board=told.board,
            tracked=self.tracked,
            console=self.console,
            ending=self.ending,
        )
        self.console.begin(recorder.shown(), trials=total)
        _tuner(self, proposals, scheduler, recorder).fit()
        if self.ending.reason is not None:
            raise self.ending.reason


def _tuner(
    search: Search, proposals: Proposals, scheduler: EarlyStopping, recorder: Recorder
) -> Tuner:
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    # A failing trial prints its traceback here, from several processes deep; the recorder prints
    # one line.
    for name in ("ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    told = search.told
    # A client of Ray's own would take another proxy or region, and a % of the path for a code.
    file_system, folder = files.resolve(join(told.uri, "ray"))
    return Tuner(
        # Tune's names of resources are those of Ray in small letters.
        with_resources(
            with_parameters(_trial, told=told),
            {name.lower(): amount for name, amount in told.sweep.process.items()},
        ),
        tune_config=TuneConfig(
            metric="AP",
            mode="max",
            # As many as are proposed.
            num_samples=10**6,
            search_alg=proposals,
            scheduler=scheduler,
            # A process has imported torch and connected to storage; the next trial needs neither.
            reuse_actors=told.sweep.workers == 1,
        ),
        run_config=RunConfig(
            name=f"attempt-{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 1_000_000:06d}",
            storage_path=folder,
            storage_filesystem=file_system,
            callbacks=[recorder],
            stop=search.ending,
            failure_config=FailureConfig(max_failures=told.sweep.retries),
            verbose=0,
        ),
    )


def _trial(proposed: dict[str, Any], told: Told) -> None:
    run_trial(told, proposed["sample"])
