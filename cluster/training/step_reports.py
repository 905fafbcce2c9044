"""Reads what the steps of one rank saw: late, where that keeps a GPU busy; and counts updates that
were skipped because they were not finite.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from cluster.runs.events import Tell, TrainingWarning
from cluster.training.ranks import Ranks
from cluster.training.state import Progress
from detector.step import NonFiniteLoss, StepNumbers, StepReport, nonfinite_loss

T = TypeVar("T")


class StepReports(Generic[T]):
    """All ranks read the same numbers of the same step at the same point of their program, so all
    decide alike.

    `allowed` updates of a run may be skipped because their loss or gradient is not finite; each is
    told as a warning. The next is a `NonFiniteLoss` on every rank.
    """

    def __init__(self, ranks: Ranks, progress: Progress, *, allowed: int, tell: Tell):
        """Counts skipped updates in `progress`."""
        # A GPU makes the next step while the last one's numbers are read.
        self._late = 0 if ranks.device.type == "cpu" else 1
        self._ranks, self._progress, self._allowed, self._tell = ranks, progress, allowed, tell
        self._unread: list[tuple[StepReport, int, T]] = []

    def add(self, report: StepReport, step: int, values: T) -> None:
        """`values` are what the host knows of this step; `read` returns them with the numbers."""
        self._unread.append((report, step, values))

    def wait(self) -> None:
        """Until the device has made the step before the newest. Here the host's time still counts
        to a step.
        """
        if self._late and self._unread:
            self._unread[-1][0].read()

    def read(self, *, drain: bool) -> Iterator[tuple[StepNumbers | None, T]]:
        """The numbers and values of each step that is due, in order; no numbers where the update
        was skipped. `drain`: also of the newest step, for which a GPU is waited for.
        """
        while len(self._unread) > (0 if drain else self._late):
            report, step, values = self._unread.pop(0)
            numbers = report.read()
            if not numbers.finite:
                self._skip(report, step)
            yield (numbers if numbers.finite else None), values

    @property
    def unread(self) -> int:
        """Steps whose numbers were not read yet."""
        return len(self._unread)

    def _skip(self, report: StepReport, step: int) -> None:
        """Among the ranks whose own loss is not finite name the first; if only the gradient is not,
        rank 0.
        """
        error = nonfinite_loss(report, step=step, rank=self._ranks.rank)
        own = (not report.blamed(), self._ranks.rank, str(error))
        _, _, text = min(self._ranks.gather(own))
        self._progress.skipped_updates += 1
        if self._progress.skipped_updates > self._allowed:
            raise NonFiniteLoss(text)
        self._tell(TrainingWarning(text))
