"""A sweep from its checks to its results. Everything lies in one folder, the sweep's URI:

config.json
    the configuration that names the sweep; a different one under the same name is refused
tracking.json
    the sweep's MLflow run
driver.json
    the driver that runs it, see `cluster.runs.lease`
runs/trial-1a2b3c4d/
    a training run's folder, with trial.json; named by its sample, so that it is found again
ray/
    Tune's own files
best.yaml, results.csv, results.json, sweep.html, for the preset paper those of `tune.ablation`
    written when all trials have ended
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import ray

from cluster.compute import resources, session
from cluster.compute.session import RayConfig
from cluster.errors import PlainError
from cluster.preflight.cluster import refuse_unfit_nodes
from cluster.runs import lease, run_folder, weight_file
from cluster.runs.config import TrainConfig
from cluster.storage.preflight import check_writable
from cluster.storage.uris import absolute, join
from cluster.tracking.config import TrackingConfig, experiment_name, tracking_uri, ui_command
from cluster.tracking.preflight import check_experiment, check_server, has_run
from cluster.tracking.run import Run, open_run, read_record
from cluster.training.event_channel import EventChannel
from tune import ablation, commands, space
from tune.anchor_tasks import over_ray
from tune.board import open_board
from tune.commands import BEST
from tune.config import TRIAL_CPUS, SweepConfig
from tune.confirm import Confirmation, confirm, read_confirmation
from tune.console import Console
from tune.found_anchors import adoption, find_anchors, is_found, searches_anchors
from tune.plan import Plan, plan_of
from tune.proposals import Proposals, Sampler
from tune.recorder import Ending
from tune.results import REPORT, TABLE, is_complete, log_results, publish
from tune.search import Search
from tune.tracked import TrackedTrials, TrialEnded
from tune.trainable import Told, TrialEvent
from tune.trials import TrialRecord, ranked, read_records, saving, trial_config

Say = Callable[[str], None]
NOTHING_FOUND = (
    "note     no trial found an object (AP 0), so the order says nothing; train longer,"
    " --sweep.epochs"
)


@dataclass(frozen=True)
class Swept:
    """A finished sweep: the records of its trials (best first) and the MLflow store."""

    plan: Plan
    records: list[TrialRecord]
    confirmation: Confirmation | None
    tracking_uri: str

    @property
    def uri(self) -> str:
        return self.plan.uri

    @property
    def best(self) -> str:
        """URI of best.yaml."""
        return join(self.uri, BEST)

    @property
    def _adoption(self) -> str | None:
        sweep, config = self.plan.sweep, self.plan.config
        if not searches_anchors(sweep.preset, sweep.space, config):
            return None
        return adoption(self.records, config)

    def _budget_note(self) -> list[str]:
        """What ended the sweep before all trials were begun or trained to their end."""
        sweep, begun = self.plan.sweep, len(self.records)
        cut = sum(record.is_out_of_time for record in self.records)
        limits = {"sweep.hours": sweep.hours, "sweep.images": sweep.images}
        if not any(limits.values()) or (begun >= self.plan.trials and not cut):
            return []
        given = " or ".join(f"{name} {limit:g}" for name, limit in limits.items() if limit)
        ended = f", {cut} of them ended by it" if cut else ""
        return [
            f"note     {given} is used up: {begun} of {self.plan.trials} trials were begun{ended};"
            " the same command goes on"
        ]

    def lines(self) -> list[str]:
        """The result, for a terminal."""
        best = self.records[0]
        assert best.best is not None, "a sweep without a result raises before"
        failed = [record for record in self.records if record.status == "failed"]
        return [
            f"trials   {len(self.records)}, of which {len(failed)} failed: {join(self.uri, TABLE)}",
            *(f"         {record.trial}: {record.reason}" for record in failed[:5]),
            *self._budget_note(),
            f"saving   {saving(self.records)}",
            (
                f"best     {best.trial}: AP {best.best.shown} after epoch {best.best.epoch} with"
                f" {space.shown(best.sample)}"
            ),
            *([NOTHING_FOUND] if not best.ap else []),
            *([f"anchors  {self._adoption}"] if self._adoption else []),
            *(self.confirmation.lines() if self.confirmation else []),
            f"report   {join(self.uri, REPORT)}",
            f"use it   {commands.train_best(self.plan, self.tracking_uri)}",
            f"register {commands.register_best(self.plan)}",
            f"see it   {ui_command(self.tracking_uri)}",
            *(ablation.lines(self.uri) if self.plan.arms else []),
        ]


def sweep_uri(storage_root: str, name: str) -> str:
    return join(absolute(storage_root), "sweeps", name)


def sweep(
    config: TrainConfig, budget: SweepConfig, *, ray: RayConfig, tracking: TrackingConfig
) -> Swept:
    """Run or continue the sweep `config.name`, or find it finished. Raises `UsageError` for what
    can be found wrong before any machine is used, `PlainError` when no trial has a result.
    """
    config = config.with_absolute_uris()
    mlflow_uri = tracking_uri(tracking.uri, config.storage)
    experiment = experiment_name(tracking.experiment)
    uri = sweep_uri(config.storage, config.name)
    check_writable(config.storage)
    check_server(mlflow_uri)
    check_experiment(mlflow_uri, experiment)
    lease.refuse_held(uri)
    console = Console()
    plan = plan_of(config, budget, uri)
    config = plan.config
    for line in plan.notes:
        console.say(line)
    _say_of_earlier(plan, console.say)
    if is_complete(plan) and _is_recorded(uri, mlflow_uri):
        console.say(f"{uri}: this sweep is finished; nothing was tried again")
        return _swept(plan, mlflow_uri)
    session.connect(ray.address, num_cpus=ray.num_cpus, logs=ray.logs)
    concurrent = trials_at_once(budget, autoscaling=ray.autoscaling, say=console.say)
    refuse_unfit_nodes(config.storage, gpus=budget.gpus_per_worker > 0, say=console.say)
    if searches_anchors(budget.preset, budget.space, config) and not is_found(uri):
        find_anchors(config, plan.inputs.train_set, uri, say=console.say, spread=over_ray)
        plan = plan_of(config, budget, uri)
    ending = Ending()
    with lease.Lease(uri, lambda why: _lose(ending, why)):
        parent = _open_parent(plan, mlflow_uri, experiment)
        status = "FAILED"
        try:
            _run(plan, parent, experiment, ending, concurrent=concurrent, console=console)
            swept = _swept(plan, mlflow_uri)
            publish(plan, swept.records, swept.confirmation, mlflow_uri)
            log_results(parent, uri, swept.records, swept.confirmation)
            if plan.arms:
                ablation.log(parent, uri)
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            parent.finish(status)
    return swept


def _is_recorded(uri: str, mlflow_uri: str) -> bool:
    """Whether the MLflow store has the run of the sweep, as far as the store can say."""
    recorded = read_record(uri)
    try:
        return recorded is not None and has_run(mlflow_uri, recorded.run_id)
    except PlainError:
        return False


def _swept(plan: Plan, mlflow_uri: str) -> Swept:
    """What the folder of the sweep says."""
    records = ranked(plan.counted(read_records(plan.uri)))
    if not records or records[0].ap is None:
        raise PlainError(_without_result(plan.uri, records))
    confirmation = read_confirmation(plan, records)
    if confirmation is not None:
        # What won with both seeds is the winner.
        records.sort(key=lambda record: record.trial != confirmation.winner)
    return Swept(plan, records, confirmation, mlflow_uri)


def _say_of_earlier(plan: Plan, say: Say) -> None:
    outside = plan.space.outside(plan.config)
    if outside and not plan.fixed:
        say(
            f"note: the given configuration is not in the space ({', '.join(outside)}); the first"
            " trial is the nearest setting that is"
        )
    counted = plan.counted(plan.records)
    apart = [one for one in plan.records if one.role == "search" and one not in counted]
    if apart:
        say(
            f"note: {len(apart)} earlier trials are kept apart, they have another length or are"
            " not in the space"
        )
    if counted:
        ended = len(plan.ended(plan.records))
        say(f"{ended} of {plan.trials} trials have ended in earlier commands")


def _run(
    plan: Plan,
    parent: Run,
    experiment: str,
    ending: Ending,
    *,
    concurrent: int,
    console: Console,
) -> None:
    """Run what remains."""
    sweep, inputs = plan.sweep, plan.inputs
    tracked = TrackedTrials(
        parent,
        experiment=experiment,
        train_set=inputs.train_set,
        val_set=inputs.val_set,
        weights=inputs.weights,
    )
    status = "KILLED"
    try:
        channel: EventChannel[TrialEvent | TrialEnded] = EventChannel(tracked.on_event)
        with channel as mailbox, console:
            tracked.mailbox = mailbox
            told = Told(
                config=_with_own_weights(plan),
                sweep=sweep,
                uri=plan.uri,
                train_set=inputs.train_set,
                val_set=inputs.val_set,
                weights=inputs.weights,
                mailbox=mailbox,
                board=open_board(),
                local_size=math.ceil(concurrent / max(1, len(resources.alive_nodes()))),
            )
            _complete(plan, tracked)
            records = {record.trial: record for record in plan.records}
            trials = Search(told, records, concurrent, tracked, console, ending)
            search(plan, trials)
            if sweep.confirm:
                confirm(plan, trials)
        status = "FAILED"
    finally:
        tracked.close(status)


def search(plan: Plan, trials: Search) -> None:
    """The trials that remain of the plan."""
    sweep, before = plan.sweep, list(plan.records)
    ended = plan.ended(before)
    remaining = plan.trials - len(ended)
    if remaining <= 0:
        return
    waiting = plan.waiting(before)[:remaining]
    deadline = time.monotonic() + 3600 * sweep.hours if sweep.hours else math.inf
    started = 0

    def may_start() -> bool:
        nonlocal started
        counted = plan.counted(list(trials.records.values()))
        images = sum(record.images_seen for record in counted)
        is_within = time.monotonic() < deadline and (sweep.images is None or images < sweep.images)
        # One always, or a sweep without time would have no result at all.
        allowed = started < remaining and (is_within or not started)
        started += allowed
        return allowed

    sampler = None
    if not plan.fixed:
        assert sweep.searcher != "grid", "a grid is fixed"
        sampler = Sampler(
            plan.space,
            plan.config,
            searcher=sweep.searcher,
            trials=plan.trials,
            seed=sweep.seed,
            before=ended,
        )
        for sample in waiting:
            sampler.knows(sample)
    proposals = Proposals(
        waiting,
        draw=sampler and sampler.draw,
        told=sampler and sampler.told,
        concurrent=trials.concurrent,
        may_start=may_start,
    )
    trials.run(
        proposals,
        role="search",
        total=plan.trials,
        counts=plan.counts,
        # Each row of the paper's tables has the same budget.
        stopping="none" if sweep.preset == "paper" else sweep.stopping,
        replayed=plan.counted(before),
        deadline=deadline,
    )


def _complete(plan: Plan, tracked: TrackedTrials) -> None:
    """End the MLflow runs of trials that ended while an earlier driver was killed."""
    for record in plan.records:
        if record.status != "running" and (plan.counts(record) or record.role == "confirm"):
            config = trial_config(plan.config, plan.sweep, plan.uri, record.sample)
            # The record has the name; an earlier version gave others.
            tracked.complete(record, config.model_copy(update={"name": record.trial}))


def _lose(ending: Ending, why: str) -> None:
    ending.reason = PlainError(why)


def _with_own_weights(plan: Plan) -> TrainConfig:
    """A trial may be launched from any node, so the weight file must be where all nodes see it."""
    config = plan.config
    if config.pretrained is None or plan.inputs.weights is None:
        return config
    copy = weight_file.publish(
        config.pretrained, plan.uri, digest=plan.inputs.weights, root=config.storage
    )
    return config.model_copy(update={"pretrained": copy})


def _without_result(uri: str, records: list[TrialRecord]) -> str:
    reasons = [record.reason for record in records if record.reason]
    reason = f"the first failed with: {reasons[0]}" if reasons else "none has an AP"
    return (
        f"sweep {uri}: none of {len(records)} trials has a result;"
        f" {reason if records else 'no trial was started'}"
    )


def fitting(sweep: SweepConfig, nodes: list[resources.Resources]) -> int:
    """How many trials fit these nodes at once, at most `sweep.concurrent`; 0 when not even one."""
    trial = sweep.processes
    counts = range(1, sweep.concurrent + 1)
    return max((n for n in counts if not resources.unplaced(trial * n, nodes)), default=0)


def trials_at_once(budget: SweepConfig, *, autoscaling: bool, say: Say) -> int:
    """`sweep.concurrent`, or fewer where the cluster is smaller, with a line that says so.
    `UsageError` when not even one trial fits the cluster.
    """
    request = (
        f"one trial (sweep.workers {budget.workers} x (sweep.cpus_per_worker"
        f" {budget.cpus_per_worker:g} + {resources.READ_CPUS:g} for reading)"
        f"{f' + {TRIAL_CPUS:g}' if budget.workers > 1 else ''})"
    )
    resources.check_resources(budget.processes, what=request, autoscaling=autoscaling)
    if autoscaling:
        return budget.concurrent
    fits = fitting(budget, resources.node_resources())
    if fits < budget.concurrent:
        needed, available = (
            resources.shown(resources.total(each))
            for each in (budget.processes, [ray.cluster_resources()])
        )
        say(
            f"{fits} trials at a time instead of sweep.concurrent {budget.concurrent}: each needs"
            f" {needed}, the cluster has {available}"
        )
    return fits


def _open_parent(plan: Plan, mlflow_uri: str, experiment: str) -> Run:
    """The sweep's own MLflow run, under which those of the trials are nested."""
    before = read_record(plan.uri)
    parent = open_run(
        mlflow_uri,
        experiment=experiment,
        name=f"{plan.config.name} (sweep)",
        run_id=before and before.run_id,
        tags={"sweep_folder": plan.uri},
    )
    record = run_folder.TrackingRecord(mlflow_uri, experiment, parent.run_id)
    run_folder.write_tracking(plan.uri, record)
    if before is None:
        # MLflow keeps a parameter's first value, and some may differ when the sweep goes on.
        fields = run_folder.flatten(plan.sweep.model_dump(mode="json"))
        parent.log_params({f"sweep.{name}": value for name, value in fields.items()})
    return parent
