"""One training step of a worker, for RetinaNet and for the baselines."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cluster.training.ranks import Ranks
from detector.baseline import Baseline
from detector.baseline_step import baseline_step
from detector.batch import Batch
from detector.choices import LossSettings
from detector.model import RetinaNet
from detector.step import CompiledParts, StepReport, compiled_parts, train_step


class TrainingStep:
    """Makes steps: forward, loss, backward, update. All ranks make it together."""

    def __init__(
        self,
        model: RetinaNet | Baseline,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        ranks: Ranks,
        parts: int,
        loss: LossSettings,
        clip_norm: float,
        amp_dtype: torch.dtype | None,
        canvases: Sequence[tuple[int, int]],
        compiled: bool = False,
    ):
        """`network` is the `model` or its wrapping for several ranks. The batch runs in `parts`.
        `compiled` concerns RetinaNet alone.
        """
        self.network = network
        self._model, self._optimizer, self._ranks = model, optimizer, ranks
        self._parts, self._loss, self._clip_norm = parts, loss, clip_norm
        self._amp_dtype = amp_dtype
        self._anchors: dict[tuple[int, int], torch.Tensor] = {}
        self._matching: CompiledParts = {"assign": None, "dense": None}
        if isinstance(model, RetinaNet):
            self._anchors = {canvas: torch.cat(model.anchors(*canvas)) for canvas in canvases}
            if compiled:
                self.network = cast(nn.Module, torch.compile(network, dynamic=False))
                self._matching = compiled_parts(loss)

    def __call__(
        self, batch: Batch, *, learning_rate: float, loss_normalizer: float | torch.Tensor
    ) -> StepReport:
        """`loss_normalizer` is the last report's."""
        if isinstance(self._model, Baseline):
            return baseline_step(
                self.network,
                self._optimizer,
                batch,
                box_weight=self._loss.box_weight,
                learning_rate=learning_rate,
                clip_norm=self._clip_norm,
                amp_dtype=self._amp_dtype,
                sum_over_ranks=self._ranks.sum,
                ranks=self._ranks.size,
                accumulate=self._parts,
            )
        height, width = batch.images.shape[2:]
        return train_step(
            self.network,
            self._optimizer,
            batch,
            self._anchors[height, width],
            loss=self._loss,
            loss_normalizer=loss_normalizer,
            learning_rate=learning_rate,
            clip_norm=self._clip_norm,
            amp_dtype=self._amp_dtype,
            sum_over_ranks=self._ranks.sum,
            ranks=self._ranks.size,
            accumulate=self._parts,
            **self._matching,
        )


def distribute(model: nn.Module) -> DistributedDataParallel:
    """The model with its gradients averaged over the ranks. Running statistics stay local: rank 0's
    are saved.
    """
    with warnings.catch_warnings():
        # torch 2.15 renames the argument; 2.11 has only this name.
        warnings.filterwarnings("ignore", message=".*broadcast_buffers.*", category=FutureWarning)
        return DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)
