"""What verbs that score or predict are given: a registered model, a shard set, how the classes of
the two match, and the processes that hold the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cluster.compute import resources, session
from cluster.compute.session import RayConfig
from cluster.preflight.cluster import refuse_unfit_nodes
from cluster.runs.package_files import read_classes
from cluster.shards.classes import ClassMatch, match_classes, read_class_map
from cluster.shards.index import ShardSet, open_shard_set
from cluster.shards.statistics import read_objects
from cluster.storage import preflight, uris
from cluster.tracking.config import TrackingConfig, tracking_uri
from cluster.tracking.preflight import check_server
from cluster.tracking.registry import Version, parse_model_uri, resolve

MAP_REMEDY = "--classes FILE says which are the same, or leaves some out"


@dataclass(frozen=True)
class Replicas:
    """The processes that hold the model, at least, and what each books; reading books more."""

    workers: int
    cpus_per_worker: float
    gpus_per_worker: float


def find_model(model: str, tracking: TrackingConfig, storage: str) -> tuple[Version, str]:
    """The version that `models:/NAME@alias` or `models:/NAME/3` names, and the URI of its MLflow
    store. `UsageError` where there is none.
    """
    store = tracking_uri(tracking.uri, storage)
    parse_model_uri(model)
    check_server(store, must_exist=True)
    return resolve(model, tracking=store), store


def open_set(data: str, *, needs_objects: bool = True) -> ShardSet:
    """The shard set `data`. `DataError` where it has no object, without which nothing is scored."""
    preflight.check_reachable(data)
    shard_set = open_shard_set(data)
    if needs_objects:
        read_objects(shard_set, subject=f"data {shard_set.uri}")
    return shard_set


def given_classes(class_map: str | None) -> dict[str, str] | None:
    """The content of the file that --classes names."""
    if not class_map:
        return None
    uri = uris.absolute(class_map)
    preflight.check_readable(uri)
    return read_class_map(uri)


def matched_classes(
    shard_set: ShardSet,
    package: str,
    name: str,
    given: Mapping[str, str] | None = None,
    *,
    remedy: str = MAP_REMEDY,
) -> ClassMatch:
    """The classes of the set in terms of those of the model `name`, whose package is in a local
    folder. `given` is what --classes says.
    """
    return match_classes(
        shard_set.class_names,
        [category.name for category in read_classes(package)],
        subject=f"data {shard_set.uri}",
        of=f"the model {name}",
        remedy=remedy,
        given=given,
    )


def connect_for(replicas: Replicas, ray: RayConfig, output: str | None = None) -> None:
    """Join or start Ray, and refuse what the cluster has no room for. With an `output` that the
    nodes write to, nodes that cannot do the work are refused too.
    """
    session.connect(ray.address, num_cpus=ray.num_cpus, logs=ray.logs)
    resources.check_resources(
        resources.detection_shares(**vars(replicas)),
        what=f"workers {replicas.workers} x (cpus_per_worker {replicas.cpus_per_worker:g} +"
        f" {resources.READ_CPUS:g} for reading)",
        autoscaling=ray.autoscaling,
    )
    if output is not None:
        refuse_unfit_nodes(output, gpus=replicas.gpus_per_worker > 0)
