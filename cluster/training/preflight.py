"""Checks everything that can be wrong with a training before any machine is used."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cluster.errors import UsageError
from cluster.reports import anchor_fit
from cluster.runs import lease, parent_checkpoint, run_folder, weight_file
from cluster.runs.config import TrainOptions
from cluster.runs.data_config import SamplingConfig
from cluster.runs.identity import default_identity, identity
from cluster.runs.package import package_of
from cluster.runs.training_config import PROFILE_AFTER
from cluster.shards import statistics
from cluster.shards.classes import ClassMatch, match_classes
from cluster.shards.index import ShardSet, open_shard_set
from cluster.storage.preflight import check_reachable, check_writable

FEWEST_UPDATES = 20
"""Of the weights; a training of fewer prints a warning."""


@dataclass(frozen=True)
class Checked:
    """A configuration that may be launched, with what `check` has read."""

    train_set: ShardSet
    identity: dict[str, Any]
    """`cluster.runs.identity.identity`."""
    begun: bool
    """Whether the run has a checkpoint to continue from."""
    run_uuid: str
    """See `run_folder.claim`."""
    notes: tuple[str, ...] = ()
    """What the user should know before it starts, a line each."""
    warnings: tuple[str, ...] = ()
    """What will probably make the result bad, a line each."""


@dataclass(frozen=True)
class Inputs:
    """What a training reads, checked."""

    train_set: ShardSet
    val_set: ShardSet
    weights: str | None
    """Digest of the weight file or checkpoint that the run starts from."""
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def check(config: TrainOptions) -> Checked:
    """Check data, storage, weight file and the run's name. `UsageError` or `PlainError` for the
    first fault.
    """
    # Also here, so that storage which does not answer is named by its option.
    for uri in (config.data.train, config.data.val):
        check_reachable(uri)
    check_writable(config.run_uri)
    lease.refuse_held(config.run_uri)
    begun = bool(run_folder.checkpoints(config.run_uri))
    inputs = check_inputs(config, begun=begun)
    same = identity(config, inputs.train_set, inputs.val_set, weights=inputs.weights)
    run_uuid = run_folder.claim(
        config.run_uri,
        config.model_dump(mode="json"),
        same,
        begun=begun,
        defaults=default_identity(config),
    )
    return Checked(inputs.train_set, same, begun, run_uuid, inputs.notes, inputs.warnings)


def check_inputs(config: TrainOptions, *, begun: bool) -> Inputs:
    """Check data and weight file, without a claim on the run's name. `begun`: the run has a
    checkpoint to continue from. `UsageError` or `PlainError` for the first fault.
    """
    for uri in (config.data.train, config.data.val):
        check_reachable(uri)
    train_set, val_set = open_shard_set(config.data.train), open_shard_set(config.data.val)
    _check_sets(config, train_set, val_set)
    classes = match_val(val_set, train_set.class_names)
    _check_profile(config, train_set)
    # A training that has begun has been told so.
    warnings: tuple[str, ...] = ()
    if not begun:
        objects = _check_objects(config, train_set, val_set)
        warnings = (*objects, *_too_short(config, train_set))
    weights = _weights_digest(config, train_set, begun=begun)
    return Inputs(train_set, val_set, weights, classes.notes("data.val"), warnings)


def _check_sets(config: TrainOptions, train_set: ShardSet, val_set: ShardSet) -> None:
    if not train_set.num_rows or not val_set.num_rows:
        empty = "data.train" if not train_set.num_rows else "data.val"
        raise UsageError(f"{empty}: has no images; prepare it from annotations that list some")
    unknown = sorted(set(config.sampling.source_weights) - set(train_set.source_names))
    if unknown:
        known = ", ".join(train_set.source_names)
        raise UsageError(
            f"sampling.source_weights {unknown[0]}: is no source of data.train, which has {known};"
            " name one of these"
        )


def _check_objects(config: TrainOptions, train_set: ShardSet, val_set: ShardSet) -> tuple[str, ...]:
    """What is said of how the objects fit the network. `DataError` where a set has none."""
    statistics.read_objects(val_set, subject=f"data.val {val_set.uri}")
    objects = statistics.read_objects(train_set, subject=f"data.train {train_set.uri}")
    if config.model.architecture != "retinanet":
        return ()
    view = anchor_fit.View(config.canvas, config.model.anchors)
    unfit = anchor_fit.warning(objects, train_set.class_names, view)
    return (unfit,) if unfit else ()


def _too_short(config: TrainOptions, train_set: ShardSet) -> tuple[str, ...]:
    training = config.training
    updates = training.epochs * math.ceil(train_set.num_rows / training.batch_size)
    if updates >= FEWEST_UPDATES:
        return ()
    return (
        f"the training has {updates} updates of the weights, too few to learn from (below"
        f" {FEWEST_UPDATES}; hundreds are usual); give more"
        " --training.epochs or a smaller --training.batch_size",
    )


def match_val(val_set: ShardSet, class_names: Sequence[str]) -> ClassMatch:
    """The labels of data.val in terms of the classes of data.train, which are the model's. They
    may have another order there. `UsageError` where they are others.
    """
    return match_classes(
        val_set.class_names,
        class_names,
        subject=f"data.val {val_set.uri}",
        of="data.train",
        remedy="prepare both from annotations with the same classes",
    )


def _check_profile(config: TrainOptions, train_set: ShardSet) -> None:
    training = config.training
    steps = training.epochs * math.ceil(train_set.num_rows / training.batch_size)
    # With another sampling an epoch has another number of images, which only workers count.
    if (
        config.sampling == SamplingConfig()
        and 0 < training.profile_steps
        and steps < PROFILE_AFTER + training.profile_steps
    ):
        possible = max(0, steps - PROFILE_AFTER)
        raise UsageError(
            f"training.profile_steps {training.profile_steps}: the run has {steps} steps in all and"
            f" the first {PROFILE_AFTER} are not recorded; take"
            f" {f'at most {possible}' if possible else '0'}, or more epochs"
        )


def _weights_digest(config: TrainOptions, train_set: ShardSet, *, begun: bool) -> str | None:
    """Digest of the weight file or checkpoint that the run starts from. Until the run has `begun`
    it must exist and fit the model; after that it may be gone, but it must not have changed.
    """
    if config.pretrained is not None:
        name, uri = "pretrained", config.pretrained
    elif config.from_checkpoint is not None:
        name, uri = "from_checkpoint", config.from_checkpoint
    else:
        return None
    try:
        if name == "pretrained":
            model = None if begun else package_of(config, train_set).description.model
            return weight_file.check(uri, model)
        return (
            parent_checkpoint.digest(uri) if begun else parent_checkpoint.check(config, train_set)
        )
    except UsageError:
        owner = run_folder.read_claim(config.run_uri)
        stored = owner.config.get(name) if owner else None
        # Version 0.1 stored the path as it was typed, often relative.
        if not begun or owner is None or not _same_file(stored, uri):
            raise
        return owner.identity[name]


def _same_file(stored: str | None, uri: str) -> bool:
    return stored is not None and weight_file.absolute(stored) == weight_file.absolute(uri)
