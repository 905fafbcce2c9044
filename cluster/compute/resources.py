"""CPUs and GPUs: what a piece of work books, and whether the cluster can hold it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cluster.errors import UsageError

Resources = Mapping[str, float]
"""CPU and GPU by Ray's names: what a process books or a node has."""


def check_resources(
    processes: Sequence[Resources], *, what: str, autoscaling: bool = False
) -> None:
    """Raise `UsageError` when the cluster, empty, could not hold these processes, each of which
    needs what it books on one node; `what` names the request and its fields."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if autoscaling:
        return
    asked, has = total(processes), total(nodes)
    for name in asked:
        if asked[name] > has[name] + 1e-6:
            raise UsageError(
                f"{what} needs {asked[name]:g} {name}s, the cluster has {has[name]:g}; "
                "ask for less, add nodes, or say --ray.autoscaling true if it grows by itself"
            )
    if left := unplaced(processes, nodes):
        needs, sizes = (
            shown(left[0]),
            "; ".join(sorted({shown(node) for node in nodes}, reverse=True)[:4]),
        )
        raise UsageError(
            f"{what}: {len(left)} of {len(processes)} processes find no node, one needs {needs} on"
            f" one node and the {len(nodes)} nodes have {sizes}; ask for less a process, add nodes,"
            " or say --ray.autoscaling true if the cluster grows by itself"
        )


def unplaced(processes: Sequence[Resources], nodes: Sequence[Resources]) -> list[Resources]:
    """The processes that are left when the others have their share of a node: the largest first,
    each on the first node that has room, those without a GPU on nodes without any while there is
    one."""
    free = [dict(node) for node in sorted(nodes, key=lambda node: node.get("GPU", 0.0))]
    left = []
    for needs in sorted(processes, key=lambda one: (-one.get("GPU", 0.0), -one.get("CPU", 0.0))):
        node = next(
            (
                node
                for node in free
                if all(node.get(name, 0.0) + 1e-6 >= asked for name, asked in needs.items())
            ),
            None,
        )
        if node is None:
            left.append(needs)
            continue
        for name, asked in needs.items():
            node[name] = node.get(name, 0.0) - asked
    return left


def total(every: Sequence[Resources]) -> dict[str, float]:
    return {name: sum(held.get(name, 0.0) for held in every) for name in ("CPU", "GPU")}


def shown(held: Resources) -> str:
    return (
        " and ".join(f"{held[name]:g} {name}s" for name in ("CPU", "GPU") if held.get(name))
        or "nothing"
    )


READ_CPUS = 0.25
"""CPUs that are booked for reading a rank's rows: it waits for storage most of its time."""


def booked(cpus: float, gpus: float) -> dict[str, float]:
    return {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
