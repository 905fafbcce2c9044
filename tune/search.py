"""Ray Tune chooses the samples, `cluster.training.launch` trains them.

Tune's own files lie in the folder ray/ of the sweep and are never read back, so an interrupted
sweep can continue under another version of Ray: it continues from the trial records.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import optuna
from ray.tune import Callback, FailureConfig, RunConfig, TuneConfig, Tuner, report, with_resources
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from cluster.errors import PlainError, UsageError
from cluster.runs import run_folder, weight_file
from cluster.runs.config import TrainConfig
from cluster.storage import files
from cluster.storage.uris import join
from cluster.training import launch
from tune.build_space import space_of
from tune.dimensions import Dimension, Range
from tune.space import TRIAL_CPUS, Sample, Space, SweepConfig
from tune.trials import TrialRecord, read_records, trial_config

QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",  # the newer output prints a box whatever `verbose` says
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # with it Ctrl-C would end the sweep as if it were complete
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
Say = Callable[[str], None]


def search(
    config: TrainConfig,
    sweep: SweepConfig,
    *,
    uri: str,
    concurrent: int,
    callback: Callback,
    say: Say,
) -> list[TrialRecord]:
    """Run what remains of `sweep.trials` and return the records of all trials, best first. Ray must
    be connected, and `config` must have absolute URIs.

    Trials that an interrupted sweep finished are not repeated; those that were running continue.
    Raises `PlainError` when no trial has a result.
    """
    before = read_records(uri)
    remaining = sweep.trials - sum(record.status != "running" for record in before)
    if before:
        say(
            f"{sweep.trials - remaining} of {sweep.trials} trials are finished already, by a sweep"
            " that was interrupted"
        )
    if remaining > 0:
        _run_tuner(
            config,
            sweep,
            uri=uri,
            before=before,
            trials=remaining,
            concurrent=concurrent,
            callback=callback,
        )
    return best_first([r for r in read_records(uri) if r.status != "running"], uri)


def best_first(records: Sequence[TrialRecord], uri: str) -> list[TrialRecord]:
    """By falling AP, then those without one. `PlainError` when none has an AP."""
    scored = [(record.ap, record) for record in records if record.ap is not None]
    others = [record for record in records if record.ap is None]
    if not scored:
        reasons = [record.reason for record in others if record.reason]
        reason = f"the first failed with: {reasons[0]}" if reasons else "none has an AP"
        raise PlainError(
            f"sweep {uri}: none of {len(records)} trials has a result;"
            f" {reason if others else 'no trial was started'}"
        )
    scored.sort(key=lambda pair: (-pair[0], pair[1].trial))
    return [record for _, record in scored] + others


def _run_tuner(
    config: TrainConfig,
    sweep: SweepConfig,
    *,
    uri: str,
    before: Sequence[TrialRecord],
    trials: int,
    concurrent: int,
    callback: Callback,
) -> None:
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    # A failing trial prints its traceback here, from several processes deep; the recorder prints
    # one line.
    for name in ("ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    sections, budget = config.model_dump(mode="json"), sweep.model_dump(mode="json")
    if config.pretrained is not None:
        # A trial may be launched from any node, so the weight file must be where all nodes see it.
        digest = weight_file.check(config.pretrained, None)
        sections["pretrained"] = weight_file.publish(
            config.pretrained, uri, digest=digest, root=config.storage
        )

    def trial(sample: dict[str, float]) -> None:
        run_trial(sections, budget, uri, sample)

    epochs = sweep.epochs or config.training.epochs
    # A client of Ray's own would take another proxy or region, and a % of the path for a code.
    file_system, folder = files.resolve(join(uri, "ray"))
    tuner = Tuner(
        with_resources(trial, {"cpu": TRIAL_CPUS}),
        tune_config=TuneConfig(
            metric="AP",
            mode="max",
            num_samples=trials,
            max_concurrent_trials=concurrent,
            search_alg=searcher(
                space_of(sweep.preset, sweep.space, config), sweep, before, config=config
            ),
            scheduler=Halving(epochs=epochs, grace_epochs=sweep.grace_epochs),
        ),
        run_config=RunConfig(
            name=f"attempt-{time.strftime('%Y%m%d-%H%M%S')}",
            storage_path=folder,
            storage_filesystem=file_system,
            callbacks=[callback],
            failure_config=FailureConfig(max_failures=0),
            verbose=0,
        ),
    )
    tuner.fit()


def run_trial(sections: dict[str, Any], budget: dict[str, Any], uri: str, sample: Sample) -> None:
    """The training run of one sample, in a process of its own. `sections` is a `TrainConfig`,
    `budget` a `SweepConfig`, dumped. Every evaluation reaches Tune through Ray Train's callback.
    """
    config = trial_config(
        TrainConfig.model_validate(sections), SweepConfig.model_validate(budget), uri, sample
    )
    already = run_folder.read_finished(config.run_uri) is not None
    best = launch.launch(config, callbacks=[TuneReportCallback()])
    if already:
        # The searcher proposed this sample twice, or the sweep was killed between the end of the
        # training and its record.
        report(
            {
                "AP": best.ap,
                "AP50": best.metrics.get("AP50"),
                "epoch": best.epoch,
                "images_seen": best.images_seen,
            }
        )


class Halving(ASHAScheduler):
    """Successive halving by AP that lets a trial end by itself at its last epoch: Tune stops a
    trial by killing it, and after its last evaluation the trial has still to bring its last
    checkpoint and finished.json into storage.
    """

    def __init__(self, *, epochs: int, grace_epochs: int):
        super().__init__(
            time_attr="epoch",
            max_t=epochs,
            grace_period=min(grace_epochs, epochs),
            reduction_factor=3,
        )
        self._epochs = epochs

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        # Called in any case: it counts the result.
        decision = super().on_trial_result(tune_controller, trial, result)
        return TrialScheduler.CONTINUE if result["epoch"] >= self._epochs else decision


def searcher(
    space: Space, sweep: SweepConfig, before: Sequence[TrialRecord], *, config: TrainConfig
) -> OptunaSearch:
    """Optuna's TPE. It proposes the configuration (in a fresh sweep), then the samples that an
    interrupted sweep was running, then new ones from all results so far.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    running = [dict(record.proposed) for record in before if record.status == "running"]
    algorithm = OptunaSearch(
        {one.name: _distribution(one) for one in space.dimensions},
        metric="AP",
        mode="max",
        points_to_evaluate=running if before else [dict(space.given(config))],
        # Another seed after an interruption: the same one would propose the finished trials again.
        seed=sweep.seed + len(before),
    )
    for record in before:
        if record.ap is not None and record.status != "running":
            algorithm.add_evaluated_point(dict(record.proposed), record.ap)
    return algorithm


def _distribution(dimension: Dimension) -> optuna.distributions.BaseDistribution:
    if not isinstance(dimension.values, Range) or dimension.when:
        raise UsageError(
            f"sweep.space.{dimension.name} {dimension}: this searcher takes ranges without a"
            " condition; leave it out"
        )
    values = dimension.values
    kind = optuna.distributions.FloatDistribution
    if values.integer:
        kind = optuna.distributions.IntDistribution
    return kind(values.low, values.high, log=values.log)  # pyright: ignore
