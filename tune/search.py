"""A sweep: Ray Tune chooses, `cluster.training.launch` trains. Everything of it lies under one
folder, the sweep's URI:

config.json      the configuration that names the sweep; another one under the same name is refused
runs/trial-1a2b3c4d/   a training run's folder, with trial.json: its sample, status, AP; named by
its sample, so that it is found again ray/             Tune's own records; nothing is read back from
them, so any Ray version can go on results.json, results.csv, best.yaml   written when all trials
are over, results.json last
"""

from __future__ import annotations

import csv
import io
import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import optuna
import yaml
from pydantic import ValidationError
from ray.tune import Callback, FailureConfig, RunConfig, TuneConfig, Tuner, report, with_resources
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from cluster.compute.resources import Resources, booked, unplaced
from cluster.errors import PlainError, UsageError
from cluster.runs import parent_checkpoint, run_folder, weight_file
from cluster.runs.config import TrainConfig
from cluster.runs.training_config import EVALUATION_SHARE, TrainingConfig
from cluster.storage import files
from cluster.storage.uris import absolute, join
from cluster.tracking.run import Run, open_run
from cluster.training import launch, preflight
from tune import space
from tune.space import SweepConfig

TRIAL, RESULTS, TABLE, BEST = "trial.json", "results.json", "results.csv", "best.yaml"
TRIAL_CPUS = 0.01
"""CPUs that the process around a trial books. Its workers book their own; with Tune's default of 1
they would wait for each other for ever.
"""
RUNNING, DONE, STOPPED, FAILED = "running", "done", "stopped early", "failed"
QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",  # the newer output prints a box whatever `verbose` says
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # with it Ctrl-C would end the sweep as if it were complete
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
Say = Callable[[str], None]


def sweep_uri(storage_root: str, name: str) -> str:
    return join(absolute(storage_root), "sweeps", name)


def trial_config(
    config: TrainConfig, sweep: SweepConfig, uri: str, sample: dict[str, float]
) -> TrainConfig:
    """The training run of one sample: in the sweep's folder, with the sweep's epochs and share of
    the machines.
    """
    sections = config.model_dump()
    sections["training"] |= {
        "epochs": sweep.epochs or config.training.epochs,
        "workers": sweep.workers,
        "cpus_per_worker": sweep.cpus_per_worker,
    }
    # A trial can be stopped only where it is evaluated, so it is from the first epoch after which
    # it may be.
    evaluate_every = min(config.training.evaluate_every, sweep.grace_epochs)
    sections["training"] |= {
        "gpus_per_worker": sweep.gpus_per_worker,
        "evaluate_every": evaluate_every,
    }
    # A trial is judged by what its workers report to Ray, so they are the ones who evaluate.
    # And of the same size all the time, or trials could not be compared.
    unset = (*EVALUATION_SHARE, "min_workers", "resized_batch")
    sections["training"] |= {
        "evaluation": "between",
        **{name: TrainingConfig.model_fields[name].default for name in unset},
    }
    # Trials run in other working directories, so every place is absolute.
    sections["data"] = {split: absolute(place) for split, place in sections["data"].items()}
    sections["pretrained"] = config.pretrained and weight_file.absolute(config.pretrained)
    sections["from_checkpoint"] = config.from_checkpoint and absolute(config.from_checkpoint)
    sample = space.rounded(sample)
    return space.apply(
        TrainConfig.model_validate({**sections, "storage": uri, "name": space.trial_name(sample)}),
        sample,
    )


def check(config: TrainConfig, sweep: SweepConfig, uri: str) -> None:
    """What can be wrong before a machine is spent: data, storage, the weight file, the sweep's
    name. Claims the folder.
    """
    try:
        first = trial_config(config, sweep, uri, space.given(config, sweep.space))
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        shares = (
            "sweep.workers, sweep.cpus_per_worker and sweep.gpus_per_worker stand for those of"
            " training in a trial"
        )
        raise UsageError(f"sweep: its trials could not be trained: {reason} ({shares})") from error
    identity = preflight.check(first).identity | {
        "sweep": sweep.model_dump(mode="json", exclude=space.EXECUTION)
    }
    run_folder.claim(uri, config.model_dump(mode="json"), identity, begun=bool(read_records(uri)))


