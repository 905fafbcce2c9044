"""The all-reduce of the preflight, over gloo."""

from __future__ import annotations

import pytest

from cluster.preflight import network
from cluster.preflight.network import Rank, check_network, ranks_of


def test_each_gpu_is_a_process_and_without_gpus_each_node_with_cpus() -> None:
    head = {"NodeID": "h", "Resources": {"memory": 1.0}}
    small = {"NodeID": "a", "Resources": {"CPU": 4.0}}
    large = {"NodeID": "b", "Resources": {"CPU": 4.0, "GPU": 2.0}}
    assert ranks_of([head, small, large]) == [Rank("b", True)] * 2
    assert ranks_of([head, small, small]) == [Rank("a", False)] * 2


def test_two_processes_sum_and_say_how_fast(
    ray_cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    (node,) = ray.nodes()
    here = Rank(node["NodeID"], False)
    assert check_network([here]).figure == "one process: no gradients travel"
    monkeypatch.setattr(network, "SLOW_BYTES", 0.0)
    monkeypatch.setattr(network, "ANSWER_S", 900.0)
    found = check_network([here, here])
    assert found.state == "ok" and "all-reduce of 2 processes (gloo): " in found.figure
    monkeypatch.setattr(network, "ANSWER_S", 0.0)
    lost = check_network([here, here])
    assert lost.state == "fail" and "NCCL_SOCKET_IFNAME" in lost.remedy
