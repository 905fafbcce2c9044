"""What the steps of one rank saw, on its way from the device: read late where that keeps a GPU
busy, and what is not finite counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist

from detector.step import NonFiniteLoss, StepReport, nonfinite_loss


class StepReports:
    """All ranks read the same numbers of the same step at the same place of their programs, so all
    decide alike.

    `allowed` updates of a run may be left out because their loss or gradient is not finite,
    `left_out` of them were; each is told as a warning, and the next is a `NonFiniteLoss` on every
    rank.
    """

    def __init__(
        self,
        device: torch.device,
        rank: int,
        ranks: int,
        *,
        allowed: int,
        tell: Callable[..., None],
    ):
        # A GPU makes the next step while the last one's numbers are read.
        self.late = 0 if device.type == "cpu" else 1
        self.rank, self.ranks, self.allowed, self.tell = rank, ranks, allowed, tell
        self.left_out = 0
        self.unread: list[tuple[StepReport, int, dict[str, Any]]] = []

    def add(self, report: StepReport, step: int, values: dict[str, Any]) -> None:
        """`values` are the host's own of this step, and come back with the numbers."""
        self.unread.append((report, step, values))

    def wait(self) -> None:
        """Until the device has made the step before the newest: here the host's time belongs to a
        step.
        """
        if self.late and self.unread:
            self.unread[-1][0].read()

    def read(self, *, all: bool) -> Iterator[tuple[dict[str, float], dict[str, Any]]]:
        """The numbers and values of each step that is due, in order; no numbers where the update
        was left out.
        """
        while len(self.unread) > (0 if all else self.late):
            report, step, values = self.unread.pop(0)
            numbers = report.read()
            if not numbers.finite:
                self.leave_out(report, step)
            yield asdict(numbers) if numbers.finite else {}, values

    def leave_out(self, report: StepReport, step: int) -> None:
        """Of the ranks whose own loss is not finite the first is named; where only the gradient is
        not, rank 0.
        """
        found: list[Any] = [
            (not report.blamed(), self.rank, str(nonfinite_loss(report, step=step, rank=self.rank)))
        ]
        if self.ranks > 1:
            own, found = found[0], [None] * self.ranks
            dist.all_gather_object(found, own)
        _, _, text = min(found)
        self.left_out += 1
        if self.left_out > self.allowed:
            raise NonFiniteLoss(text)
        self.tell("warning", text=text)
