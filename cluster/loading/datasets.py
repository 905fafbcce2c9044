"""Rows as Ray Datasets: those of a shard set by a plan, and files by their URIs.

Ray Data's read tasks import this module and nothing heavier: with torch in it, every new task
process paid eight seconds before its first row.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data

from cluster.compute.resources import READ_CPUS
from cluster.errors import PlainError
from cluster.loading import epoch_plan
from cluster.shards.format import Place
from cluster.shards.index import ShardSet
from cluster.shards.read import read_rows
from cluster.storage import files

ROWS_PER_BLOCK = 64
READ_TASKS = 2
"""Read tasks of one rank at a time: one's transfer behind the other's, and each fetches the row
groups of its unit side by side.
"""
SAMPLES_PER_TASK = 16


def planned_rows(
    shard_set: ShardSet, units: Sequence[epoch_plan.Unit], *, here: bool = True, **marks: np.ndarray
) -> ray.data.Dataset:
    """The units' rows with all columns of a shard, one block a unit, in order.

    They are read on this node and on the account of whoever calls, who has booked `READ_CPUS` for
    it: were that share booked by the tasks, workers that fill the nodes which a failure left would
    wait for ever for their data. With `here` False tasks book it, on whichever node. `marks` are
    further int64 columns, one value for each row in the order of the units.
    """
    items, start = [], 0
    for unit in units:
        stop = start + len(unit.rows)
        places = [shard_set.locate_group(group) for group in unit.groups]
        items.append(
            {
                "places": places,
                "rows": unit.rows,
                "marks": {name: values[start:stop].tolist() for name, values in marks.items()},
            }
        )
        start = stop
    place: dict[str, Any] = {"num_cpus": READ_CPUS}
    if here:
        place = {
            "num_cpus": 0,
            "label_selector": {"ray.io/node-id": ray.get_runtime_context().get_node_id()},
        }
    # As JSON, because Arrow has no type for lists of mixed tuples and Ray would fall back to
    # pickle, with a warning.
    return dataset_of(
        [{"unit": json.dumps(item)} for item in items], blocks=len(items)
    ).map_batches(
        read_unit,
        batch_size=1,
        batch_format="numpy",
        concurrency=min(READ_TASKS, len(items)),
        **place,
    )


def sampled_rows(
    shard_set: ShardSet,
    units: Sequence[epoch_plan.Unit],
    sample: Callable[[pa.Table], pa.Table],
    **marks: np.ndarray,
) -> ray.data.Dataset:
    """`planned_rows`, each made into a training sample in tasks of one CPU; `sample` is a
    `cluster.loading.sampler.Sampler`.
    """
    return planned_rows(shard_set, units, here=False, **marks).map_batches(
        sample, batch_size=SAMPLES_PER_TASK, batch_format="pyarrow", num_cpus=1
    )


def file_rows(uris: Sequence[str], *, workers: int = 1) -> ray.data.Dataset:
    """Files as rows `uri`, `image` (bytes), `error` (why it could not be read, else null), in the
    given order, in blocks enough for all `workers`.
    """
    dataset = dataset_of(
        [{"uri": uri} for uri in uris],
        blocks=max(1, -(-len(uris) // rows_per_block(len(uris), workers))),
    )
    return dataset.map_batches(read_files, batch_size=8, batch_format="numpy", num_cpus=READ_CPUS)


def rows_per_block(rows: int, workers: int) -> int:
    """A worker takes whole blocks: with the 64 pictures of a small set in one of them, only one
    worker would work.
    """
    return max(1, min(ROWS_PER_BLOCK, -(-rows // workers)))


def iterate(dataset: ray.data.Dataset) -> Iterator[dict[str, Any]]:
    """Rows as plain dicts, in order, a block at a time. A `PlainError` of a task is raised as it
    was there.
    """
    try:
        for table in dataset.iter_batches(
            batch_size=None, batch_format="pyarrow", prefetch_batches=1
        ):
            yield from table.to_pylist()
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, PlainError):
            raise error.cause from None
        raise


def dataset_of(items: list[dict[str, Any]], *, blocks: int) -> ray.data.Dataset:
    """A Dataset that keeps the order of its items, shows no progress and raises what its functions
    raised.
    """
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    # Not wrapped in one of Ray's, which forgets the class of the original.
    context.raise_original_map_exception = True
    return ray.data.from_items(items, override_num_blocks=blocks)


def read_unit(batch: dict[str, np.ndarray]) -> pa.Table:
    (unit,) = map(json.loads, batch["unit"])
    table = read_rows([Place(*place) for place in unit["places"]], unit["rows"])
    for name, values in unit["marks"].items():
        table = table.append_column(name, pa.array(values, pa.int64()))
    return table


def read_files(batch: dict[str, np.ndarray]) -> pa.Table:
    rows = []
    for uri in batch["uri"]:
        try:
            rows.append({"uri": str(uri), "image": files.read_bytes(str(uri)), "error": None})
        # one unreadable object costs its own row, whatever the storage library raises for it
        except Exception as error:
            rows.append({"uri": str(uri), "image": b"", "error": f"cannot be read: {error}"})
    return pa.Table.from_pylist(
        rows,
        schema=pa.schema([("uri", pa.string()), ("image", pa.binary()), ("error", pa.string())]),
    )
