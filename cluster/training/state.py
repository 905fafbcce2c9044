"""What a worker starts from: the run's newest checkpoint; where there is none yet, a weight file,
another run's checkpoint, or its seed.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from cluster.errors import UsageError
from cluster.runs import weight_file
from cluster.training import checkpoints
from detector.checkpoint import load_checkpoint, load_weights
from detector.optimizer import MovingAverage
from detector.weights import PretrainedReport, load_pretrained

if TYPE_CHECKING:
    from cluster.training.worker import Worker


def resume(worker: Worker) -> None:
    """Continue from the newest checkpoint that is whole. Rank 0 chooses, so that all ranks take the
    same one.
    """
    with tempfile.TemporaryDirectory(prefix="resume-") as parent:
        folder = os.path.join(parent, "checkpoint")
        found: list[str | None] = [worker.checkpoints.newest(folder) if worker.rank == 0 else None]
        if worker.ranks > 1:
            dist.broadcast_object_list(found, src=0)
        (uri,) = found
        if uri is None:
            load_weight_file(worker)
            load_start(worker, folder)
            return
        if worker.rank:
            checkpoints.fetch(uri, folder)
        state = load(worker, uri, folder)
    worker.told.extend(state.get("told", ()))
    worker.resumed_from = uri
    worker.tell("resume", checkpoint=uri, images_seen=worker.images_seen, epoch=worker.epoch)


def load(worker: Worker, uri: str, folder: str) -> dict[str, Any]:
    """Take over the whole state of the checkpoint `uri`, whose verified files lie in `folder`, and
    return its state.json.
    """
    try:
        state = load_checkpoint(
            folder, model=worker.model, optimizer=worker.optimizer, average=worker.average
        )
        worker.epoch, worker.images_seen, worker.reports.left_out = (
            state[name] for name in ("epoch", "images_seen", "left_out")
        )
        worker.loss_normalizer = state["loss_normalizer"]
        worker.left = [tuple(interval) for interval in state["left"]]
    except KeyError as error:
        raise UsageError(checkpoints.other_version(uri, error)) from error
    except ValueError as error:
        raise UsageError(str(error).replace(folder, uri)) from error
    if state["data_digest"] != worker.train_set.digest:
        raise UsageError(
            f"{uri}: was trained on data {state['data_digest'][:12]}, data.train is"
            f" {worker.train_set.digest[:12]}; use a new --name for new data"
        )
    return state


def load_weight_file(worker: Worker) -> None:
    """Start from the weight file, if one was named. Rank 0 reads it and sends it on: one download,
    and the same weights on every rank.
    """
    uri = worker.job["pretrained"]
    if uri is None:
        return
    if worker.rank == 0:
        with weight_file.local_file(uri) as path:
            try:
                report = load_pretrained(worker.model, path)
            except ValueError as error:
                raise UsageError(str(error).replace(path, uri)) from error
        worker.tell("weights", uri=uri, **asdict(report))
    if worker.ranks > 1:
        for value in worker.model.state_dict().values():
            sent = value.contiguous()
            dist.broadcast(sent, src=0)
            value.copy_(sent)
    if worker.average is not None:
        worker.average = MovingAverage(worker.model, images=worker.average.images)


def load_start(worker: Worker, folder: str) -> None:
    """Start from another run's checkpoint, if one was named; `folder` is free for its files."""
    uri = worker.job["start"]
    if uri is None:
        return
    checkpoints.fetch(uri, folder)
    if worker.job["from_state"] == "full":
        load(worker, uri, folder)
        worker.tell("resume", checkpoint=uri, images_seen=worker.images_seen, epoch=worker.epoch)
        return
    name = next(
        name
        for name in ("ema.safetensors", "model.safetensors")
        if os.path.exists(os.path.join(folder, name))
    )
    try:
        load_weights(worker.model, os.path.join(folder, name))
    except ValueError as error:
        raise UsageError(str(error).replace(folder, uri)) from error
    if worker.average is not None:
        worker.average = MovingAverage(worker.model, images=worker.average.images)
    report = PretrainedReport(
        "checkpoint of another run", len(worker.model.state_dict()), (), (), (), ()
    )
    worker.tell("weights", uri=f"{uri}/{name}", **asdict(report))
