"""What `train` would do: what it would read, book and write, and whether it would continue. Nothing
is started, and the run's name is not taken.
"""

from __future__ import annotations

import math

from cluster.compute import resources
from cluster.runs import lease, run_folder
from cluster.runs.config import TrainOptions
from cluster.runs.identity import default_identity, identity
from cluster.shards.index import ShardSet
from cluster.storage.preflight import check_reachable, check_writable
from cluster.tracking.config import TrackingConfig, experiment_name, tracking_uri
from cluster.tracking.preflight import check_experiment, check_server
from cluster.training import placement, preflight
from cluster.training.automatic import fit_to_pictures


def plan_lines(config: TrainOptions, *, tracking: TrackingConfig) -> list[str]:
    """The plan, in lines for a terminal. Errors: see `preflight.check`."""
    config = config.with_absolute_uris()
    uri, experiment = (
        tracking_uri(tracking.uri, config.storage),
        experiment_name(tracking.experiment),
    )
    check_server(uri)
    check_experiment(uri, experiment)
    for one in (config.data.train, config.data.val):
        check_reachable(one)
    check_writable(config.run_uri)
    lease.refuse_held(config.run_uri)
    found = run_folder.checkpoints(config.run_uri)
    config, fitted = fit_to_pictures(config)
    inputs = preflight.check_inputs(config, begun=bool(found))
    same = identity(config, inputs.train_set, inputs.val_set, weights=inputs.weights)
    return [
        f"read     {_shown(inputs.train_set)}",
        f"         {_shown(inputs.val_set)}",
        f"book     {_booked(config)}",
        f"work     {_work(config, inputs.train_set)}",
        f"write    {config.run_uri}",
        f"         MLflow run of {experiment!r} in {uri}",
        *_begin(config, found, same),
        *(f"note     {note}" for note in (*fitted, *inputs.notes)),
        *(f"warning  {warning}" for warning in inputs.warnings),
    ]


def _booked(config: TrainOptions) -> str:
    """The cluster, which decides what is auto, is not asked."""
    if config.training.workers == "auto":
        return "as many workers as suit the cluster (training.workers auto)"
    synchronised = config.model.norm == "sync"  # On GPUs only.
    gpus = 1 if synchronised else 0
    needs = placement.needs(config.settled(workers=1, gpus_per_worker=gpus, decode_threads=1))
    auto = config.training.gpus_per_worker == "auto" and not synchronised
    more = ", and a GPU for each worker if the cluster has them" if auto else ""
    return f"{len(needs)} processes, {resources.shown(resources.total(needs))} in all{more}"


def _shown(shard_set: ShardSet) -> str:
    size = sum(shard.bytes for shard in shard_set.shards) / (1 << 20)
    shards = len(shard_set.shards)
    return f"{shard_set.uri}: {shard_set.num_rows} images in {shards} shards, {size:.1f} MiB"


def _work(config: TrainOptions, train_set: ShardSet) -> str:
    training = config.training
    steps = training.epochs * math.ceil(train_set.num_rows / training.batch_size)
    images = training.epochs * train_set.num_rows
    return (
        f"{training.epochs} epochs of {train_set.num_rows} images, {images} in all, about {steps}"
        f" steps of {training.batch_size}"
    )


def _begin(config: TrainOptions, found: list[str], same: dict[str, object]) -> list[str]:
    """Where the run would begin, or why it would be refused."""
    if (done := run_folder.read_finished(config.run_uri)) is not None:
        state = f"is finished after {done.epochs} epochs"
    elif found:
        state = f"continues from {found[-1]}"
    else:
        return ["begin    a new run"]
    owner = run_folder.read_claim(config.run_uri)
    changes = run_folder.changes(owner, same, default_identity(config)) if owner else {}
    if not changes:
        return [f"begin    the run {state}"]
    return [
        f"begin    would be refused: the run of this name {state}, with other settings;"
        " choose another --name, or repeat the old values",
        *(f"         {field}: {was} -> {now}" for field, (was, now) in changes.items()),
    ]
