"""A shard set of one COCO JSON in one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cluster.formats.read import SourcePaths
from cluster.prepare.plan import Options, Plan, plan_shards, source_name
from cluster.prepare.shard_job import run_job
from cluster.prepare.write import write_shards
from cluster.shards.index import ShardSet


def prepare_coco(
    *,
    annotations: str,
    images: str,
    output: str,
    overwrite: bool = False,
    on_ray: bool = False,
    say: Callable[[str], None] = lambda line: None,
    **options: Any,
) -> ShardSet:
    """`options` are fields of `Options`. Without `on_ray` the jobs run in this process and no Ray
    is needed.
    """
    source = SourcePaths(source_name(annotations), "coco", annotations, images)
    plan = plan_shards([source], output=output, overwrite=overwrite, options=Options(**options))
    if not on_ray:
        run_here(plan)
    shard_set = write_shards(plan, say=say).shard_set
    assert shard_set is not None
    return shard_set


def run_here(plan: Plan) -> None:
    """Run the jobs of a plan in this process; `write_shards` then finds the shards finished."""
    for number in range(len(plan.cuts) if plan.finished is None else 0):
        run_job(plan.job(number))
