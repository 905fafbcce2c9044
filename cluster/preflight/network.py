"""How fast gradients travel: an all-reduce over one process for each GPU of the cluster, else over
one for each node, as Ray Train's workers do it.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

from cluster.preflight.finding import Finding
from cluster.preflight.pinned import on_node

FLOATS = 16 << 20
"""64 MiB, about the gradients of half a ResNet-50 detector."""
ROUNDS = 5
ANSWER_S = 90.0
"""Processes that import torch, and a group that forms."""
SLOW_BYTES = 1e9
"""A step of ResNet-50 sends 0.15 GB; below 1 GB/s that takes as long as its computation."""


@dataclass(frozen=True)
class Rank:
    """A process of the group: the node that it runs on, and whether it has a GPU of it."""

    node: str
    gpu: bool


def ranks_of(nodes: Sequence[Mapping[str, Any]]) -> list[Rank]:
    """One for each GPU; in a cluster without GPUs one for each node that has CPUs."""
    with_gpu = [
        Rank(node["NodeID"], True)
        for node in nodes
        for _ in range(int(node["Resources"].get("GPU", 0)))
    ]
    return with_gpu or [Rank(n["NodeID"], False) for n in nodes if n["Resources"].get("CPU")]


def check_network(ranks: Sequence[Rank]) -> Finding:
    """The bus bandwidth of the slowest process, or why the group did not come about. Ray must be
    connected.
    """
    import ray
    from ray.exceptions import GetTimeoutError, RayError

    if len(ranks) < 2:
        return Finding("ok", "network", "one process: no gradients travel")
    backend: Literal["nccl", "gloo"] = "nccl" if ranks[0].gpu else "gloo"
    tasks = []
    try:
        master = ray.get(on_node(_meeting_place, ranks[0].node).remote(), timeout=ANSWER_S)
        tasks = [
            on_node(measure_all_reduce, rank.node, gpus=int(rank.gpu)).remote(
                number, len(ranks), master, backend
            )
            for number, rank in enumerate(ranks)
        ]
        rate = min(ray.get(tasks, timeout=ANSWER_S))
    except GetTimeoutError:
        why = f"no answer from all {len(ranks)} processes within {ANSWER_S:g} s"
        return _failed(backend, why)
    except RayError as error:
        return _failed(backend, str(error).strip().splitlines()[-1])
    finally:
        for task in tasks:
            ray.cancel(task, force=True)
    figure = f"all-reduce of {len(ranks)} processes ({backend}): {rate / 1e9:.1f} GB/s"
    if rate < SLOW_BYTES:
        return Finding(
            "warn",
            "network",
            figure,
            "gradients will be waited for: put the nodes into one zone or placement group, or take"
            " --training.accumulate",
        )
    return Finding("ok", "network", figure)


def _failed(backend: str, why: str) -> Finding:
    return Finding(
        "fail",
        "network",
        f"all-reduce ({backend}): {why}",
        "open all ports between the nodes, wait until other jobs leave their GPUs, and name the"
        " network with NCCL_SOCKET_IFNAME in the environment of `ray start`",
    )


def _meeting_place() -> str:
    """host:port of this node, at which the first process will listen."""
    import ray

    with socket.socket() as listener:
        listener.bind(("", 0))
        return f"{ray.util.get_node_ip_address()}:{listener.getsockname()[1]}"


def measure_all_reduce(rank: int, ranks: int, master: str, backend: str) -> float:
    """Bytes a second over the bus (2 (n - 1) / n times the size, as nccl-tests count it).
    `RuntimeError` where the sum is wrong.
    """
    import torch
    from torch import distributed

    distributed.init_process_group(
        backend,
        init_method=f"tcp://{master}",
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=ANSWER_S / 2),
    )
    try:
        device = "cuda" if backend == "nccl" else "cpu"
        values = torch.full((FLOATS,), float(rank + 1), device=device)
        distributed.all_reduce(values)
        if values[0].item() != values[-1].item() or values[0].item() != ranks * (ranks + 1) / 2:
            raise RuntimeError(f"the sum over {ranks} processes is wrong")
        values.fill_(0.0)
        start = time.perf_counter()
        for _ in range(ROUNDS):
            distributed.all_reduce(values)
        # Waits for the device.
        values[0].item()
        seconds = (time.perf_counter() - start) / ROUNDS
    finally:
        distributed.destroy_process_group()
    return values.nbytes * 2 * (ranks - 1) / ranks / seconds