def processes(sweep: SweepConfig) -> list[dict[str, float]]:
    """What one trial books: its workers, and the process around them."""
    return [
        booked(sweep.cpus_per_worker + launch.READ_CPUS, sweep.gpus_per_worker)
    ] * sweep.workers + [{"CPU": TRIAL_CPUS}]


def fitting(sweep: SweepConfig, nodes: Sequence[Resources]) -> int:
    """How many trials these nodes hold at once, at most `sweep.concurrent`; 0 when not even one."""
    return max(
        (n for n in range(1, sweep.concurrent + 1) if not unplaced(processes(sweep) * n, nodes)),
        default=0,
    )


def tracked(
    config: TrainConfig,
    sweep: SweepConfig,
    *,
    uri: str,
    concurrent: int,
    mlflow_uri: str,
    experiment: str,
    say: Say = print,
) -> list[dict[str, Any]]:
    """`search` under one MLflow run, the trials' runs nested in it, and its results written
    (`publish`).
    """
    before = run_folder.read_tracking(uri)
    parent = open_run(
        mlflow_uri,
        experiment=experiment,
        storage=config.storage,
        name=f"{config.name} (sweep)",
        run_id=before and before.run_id,
        tags={"sweep_folder": uri},
    )
    run_folder.write_tracking(uri, run_folder.TrackingRecord(mlflow_uri, experiment, parent.run_id))
    parent.log_params(
        {
            f"sweep.{name}": value
            for name, value in run_folder.flatten(sweep.model_dump(mode="json")).items()
        }
    )
    status = "FAILED"
    try:
        records = search(
            config,
            sweep,
            uri=uri,
            concurrent=concurrent,
            callback=Recorder(config, sweep, uri, parent, experiment, say),
            say=say,
        )
        publish(uri, config, records)
        parent.log_metrics(
            {f"best/{name}": records[0][name] for name in ("AP", "AP50")}, len(records)
        )
        parent.log_params({f"best.{name}": value for name, value in records[0]["sample"].items()})
        for name in (BEST, TABLE):
            parent.log_text(files.read_bytes(join(uri, name)).decode(), name)
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        parent.finish(status)
    return records


def search(
    config: TrainConfig,
    sweep: SweepConfig,
    *,
    uri: str,
    concurrent: int,
    callback: Recorder,
    say: Say,
) -> list[dict[str, Any]]:
    """Try what is left of `sweep.trials` and return the records of all trials, best first. Ray must
    be connected, `check` passed.

    A record is {"trial", "status", "AP", "AP50", "epochs", "sample", "proposed", "run", "reason"}.
    Trials that an interrupted sweep finished are kept, those it was in the middle of go on. Raises
    `PlainError` when no trial came to a result.
    """
    before = read_records(uri)
    left = sweep.trials - sum(record["status"] != RUNNING for record in before)
    if before:
        say(
            f"{sweep.trials - left} of {sweep.trials} trials are there from a sweep that did not"
            " finish; kept"
        )
    if left > 0:
        run_tuner(
            config,
            sweep,
            uri=uri,
            before=before,
            trials=left,
            concurrent=concurrent,
            callback=callback,
        )
    records = [record for record in read_records(uri) if record["status"] != RUNNING]
    scored = sorted(
        (r for r in records if r["AP"] is not None),
        key=lambda record: (-record["AP"], record["trial"]),
    )
    others = [r for r in records if r["AP"] is None]
    if not scored:
        reason = others[0]["reason"] if others else "no trial was started"
        raise PlainError(
            f"sweep {uri}: none of {len(records)} trials came to a result; the first failed with:"
            f" {reason}"
        )
    return scored + others


