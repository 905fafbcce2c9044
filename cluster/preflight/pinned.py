"""Tasks that run on one node and on no other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def on_node(
    function: Callable[..., Any], node_id: str, *, gpus: float = 0, retries: int = 0
) -> Any:
    """`function` as a Ray task for this node, which books GPUs alone. `retries`: how often it is
    done again where its process dies.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return ray.remote(function).options(
        num_cpus=0,
        num_gpus=gpus,
        max_retries=retries,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
    )
