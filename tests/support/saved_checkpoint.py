"""A checkpoint written in one call. Training takes the snapshot first and writes it later."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from detector.checkpoint import take_snapshot, write_checkpoint
from detector.optimizer import MovingAverage


def save_checkpoint(
    folder: str,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: MovingAverage | None,
    state: dict[str, Any],
) -> None:
    """`take_snapshot` and `write_checkpoint` in one."""
    write_checkpoint(
        folder, take_snapshot(model=model, optimizer=optimizer, average=average, state=state)
    )
