"""What a worker needs to continue a training: weights, optimiser, average, and how far it is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from cluster.errors import UsageError
from cluster.loading import epoch_plan
from cluster.training.checkpoint_download import other_version
from detector.baseline import Baseline
from detector.checkpoint import Snapshot, load_checkpoint, load_weights, take_snapshot
from detector.loss import FIRST_AVERAGE
from detector.model import RetinaNet
from detector.optimizer import MovingAverage


@dataclass
class Progress:
    """How far a training is; the same on every rank."""

    images_per_epoch: int
    epoch: int = 0
    """The current one, counted from 0."""
    images_seen: int = 0
    """In the whole run."""
    remaining: epoch_plan.Intervals = field(init=False)
    """Intervals of this epoch's sequence that no rank has trained on yet."""
    skipped_updates: int = 0
    """Updates skipped in the run because they were not finite."""

    def __post_init__(self) -> None:
        self.remaining = [(0, self.images_per_epoch)]

    def advance(self, remaining: epoch_plan.Intervals) -> int:
        """A step was made, after which these intervals remain. Returns the images of the step."""
        before, self.remaining = self.images_seen, remaining
        self.images_seen = (self.epoch + 1) * self.images_per_epoch - epoch_plan.size(remaining)
        return self.images_seen - before

    def begin_next_epoch(self) -> None:
        self.epoch += 1
        self.remaining = [(0, self.images_per_epoch)]


class TrainingState:
    """All ranks hold the same state. It travels from worker to worker through checkpoints, of which
    state.json has these entries beside those that the caller adds: `images_seen`, `epoch`, `left`
    (`Progress.remaining`), `left_out` (`Progress.skipped_updates`) and `loss_normalizer`.
    """

    def __init__(
        self,
        model: RetinaNet | Baseline,
        optimizer: torch.optim.Optimizer,
        average: MovingAverage | None,
        *,
        images_per_epoch: int,
    ):
        self.model, self.optimizer, self.average = model, optimizer, average
        self.progress = Progress(images_per_epoch)
        self.loss_normalizer: float | torch.Tensor = FIRST_AVERAGE
        """Moving average of the positive anchors; a scalar on the device while steps run."""

    def advance(
        self, remaining: epoch_plan.Intervals, loss_normalizer: float | torch.Tensor
    ) -> int:
        """A step was made, after which these intervals of the epoch remain. Returns its images."""
        self.loss_normalizer = loss_normalizer
        images = self.progress.advance(remaining)
        if self.average is not None:
            self.average.update(self.model, images)
        return images

    def snapshot(self, more: Mapping[str, Any], *, memory: Snapshot | None = None) -> Snapshot:
        """A copy of everything, with `more` entries for state.json; `memory` is an older snapshot
        whose memory is used again.
        """
        progress = self.progress
        own = {
            "images_seen": progress.images_seen,
            "epoch": progress.epoch,
            "left": progress.remaining,
            "left_out": progress.skipped_updates,
            "loss_normalizer": float(self.loss_normalizer),
        }
        return take_snapshot(
            model=self.model,
            optimizer=self.optimizer,
            average=self.average,
            state={**own, **more},
            before=memory,
        )

    def load(self, folder: str, uri: str, *, data_digest: str) -> dict[str, Any]:
        """Take over the checkpoint whose verified files are in `folder`; `uri` names it in errors.
        Returns its state.json. `UsageError` where it belongs to another network, another version of
        this code or other data.
        """
        try:
            state = load_checkpoint(
                folder, model=self.model, optimizer=self.optimizer, average=self.average
            )
            progress = self.progress
            progress.epoch, progress.images_seen = state["epoch"], state["images_seen"]
            progress.skipped_updates = state["left_out"]
            progress.remaining = [(start, end) for start, end in state["left"]]
            self.loss_normalizer = state["loss_normalizer"]
        except KeyError as error:
            raise UsageError(other_version(uri, error)) from error
        except ValueError as error:
            raise UsageError(str(error).replace(folder, uri)) from error
        if state["data_digest"] != data_digest:
            raise UsageError(
                f"{uri}: was trained on data {state['data_digest'][:12]}, data.train is"
                f" {data_digest[:12]}; use a new --name for new data"
            )
        return state

    def load_weights(self, folder: str, uri: str) -> str:
        """Take over only the weights of a checkpoint, the averaged ones where it has any. Returns
        the name of the file.
        """
        name = next(
            name
            for name in ("ema.safetensors", "model.safetensors")
            if os.path.exists(os.path.join(folder, name))
        )
        try:
            load_weights(self.model, os.path.join(folder, name))
        except ValueError as error:
            raise UsageError(str(error).replace(folder, uri)) from error
        self.restart_average()
        return name

    def restart_average(self) -> None:
        """The average begins anew at the model's weights."""
        if self.average is not None:
            self.average = MovingAverage(self.model, images=self.average.images)
