"""What is refused before machines are spent: processes that no node of the cluster can hold."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.compute.resources import check_resources, unplaced
from cluster.errors import UsageError


def test_processes_that_no_node_holds_are_refused_before_machines_are_spent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Eight CPUs on four nodes hold no worker of three."""
    nodes = [{"Alive": True, "Resources": {"CPU": 2.0}}] * 4 + [
        {"Alive": False, "Resources": {"CPU": 64.0}}
    ]
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    said = (
        r"^w: 2 of 2 processes find no node, one needs 3 CPUs on one node and the 4 nodes have 2"
        r" CPUs; ask for less a process"
    )
    with pytest.raises(UsageError, match=said):
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
    """As many of two CPUs, with a GPU, as each node has room for, and no GPU is wasted on processes
    that need none.
    """
    mixed = [{"CPU": float(size), "GPU": 1.0} for size in more] + [
        {"CPU": float(size)} for size in sizes
    ]
    assert len(unplaced([{"CPU": 2.0}] * count, mixed)) == max(
        0, count - sum(size // 2 for size in sizes + more)
    )
    graphics = sum(size >= 2 for size in more)
    assert len(unplaced([{"CPU": 2.0, "GPU": 1.0}] * count, mixed)) == max(0, count - graphics)
