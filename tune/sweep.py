"""A sweep from its checks to its results. Everything lies in one folder, the sweep's URI:

config.json
    the configuration that names the sweep; a different one under the same name is refused
tracking.json
    the sweep's MLflow run
runs/trial-1a2b3c4d/
    a training run's folder, with trial.json; named by its sample, so that it is found again
ray/
    Tune's own files
best.yaml, results.csv, results.json
    written when all trials are finished
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import ray
from pydantic import ValidationError

from cluster.compute import resources, session
from cluster.compute.session import RayConfig
from cluster.errors import UsageError
from cluster.runs import run_folder
from cluster.runs.config import TrainConfig
from cluster.storage import files
from cluster.storage.preflight import check_writable
from cluster.storage.uris import absolute, join
from cluster.tracking.config import TrackingConfig, experiment_name, tracking_uri, ui_command
from cluster.tracking.preflight import check_experiment, check_server
from cluster.tracking.run import Run, open_run, read_record
from cluster.training import preflight
from tune import space
from tune.build_space import space_of
from tune.recorder import Recorder
from tune.results import BEST, TABLE, publish, read_results
from tune.search import search
from tune.space import TRIAL_CPUS, SweepConfig
from tune.trials import TrialRecord, read_records, trial_config

Say = Callable[[str], None]


@dataclass(frozen=True)
class Swept:
    """A finished sweep: its folder, the records of its trials (best first) and the MLflow store."""

    uri: str
    config: TrainConfig
    records: list[TrialRecord]
    tracking_uri: str

    @property
    def best(self) -> str:
        """URI of best.yaml."""
        return join(self.uri, BEST)

    def lines(self) -> list[str]:
        """The result, for a terminal."""
        best = self.records[0]
        assert best.ap is not None, "a sweep without a result raises before"
        failed = [record for record in self.records if record.status == "failed"]
        words = ["python", "-m", "pipelines.train", "--config", self.best]
        words += ["--data.train", self.config.data.train, "--data.val", self.config.data.val]
        words += ["--storage", self.config.storage, "--name", f"{self.config.name}-best"]
        if self.tracking_uri != tracking_uri(None, self.config.storage):
            words += ["--tracking.uri", self.tracking_uri]
        table = join(self.uri, TABLE)
        return [
            f"trials   {len(self.records)}, of which {len(failed)} failed: {table}",
            *(f"         {record.trial}: {record.reason}" for record in failed[:5]),
            f"best     {best.trial}: AP {best.ap:.4f} with {space.shown(best.sample)}",
            f"use it   {shlex.join(words)}",
            f"see it   {ui_command(self.tracking_uri)}",
        ]


def sweep_uri(storage_root: str, name: str) -> str:
    return join(absolute(storage_root), "sweeps", name)


def sweep(
    config: TrainConfig,
    budget: SweepConfig,
    *,
    ray: RayConfig,
    tracking: TrackingConfig,
    say: Say = lambda line: print(f"[sweep] {line}", flush=True),
) -> Swept:
    """Run or continue the sweep `config.name`, or find it finished. Raises `UsageError` for what
    can be found wrong before any machine is used, `PlainError` when no trial has a result.
    """
    config = config.with_absolute_uris()
    mlflow_uri = tracking_uri(tracking.uri, config.storage)
    check_writable(config.storage)
    check_server(mlflow_uri)
    check_experiment(mlflow_uri, experiment_name(tracking.experiment))
    uri = sweep_uri(config.storage, config.name)
    for warning in check(config, budget, uri).warnings:
        say(f"warning: {warning}")
    records = read_results(uri)
    if records is not None:
        say(f"{uri}: this sweep is finished; nothing was tried again")
        return Swept(uri, config, records, mlflow_uri)
    session.connect(ray.address, num_cpus=ray.num_cpus, logs=ray.logs)
    concurrent = trials_at_once(budget, autoscaling=ray.autoscaling, say=say)
    parent = _open_parent(config, budget, uri, mlflow_uri, experiment_name(tracking.experiment))
    status = "FAILED"
    try:
        recorder = Recorder(config, budget, uri, parent, experiment_name(tracking.experiment), say)
        records = search(config, budget, uri=uri, concurrent=concurrent, callback=recorder, say=say)
        publish(uri, config, records)
        _log_results(parent, uri, records)
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        parent.finish(status)
    return Swept(uri, config, records, mlflow_uri)


def check(config: TrainConfig, sweep: SweepConfig, uri: str) -> preflight.Checked:
    """Check what can be wrong before any machine is used: data, storage, the weight file, the
    sweep's name. Claims the folder. Returns the check of a trial with the values of the
    configuration.
    """
    try:
        first = trial_config(
            config, sweep, uri, space_of(sweep.preset, sweep.space, config).given(config)
        )
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UsageError(
            f"sweep: its trials cannot be trained: {reason} (in a trial, sweep.workers,"
            " sweep.cpus_per_worker and sweep.gpus_per_worker replace those of training)"
        ) from error
    checked = preflight.check(first)
    identity = checked.identity | {"sweep": sweep.model_dump(mode="json", exclude=space.EXECUTION)}
    run_folder.claim(uri, config.model_dump(mode="json"), identity, begun=bool(read_records(uri)))
    return checked


def processes(sweep: SweepConfig) -> list[dict[str, float]]:
    """What one trial books: its workers, and the process around them."""
    worker = resources.reading_worker(sweep.cpus_per_worker, sweep.gpus_per_worker)
    return [worker] * sweep.workers + [{"CPU": TRIAL_CPUS}]


def fitting(sweep: SweepConfig, nodes: Sequence[resources.Resources]) -> int:
    """How many trials fit these nodes at once, at most `sweep.concurrent`; 0 when not even one."""
    trial = processes(sweep)
    counts = range(1, sweep.concurrent + 1)
    return max((n for n in counts if not resources.unplaced(trial * n, nodes)), default=0)


def trials_at_once(budget: SweepConfig, *, autoscaling: bool, say: Say) -> int:
    """`sweep.concurrent`, or fewer where the cluster is smaller, with a line that says so.
    `UsageError` when not even one trial fits the cluster.
    """
    request = (
        f"one trial (sweep.workers {budget.workers} x (sweep.cpus_per_worker"
        f" {budget.cpus_per_worker:g} + {resources.READ_CPUS:g} for reading) + {TRIAL_CPUS:g})"
    )
    resources.check_resources(processes(budget), what=request, autoscaling=autoscaling)
    if autoscaling:
        return budget.concurrent
    fits = fitting(budget, [node["Resources"] for node in ray.nodes() if node["Alive"]])
    if fits < budget.concurrent:
        needed, available = (
            resources.shown(resources.total(each))
            for each in (processes(budget), [ray.cluster_resources()])
        )
        say(
            f"{fits} trials at a time instead of sweep.concurrent {budget.concurrent}: each needs"
            f" {needed}, the cluster has {available}"
        )
    return fits


def _open_parent(
    config: TrainConfig, budget: SweepConfig, uri: str, mlflow_uri: str, experiment: str
) -> Run:
    """The sweep's own MLflow run, under which those of the trials are nested."""
    before = read_record(uri)
    parent = open_run(
        mlflow_uri,
        experiment=experiment,
        name=f"{config.name} (sweep)",
        run_id=before and before.run_id,
        tags={"sweep_folder": uri},
    )
    run_folder.write_tracking(uri, run_folder.TrackingRecord(mlflow_uri, experiment, parent.run_id))
    fields = run_folder.flatten(budget.model_dump(mode="json"))
    parent.log_params({f"sweep.{name}": value for name, value in fields.items()})
    return parent


def _log_results(parent: Run, uri: str, records: Sequence[TrialRecord]) -> None:
    best = records[0]
    metrics = {"best/AP": best.ap, "best/AP50": best.ap50}
    parent.log_metrics(
        {name: value for name, value in metrics.items() if value is not None}, len(records)
    )
    parent.log_params({f"best.{name}": value for name, value in best.sample.items()})
    for name in (BEST, TABLE):
        parent.log_text(files.read_bytes(join(uri, name)).decode(), name)
