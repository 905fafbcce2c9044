"""Real workers that die, hang, fail to start or raise an error."""

from __future__ import annotations

import os
import re
import signal
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.train.v2._internal.execution.callback import WorkerGroupCallback

from cluster.errors import DataError
from cluster.loading import epoch_plan
from cluster.runs import events, run_folder
from cluster.shards.format import Row
from cluster.shards.index import Index, ShardSet, open_shard_set, write_index
from cluster.shards.read import read_columns, read_rows
from cluster.shards.write import write_shard
from cluster.storage import files
from tests.support.gates import Gate
from tests.support.trainings import Watched, configured, last_weights

pytestmark = pytest.mark.integration


def kill(*ranks: int) -> Callable[[dict[int, int]], None]:
    return lambda pids: [os.kill(pids[rank], signal.SIGKILL) for rank in ranks]


def test_no_image_is_lost_when_workers_fail_to_start_die_or_hang(
    small_sets: dict[str, str], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """Two groups of workers fail to start; a failed group frees its CPUs, without which the next
    one would wait without end. Then one worker is killed, then both, then one process is stopped,
    so that it cannot report anything. The other waits for it and reports that, when its watchdog
    sees that hours have passed. Two retries are enough for five failures: only those without a new
    checkpoint between them are counted.
    """
    gate = Gate(tmp_path / "gate", steps=3)

    def stop_rank_1(pids: dict[int, int]) -> None:
        os.kill(pids[1], signal.SIGSTOP)
        gate.let_time_pass(pids[0])

    config = configured(small_sets, tmp_path, "faults", retries=2)
    run = Watched(config, kill(1), kill(0, 1), stop_rank_1, gate=gate, callbacks=[bad_start()])
    assert run.error is None and run.faults == []
    unmet, dead = run.of(events.GroupStartFailed)
    assert unmet.subject == "the start of the workers"
    assert unmet.reason.endswith("connect: no route to host")
    assert dead.subject == "a worker that started"
    assert dead.reason == "its process ended (killed, or out of memory)"
    assert unmet.consequence.startswith("restart 1 of 2")
    assert dead.consequence.startswith("restart 2 of 2")
    assert b"find_no_one" in files.read_bytes(unmet.traceback_uri)
    first, second, third = run.of(events.WorkerFailed)
    assert first.worker.rank == 1
    for failure in (first, second, third):
        assert failure.consequence == "restart 1 of 2 since the newest checkpoint"
        assert failure.reason == "its process ended (killed, or out of memory)"
    (hang,) = run.of(events.WorkerHung)
    assert hang.worker.rank == third.worker.rank == 0
    assert "wait for each other" in hang.location or "waits for other ranks" in hang.location
    assert (
        len(run.of(events.Started)) == len(run.of(events.WorkersPlaced)) == 4
        and len(run.of(events.Resumed)) == 3
    )
    assert last_weights(config) == undisturbed
    assert run_folder.read_finished(config.run_uri) == run_folder.Finished(48, 2)


def bad_start() -> Any:
    """For Ray Train: the workers of the first group do not find each other; rank 1 of the second
    group dies before it trains.
    """

    def find_no_one() -> None:
        raise RuntimeError("[enforce fail at gloo/transport/tcp/pair.cc] connect: no route to host")

    # Defined in here, so that it is sent with its code: Ray's processes do not know this module.
    class BadStart(WorkerGroupCallback):
        def __init__(self) -> None:
            self.marks = tempfile.mkdtemp()

        def after_worker_group_start(self, worker_group: Any) -> None:
            attempt = len(os.listdir(self.marks))
            Path(self.marks, str(attempt)).touch()
            if attempt == 0:
                worker_group.execute(find_no_one)
            if attempt == 1:
                worker_group.execute_single(
                    1, os.kill, worker_group.get_workers()[1].metadata.pid, signal.SIGKILL
                )

    return BadStart()


def test_all_ranks_stop_when_one_raises_and_its_traceback_is_stored(
    small_sets: dict[str, str], tmp_path: Path
) -> None:
    """One image of rank 1's half of the epoch cannot be decoded; prepare would have left it out. If
    rank 0 did not stop waiting, this test would take 30 minutes, torch's timeout. A restart cannot
    fix this error, so there is none.
    """
    source = open_shard_set(small_sets["train"])
    victim = image_of_rank(source, rank=1, seed=0)
    rows = [row for group in range(len(source.rows_per_group)) for row in group_rows(source, group)]
    made = [replace(row, image=b"not a picture") if row.image_id == victim else row for row in rows]
    uri = f"{tmp_path}/one-broken"
    shard = write_shard(uri, "shard-00000-of-00001.parquet", made, row_group_rows=4)
    write_index(uri, Index(source.categories, (shard,), source.counts))
    run = Watched(configured({**small_sets, "train": uri}, tmp_path, "one-raises", retries=2))
    (failure,) = run.of(events.WorkerFailed)
    assert (failure.worker.rank, failure.consequence) == (1, "a restart cannot fix it")
    assert len(run.of(events.Started)) == 1
    assert "cannot be decoded" in failure.reason
    assert type(run.error) is DataError
    assert re.fullmatch(
        rf"training one-raises stopped: .* \(image_id {victim}\): it cannot be decoded: .*; prepare"
        r" the data set again",
        str(run.error),
    )
    details = files.read_bytes(failure.traceback_uri).decode()
    assert "Traceback" in details and "detector/image.py" in details


def group_rows(shard_set: ShardSet, group: int) -> list[Row]:
    count = shard_set.rows_per_group[group]
    table = read_rows([shard_set.locate_group(group)], [(0, row) for row in range(count)])
    return [
        Row(*(row | {"boxes": np.array(row["boxes"], np.float32).reshape(-1, 4)}).values())
        for row in table.to_pylist()
    ]


def image_of_rank(shard_set: ShardSet, *, rank: int, seed: int) -> int:
    """An image of the first batch that this rank of two gets in the first epoch."""
    stored = epoch_plan.epoch_sequence(shard_set.rows_per_group, seed=seed, epoch=0)
    (start, _), *_ = epoch_plan.cut([(0, len(stored))], rank=rank, batches=[2, 2])
    return read_columns(shard_set, ["image_id"])["image_id"].to_pylist()[stored[start]]