def run_tuner(
    config: TrainConfig,
    sweep: SweepConfig,
    *,
    uri: str,
    before: list[dict[str, Any]],
    trials: int,
    concurrent: int,
    callback: Recorder,
) -> None:
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    # A failing trial prints its traceback here, from several processes deep; the recorder says it
    # in one line.
    for name in ("ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    sections, budget = config.model_dump(mode="json"), sweep.model_dump(mode="json")
    if config.pretrained is not None:
        # Trials are launched from any node, so the weight file lies where all of them see it.
        digest = weight_file.check(config.pretrained, None)
        sections["pretrained"] = weight_file.publish(
            config.pretrained, uri, digest=digest, root=config.storage
        )
    if config.from_checkpoint is not None:
        name = parent_checkpoint.digest(config.from_checkpoint)
        sections["from_checkpoint"] = parent_checkpoint.publish(
            config.from_checkpoint, uri, name=name, root=config.storage
        )

    def trial(sample: dict[str, float]) -> None:
        run_trial(sections, budget, uri, sample)

    epochs = sweep.epochs or config.training.epochs
    tuner = Tuner(
        with_resources(trial, {"cpu": TRIAL_CPUS}),
        tune_config=TuneConfig(
            metric="AP",
            mode="max",
            num_samples=trials,
            max_concurrent_trials=concurrent,
            search_alg=searcher(sweep, before, first=space.given(config, sweep.space)),
            scheduler=Halving(epochs=epochs, grace_epochs=sweep.grace_epochs),
        ),
        run_config=RunConfig(
            name=f"attempt-{time.strftime('%Y%m%d-%H%M%S')}",
            storage_path=join(uri, "ray"),
            callbacks=[callback],
            failure_config=FailureConfig(max_failures=0),
            verbose=0,
        ),
    )
    tuner.fit()


def run_trial(
    sections: dict[str, Any], budget: dict[str, Any], uri: str, sample: dict[str, float]
) -> None:
    """One trial, in a process of its own: the training run of the sample. Every evaluation reaches
    Tune through Ray Train's callback.
    """
    config = trial_config(
        TrainConfig.model_validate(sections), SweepConfig.model_validate(budget), uri, sample
    )
    already = run_folder.read_finished(config.run_uri) is not None
    best = launch.launch(config, callbacks=[TuneReportCallback()])
    if already:
        # The searcher came to this sample twice, or the sweep was killed between the end of the
        # training and the record of it.
        report(
            {
                "AP": best.ap,
                "AP50": best.metrics["AP50"],
                "epoch": best.epoch,
                "images_seen": best.images_seen,
            }
        )


class Halving(ASHAScheduler):
    """Successive halving by AP, which leaves a trial at its last epoch to end by itself: Tune stops
    by killing, and the trial has then yet to bring its last checkpoint and finished.json into
    storage."""

    def __init__(self, *, epochs: int, grace_epochs: int):
        super().__init__(
            time_attr="epoch",
            max_t=epochs,
            grace_period=min(grace_epochs, epochs),
            reduction_factor=3,
        )
        self.epochs = epochs

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        # Asked in any case: it counts the result.
        decision = super().on_trial_result(tune_controller, trial, result)
        return TrialScheduler.CONTINUE if result["epoch"] >= self.epochs else decision


def searcher(
    sweep: SweepConfig, before: list[dict[str, Any]], *, first: dict[str, float]
) -> OptunaSearch:
    """Optuna's TPE: `first` (in a fresh sweep), then what an interrupted sweep had under way, then
    what it proposes from all results so far.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    spans = {
        name: optuna.distributions.FloatDistribution(low, high, log=name == "learning_rate")
        for name, (low, high) in sweep.space.ranges().items()
    }
    waiting = (
        [record["proposed"] for record in before if record["status"] == RUNNING]
        if before
        else [first]
    )
    # A seed of its own for what is left: the same one would propose the finished trials again.
    found = OptunaSearch(
        spans, metric="AP", mode="max", points_to_evaluate=waiting, seed=sweep.seed + len(before)
    )
    for record in before:
        if record["AP"] is not None and record["status"] != RUNNING:
            found.add_evaluated_point(record["proposed"], record["AP"])
    return found


def read_records(uri: str) -> list[dict[str, Any]]:
    folder = join(uri, "runs")
    names = (
        [name for name, _ in files.list_files(folder, [TRIAL]) if name.endswith("/" + TRIAL)]
        if files.exists(folder)
        else []
    )
    return [files.read_json(name) for name in names]


def publish(uri: str, config: TrainConfig, records: list[dict[str, Any]]) -> str:
    """Write best.yaml, results.csv and, last, results.json; returns the URI of best.yaml. `records`
    as from `search`, best first.
    """
    best = space.apply(config, records[0]["sample"])
    head = (
        f"# The best of {len(records)} trials of {uri}: AP {records[0]['AP']:.4f}. For train"
        " --config; name, storage and data are the command's.\n"
    )
    files.write_bytes(
        join(uri, BEST), (head + yaml.safe_dump(space.recipe(best), sort_keys=False)).encode()
    )
    rows = [
        {**{k: v for k, v in record.items() if k not in ("sample", "proposed")}, **record["sample"]}
        for record in records
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    files.write_bytes(join(uri, TABLE), text.getvalue().encode())
    files.write_json(join(uri, RESULTS), records)
    return join(uri, BEST)


class Recorder(Callback):
    """Runs in the driver: keeps each trial's record and its MLflow run under the sweep's, and
    prints one line a result.
    """

    def __init__(
        self,
        config: TrainConfig,
        sweep: SweepConfig,
        uri: str,
        parent: Run,
        experiment: str,
        say: Say,
    ):
        self.config, self.sweep, self.uri, self.parent, self.experiment, self.say = (
            config,
            sweep,
            uri,
            parent,
            experiment,
            say,
        )
        self.epochs = sweep.epochs or config.training.epochs
        self.runs: dict[str, Run] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks for a restart of its own; ours goes by the records, and open
        # connections cannot be pickled.
        return {}

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **_: Any) -> None:
        config = trial_config(self.config, self.sweep, self.uri, trial.config)
        self.record(trial, RUNNING)
        if trial.trial_id in self.runs:
            return
        sample = space.rounded(trial.config)
        self.say(f"{config.name} started: {shown(sample)}")
        try:
            before = run_folder.read_tracking(config.run_uri)
            run = open_run(
                self.parent.uri,
                experiment=self.experiment,
                storage=self.config.storage,
                name=config.name,
                run_id=before and before.run_id,
                parent_run_id=self.parent.run_id,
                tags={"run_folder": config.run_uri},
            )
        except PlainError as error:
            self.say(f"warning: {config.name} is not tracked: {error}")
            return
        self.runs[trial.trial_id] = run
        run_folder.write_tracking(
            config.run_uri, run_folder.TrackingRecord(run.uri, self.experiment, run.run_id)
        )
        run.log_params({f"{space.SECTIONS[name]}.{name}": value for name, value in sample.items()})

    def on_trial_result(
        self, iteration: int, trials: list, trial: Any, result: dict[str, Any], **_: Any
    ) -> None:
        self.say(
            f"{space.trial_name(trial.config)} epoch {result['epoch']} of {self.epochs}: AP"
            f" {result['AP']:.4f}  AP50 {result['AP50']:.4f}"
        )
        if trial.trial_id in self.runs:
            values = {
                f"val/{name}": value
                for name, value in result.items()
                if name.startswith("AP") and isinstance(value, float)
            }
            self.runs[trial.trial_id].log_metrics(values, result["images_seen"])

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **_: Any) -> None:
        result = trial.last_result or {}
        self.finish(trial, DONE if result.get("epoch") == self.epochs else STOPPED, "FINISHED")

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **_: Any) -> None:
        self.finish(trial, FAILED, "FAILED", reason=last_line(trial.error_file))

    def finish(self, trial: Any, status: str, mlflow_status: str, *, reason: str = "") -> None:
        record = self.record(trial, status, reason=reason)
        ap = "" if record["AP"] is None else f": AP {record['AP']:.4f}"
        self.say(
            f"{record['trial']} {status} after {record['epochs']}"
            f" epochs{ap}{f' ({reason})' if reason else ''}"
        )
        if trial.trial_id in self.runs:
            self.runs[trial.trial_id].finish(mlflow_status)

    def record(self, trial: Any, status: str, *, reason: str = "") -> dict[str, Any]:
        result = trial.last_result or {}
        run = trial_config(self.config, self.sweep, self.uri, trial.config).run_uri
        found = {
            "trial": os.path.basename(run),
            "status": status,
            "AP": result.get("AP"),
            "AP50": result.get("AP50"),
            "epochs": result.get("epoch", 0),
        }
        found |= {
            "sample": space.rounded(trial.config),
            "proposed": dict(trial.config),
            "run": run,
            "reason": reason,
        }
        run_folder.write(run, TRIAL, found)
        return found


def shown(sample: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in sample.items())


def last_line(path: str | None) -> str:
    """Of the file in which Tune, in this process, has just put the trial's traceback: what went
    wrong.
    """
    if path is None or not os.path.exists(path):
        return "its process ended without a word"
    with open(path, encoding="utf-8", errors="replace") as file:
        lines = [line.strip() for line in file if line.strip()]
    return lines[-1][:300] if lines else "its process ended without a word"
