"""Parts of an anchor search as Ray tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cluster.compute.session import fetch
from tune.anchors import Part, Result


def over_ray(function: Callable[[Part], Result], parts: Sequence[Part], /) -> list[Result]:
    """`Spread` over the cluster that is connected: one CPU a part. A `PlainError` of a task is
    raised as it is.
    """
    import ray

    # Ray takes a function only, and `function` may be a partial.
    def call(part: Part) -> Result:
        return function(part)

    task = ray.remote(num_cpus=1)(call)
    return fetch([task.remote(part) for part in parts])
