"""Rows of a shard set as Ray Datasets, by a plan.

Ray Data's read tasks import this module. It must not import torch: that would cost every new task
process eight seconds before its first row.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.exceptions import RayTaskError

from cluster.compute.resources import DECODE_CPUS, READ_CPUS
from cluster.errors import PlainError
from cluster.loading import epoch_plan
from cluster.shards.format import GroupLocation
from cluster.shards.index import ShardSet
from cluster.shards.read import read_rows

READ_TASKS = 2
"""Read tasks of one rank at a time, so that their transfers overlap. Each task fetches the row
groups of its unit in parallel.
"""
SAMPLES_PER_TASK = 16


def planned_rows(
    shard_set: ShardSet,
    units: Sequence[epoch_plan.Unit],
    *,
    here: bool = True,
    marks: Mapping[str, np.ndarray] | None = None,
) -> ray.data.Dataset:
    """The rows of the units with all columns of a shard, one block per unit, in order.

    The read tasks run on this node and book nothing: the caller has booked `READ_CPUS` for them. If
    the tasks booked that share, workers that fill the nodes left after a failure would wait for
    their data forever. With `here` False the tasks book it themselves, on any node. `marks` are
    further int64 columns, one value per row in the order of the units.
    """
    items, start = [], 0
    for unit in units:
        stop = start + len(unit.rows)
        locations = [shard_set.locate_group(group) for group in unit.groups]
        items.append(
            {
                "locations": locations,
                "rows": unit.rows,
                "marks": {
                    name: values[start:stop].tolist() for name, values in (marks or {}).items()
                },
            }
        )
        start = stop
    booking: dict[str, Any] = {"num_cpus": READ_CPUS}
    if here:
        booking = {
            "num_cpus": 0,
            "label_selector": {"ray.io/node-id": ray.get_runtime_context().get_node_id()},
        }
    # JSON, because Arrow has no type for lists of mixed tuples: Ray would use pickle and warn.
    return _dataset_of(
        [{"unit": json.dumps(item)} for item in items], blocks=len(items)
    ).map_batches(
        # Ray's type asks for a function of every batch format at once.
        _read_unit,  # pyright: ignore[reportArgumentType]
        batch_size=1,
        batch_format="numpy",
        concurrency=min(READ_TASKS, len(items)),
        **booking,
    )


def sampled_rows(
    shard_set: ShardSet,
    units: Sequence[epoch_plan.Unit],
    sample: Callable[[pa.Table], pa.Table],
    *,
    marks: Mapping[str, np.ndarray],
) -> ray.data.Dataset:
    """`planned_rows` as training samples, made in tasks of `DECODE_CPUS`; `sample` is a
    `cluster.loading.sampler.Sampler`.
    """
    return planned_rows(shard_set, units, here=False, marks=marks).map_batches(
        sample, batch_size=SAMPLES_PER_TASK, batch_format="pyarrow", num_cpus=DECODE_CPUS
    )


def iterate(dataset: ray.data.Dataset) -> Iterator[dict[str, Any]]:
    """Rows as plain dicts, in order, one block at a time. A `PlainError` of a task is raised as it
    is, without Ray's wrapping.
    """
    try:
        tables = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)
        for table in cast("Iterator[pa.Table]", tables):
            yield from table.to_pylist()
    except RayTaskError as error:
        if isinstance(error.cause, PlainError):
            raise error.cause from None
        raise


def _dataset_of(items: list[dict[str, Any]], *, blocks: int) -> ray.data.Dataset:
    """A Dataset that keeps the order of its items, shows no progress bar and raises the errors of
    its functions unchanged.
    """
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    # Ray's own error loses the class of the original one.
    context.raise_original_map_exception = True
    return ray.data.from_items(items, override_num_blocks=blocks)


def _read_unit(batch: dict[str, np.ndarray]) -> pa.Table:
    (unit,) = map(json.loads, batch["unit"])
    table = read_rows([GroupLocation(*fields) for fields in unit["locations"]], unit["rows"])
    for name, values in unit["marks"].items():
        table = table.append_column(name, pa.array(values, pa.int64()))
    return table
