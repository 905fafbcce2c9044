"""Requests that the cluster cannot place are refused before any machine is used."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.compute.resources import (
    booked,
    check_resources,
    detection_shares,
    task_options,
    unplaced,
)
from cluster.errors import UsageError


def test_processes_that_fit_on_no_node_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Four nodes of two CPUs have eight in all, but none has room for a worker of three."""
    nodes = [{"Alive": True, "Resources": {"CPU": 2.0}}] * 4 + [
        {"Alive": False, "Resources": {"CPU": 64.0}}
    ]
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    message = (
        r"^w: 2 of 2 processes fit on no node; one needs 3 CPUs on one node and the 4 nodes have 2"
        r" CPUs; ask for less per process"
    )
    with pytest.raises(UsageError, match=message):
        check_resources([{"CPU": 3.0}] * 2, what="w")
    check_resources([{"CPU": 3.0}] * 2, what="w", autoscaling=True)
    check_resources([{"CPU": 1.0}] * 8, what="w")
    with pytest.raises(UsageError, match="w needs 10 CPUs, the cluster has 8"):
        check_resources([{"CPU": 1.0}] * 10, what="w")
    with pytest.raises(UsageError, match="w needs 1 GPUs, the cluster has 0"):
        check_resources([{"CPU": 1.0, "GPU": 1.0}], what="w")


@given(
    sizes=st.lists(st.integers(1, 8), min_size=1, max_size=6),
    more=st.lists(st.integers(1, 8), min_size=1, max_size=4),
    count=st.integers(1, 12),
)
def test_equal_processes_fill_every_node(sizes: list[int], more: list[int], count: int) -> None:
    """Each node gets as many processes of two CPUs as it has room for, and processes without a GPU
    leave the GPU nodes to those with one.
    """
    mixed = [{"CPU": float(size), "GPU": 1.0} for size in more] + [
        {"CPU": float(size)} for size in sizes
    ]
    assert len(unplaced([{"CPU": 2.0}] * count, mixed)) == max(
        0, count - sum(size // 2 for size in sizes + more)
    )
    graphics = sum(size >= 2 for size in more)
    assert len(unplaced([{"CPU": 2.0, "GPU": 1.0}] * count, mixed)) == max(0, count - graphics)


def nodes_of(monkeypatch: pytest.MonkeyPatch, *cpus: float) -> None:
    nodes = [{"Alive": True, "Resources": {"CPU": count}} for count in cpus]
    monkeypatch.setattr("ray.nodes", lambda: nodes)


def test_a_detection_share_reads_on_the_node_where_it_computes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A task of `detect_set` books 3.9 + 0.25 CPUs, which no node of 4 CPUs has, although 12 CPUs
    are enough for 2 x 3.9 + 0.25.
    """
    nodes_of(monkeypatch, 4, 4, 4)
    shares = detection_shares(workers=2, cpus_per_worker=3.9, gpus_per_worker=0)
    assert shares == [{"CPU": 4.15}] * 2
    with pytest.raises(
        UsageError, match=r"^w: 2 of 2 processes fit on no node; one needs 4.15 CPU"
    ):
        check_resources(shares, what="w")
    check_resources(detection_shares(workers=3, cpus_per_worker=3.75, gpus_per_worker=0), what="w")


def test_a_request_that_leaves_reading_no_cpu_is_refused_with_the_sum(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """3 x (4 + 0.25) = 12.75 CPUs of 12."""
    nodes_of(monkeypatch, 4, 4, 4)
    shares = detection_shares(workers=3, cpus_per_worker=4, gpus_per_worker=0)
    with pytest.raises(UsageError, match="w needs 12.75 CPUs, the cluster has 12; ask for less"):
        check_resources(shares, what="w")


def test_ray_books_what_the_share_says() -> None:
    assert task_options(booked(0.5, 0)) == {"num_cpus": 0.5, "num_gpus": None}
    assert task_options(booked(2, 0.5)) == {"num_cpus": 2, "num_gpus": 0.5}
