"""Search the focal loss (gamma, alpha) and, if asked, the learning rate: several short trainings,
the best configuration as YAML.

    python -m pipelines.sweep --config pipelines/recipes/small_r18.yaml --data.train runs/data/train
    --data.val runs/data/val --name cells \
        --sweep.trials 8 --sweep.concurrent 2 --sweep.epochs 5

Repeating the command continues an interrupted sweep: finished trials are kept, those under way go
on from their checkpoints.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from cluster.compute.session import RayConfig
from cluster.runs.config import TrainConfig
from cluster.tracking.config import TrackingConfig
from pipelines.command_line import run_verb
from pipelines.train import TrainVerb
from tune.space import SweepConfig


class SweepVerb(TrainVerb):
    """Search hyper-parameters of RetinaNet."""

    sweep: SweepConfig = Field(SweepConfig(), description="what is searched, with what budget")


def main(config: SweepVerb) -> None:
    training = TrainConfig.model_validate(config.model_dump(include=set(TrainConfig.model_fields)))
    sweep(training, config.sweep, ray=config.ray, tracking=config.tracking)


def sweep(
    config: TrainConfig, budget: SweepConfig, *, ray: RayConfig, tracking: TrackingConfig
) -> dict[str, Any]:
    """Run, continue or find the sweep `config.name`; returns {"best": URI of best.yaml, "records":
    the trials' records, best first}.
    """
    from cluster.compute.session import connect
    from cluster.storage import files
    from cluster.storage.uris import join
    from cluster.tracking.config import check_server, tracking_uri, ui_command
    from tune import search

    mlflow_uri = tracking_uri(tracking.uri, config.storage)
    check_server(mlflow_uri)
    uri = search.sweep_uri(config.storage, config.name)
    search.check(config, budget, uri)
    if files.exists(join(uri, search.RESULTS)):
        records = files.read_json(join(uri, search.RESULTS))
        print(f"{uri}: this sweep is finished; nothing was tried again")
    else:
        connect(ray.address, num_cpus=ray.num_cpus, logs=ray.logs)
        at_once = trials_at_once(budget, autoscaling=ray.autoscaling)
        records = search.tracked(
            config,
            budget,
            uri=uri,
            concurrent=at_once,
            mlflow_uri=mlflow_uri,
            experiment=tracking.experiment,
            say=lambda line: print(f"[sweep] {line}", flush=True),
        )
    failed = [record for record in records if record["status"] == search.FAILED]
    places = (
        f"--data.train {config.data.train} --data.val {config.data.val} --storage {config.storage}"
    )
    print(f"trials   {len(records)}, of which {len(failed)} failed: {join(uri, search.TABLE)}")
    for record in failed[:5]:
        print(f"         {record['trial']}: {record['reason']}")
    print(
        f"best     {records[0]['trial']}: AP {records[0]['AP']:.4f} with"
        f" {search.shown(records[0]['sample'])}"
    )
    print(
        f"use it   python -m pipelines.train --config {join(uri, search.BEST)} {places} --name"
        f" {config.name}-best"
    )
    print(f"see it   {ui_command(mlflow_uri)}")
    return {"best": join(uri, search.BEST), "records": records}


def trials_at_once(budget: SweepConfig, *, autoscaling: bool) -> int:
    """`sweep.concurrent`, or what the cluster holds, said in one line; `UsageError` when it cannot
    hold one trial.
    """
    import ray

    from cluster.compute.resources import check_resources, shown, total
    from tune import search

    what = (
        f"one trial (sweep.workers {budget.workers} x (sweep.cpus_per_worker"
        f" {budget.cpus_per_worker:g} + 0.25 for reading) + 0.01)"
    )
    check_resources(search.processes(budget), what=what, autoscaling=autoscaling)
    if autoscaling:
        return budget.concurrent
    fits = search.fitting(budget, [node["Resources"] for node in ray.nodes() if node["Alive"]])
    if fits < budget.concurrent:
        asked, held = (
            shown(total(every)) for every in (search.processes(budget), [ray.cluster_resources()])
        )
        print(
            f"[sweep] {fits} trials at a time instead of sweep.concurrent {budget.concurrent}: each"
            f" needs {asked}, the cluster has {held}"
        )
    return fits


if __name__ == "__main__":
    run_verb(
        SweepVerb,
        main,
        description=(
            "Search hyper-parameters with Ray Tune: Optuna proposes, ASHA stops early, the best"
            " configuration is written as YAML."
        ),
    )
