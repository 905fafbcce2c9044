"""Shard sets of small COCO folders, prepared in this process or on Ray."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cluster.formats.read import SourcePaths
from cluster.prepare.plan import Options, Plan, plan_shards, source_name
from cluster.prepare.shard_job import ShardJob, run_job
from cluster.prepare.write import Prepared, write_shards
from cluster.reports.summary import summary_lines
from cluster.shards.index import ShardSet

SMALL_SHARDS: dict[str, Any] = {"shard_bytes": 100_000, "row_group_rows": 2}


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


def quiet(line: str) -> None:
    return None


def plan_coco(folder: str, output: str, *, overwrite: bool = False, **options: Any) -> Plan:
    """A plan of the training split of a COCO folder, in several small shards unless `options` say
    otherwise.
    """
    source = SourcePaths(
        "train", "coco", f"{folder}/annotations/instances_train.json", f"{folder}/images/train"
    )
    chosen = Options(**{**SMALL_SHARDS, **options})
    return plan_shards([source], output=output, options=chosen, overwrite=overwrite)


def jobs_of(plan: Plan) -> list[ShardJob]:
    return [plan.job(number) for number in range(len(plan.cuts))]


def write_here(plan: Plan, say: Callable[[str], None] = quiet) -> ShardSet:
    """The set of a plan that has an output, its jobs run in this process."""
    run_here(plan)
    return write_on_ray(plan, say)


def write_on_ray(plan: Plan, say: Callable[[str], None] = quiet) -> ShardSet:
    """The set of a plan that has an output; jobs that are not done yet run on the connected Ray."""
    shard_set = write_shards(plan, say=say).shard_set
    assert shard_set is not None
    return shard_set


def lines_of(prepared: Prepared) -> list[str]:
    return summary_lines(prepared.index, prepared.quarantined)
