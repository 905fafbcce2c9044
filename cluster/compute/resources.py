"""CPUs and GPUs: what a process books, and whether the cluster can place all processes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from cluster.errors import UsageError

Resources = Mapping[str, float]
"""CPU and GPU by Ray's names: what a process books, or what a node has."""
READ_CPUS = 0.25
"""CPUs booked for reading one rank's rows: the reader waits for storage most of its time."""
DECODE_CPUS = 1
"""CPUs of a task that decodes images for workers on other nodes."""
FEW_IMAGES = 200
"""At most so many are predicted in the calling process: six took 9 s, with Ray 14 s (two cores)."""
_ROUNDING = 1e-6
"""Sums of fractions of a CPU may differ from the node's number by this much."""


class TaskOptions(TypedDict):
    """Keywords of Ray's `options` and of Ray Data's `map_batches`."""

    num_cpus: float
    num_gpus: float | None


def booked(cpus: float, gpus: float) -> dict[str, float]:
    return {"CPU": cpus} | ({"GPU": gpus} if gpus else {})


def reading_worker(cpus: float, gpus: float) -> dict[str, float]:
    """What a process books that computes with `cpus` and `gpus` and reads its own rows on the same
    node: a training worker, a task of `detect_set`, an actor of `predict`.
    """
    return booked(cpus + READ_CPUS, gpus)


def detection_shares(
    *, workers: int, cpus_per_worker: float, gpus_per_worker: float
) -> list[dict[str, float]]:
    """What the tasks of `detect_set` and the actors of `predict` book. Each of them must find its
    place on one node.
    """
    return [reading_worker(cpus_per_worker, gpus_per_worker)] * workers


def decoding_shares() -> list[dict[str, float]]:
    """What decoding in tasks books at least: one task that reads and one that decodes, each on any
    node.
    """
    return [booked(READ_CPUS, 0), booked(DECODE_CPUS, 0)]


def task_options(share: Resources) -> TaskOptions:
    """The keywords with which a Ray task or actor books this share."""
    return {"num_cpus": share["CPU"], "num_gpus": share.get("GPU")}


def alive_nodes() -> list[dict[str, Any]]:
    """The nodes that are up, as `ray.nodes` has them; Ray must be connected."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def node_resources() -> list[Resources]:
    """What each node of the cluster has, also what is in use; Ray must be connected."""
    return [node["Resources"] for node in alive_nodes()]


def usable_cpus() -> int:
    """The cores of this machine that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_resources(
    processes: Sequence[Resources], *, what: str, autoscaling: bool = False
) -> None:
    """Raise `UsageError` where the cluster, when idle, could not place these processes. Each needs
    all that it books on one node; `what` names the request and its fields."""
    nodes = node_resources()
    if autoscaling:
        return
    needed, available = total(processes), total(nodes)
    for name in needed:
        if needed[name] > available[name] + _ROUNDING:
            raise UsageError(
                f"{what} needs {needed[name]:g} {name}s, the cluster has {available[name]:g};"
                " ask for less, add nodes, or set --ray.autoscaling true if the cluster grows by"
                " itself"
            )
    if rest := unplaced(processes, nodes):
        sizes = sorted({shown(node) for node in nodes}, reverse=True)[:4]
        raise UsageError(
            f"{what}: {len(rest)} of {len(processes)} processes fit on no node; one needs"
            f" {shown(rest[0])} on one node and the {len(nodes)} nodes have {'; '.join(sizes)}; ask"
            " for less per process, add nodes, or set --ray.autoscaling true if the cluster grows"
            " by itself"
        )


def unplaced(processes: Sequence[Resources], nodes: Sequence[Resources]) -> list[Resources]:
    """The processes that find no node. The largest is placed first, each on the first node with
    room; processes without a GPU go to nodes without GPUs as long as there is room."""
    free = [dict(node) for node in sorted(nodes, key=lambda node: node.get("GPU", 0.0))]
    rest = []
    for process in sorted(processes, key=lambda p: (-p.get("GPU", 0.0), -p.get("CPU", 0.0))):
        node = next((node for node in free if _has_room(node, process)), None)
        if node is None:
            rest.append(process)
            continue
        for name, amount in process.items():
            node[name] = node.get(name, 0.0) - amount
    return rest


def _has_room(node: Resources, process: Resources) -> bool:
    return all(node.get(name, 0.0) + _ROUNDING >= amount for name, amount in process.items())


def total(shares: Sequence[Resources]) -> dict[str, float]:
    return {name: sum(share.get(name, 0.0) for share in shares) for name in ("CPU", "GPU")}


def shown(share: Resources) -> str:
    """A share in words: "2 CPUs and 1 GPUs"."""
    amounts = [f"{share[name]:g} {name}s" for name in ("CPU", "GPU") if share.get(name)]
    return " and ".join(amounts) or "nothing"
