"""Reports what the steps of one rank were like: means over some steps, where the time went, load of
the node.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from cluster.runs.events import RankTiming, StepsDone, Tell, WorkerProcess
from cluster.training.timing import Timing
from detector.step import StepNumbers

KEPT_STEPS = 1000
"""Recent step metrics kept in each checkpoint (0.4 KB each), so that MLflow can be backfilled after
an outage during which the driver was killed as well.
"""


@dataclass(frozen=True)
class StepValues:
    """What the host knows of one step."""

    learning_rate: float
    images: int
    """Of the global batch."""
    images_seen: int
    """Of the run, after the step."""


class Reporter:
    """Tells `StepsDone` and `RankTiming` once for `every` steps."""

    def __init__(
        self,
        *,
        every: int,
        images_per_epoch: int,
        worker: WorkerProcess,
        timing: Timing,
        system_metrics: Callable[[], dict[str, float]],
        tell: Tell,
        tell_from_every_rank: Tell,
    ):
        self._every, self._images_per_epoch = every, images_per_epoch
        self._worker, self._timing, self._system_metrics = worker, timing, system_metrics
        self._tell, self._tell_from_every_rank = tell, tell_from_every_rank
        self._window: list[tuple[StepNumbers | None, StepValues]] = []
        self.recent: collections.deque[StepsDone] = collections.deque(maxlen=KEPT_STEPS)
        """What was told last; part of every checkpoint."""

    def add(self, numbers: StepNumbers | None, values: StepValues, *, last: bool) -> None:
        """Add a step, without `numbers` if its update was skipped. Report if enough steps have come
        together or it is the `last` one of an epoch.
        """
        self._window.append((numbers, values))
        if len(self._window) < self._every and not last:
            return
        interval = self._timing.take()
        window, self._window = self._window, []
        images = sum(step.images for _, step in window)
        made = [
            {**asdict(numbers), "learning_rate": step.learning_rate}
            for numbers, step in window
            if numbers is not None
        ]
        if made:
            means = {name: float(np.mean([step[name] for step in made])) for name in made[0]}
            told = StepsDone(
                images_seen=values.images_seen,
                epoch=values.images_seen / self._images_per_epoch,
                images_per_second=images / interval.seconds,
                data_share=interval.data_share,
                step_share=interval.step_share,
                rest_share=interval.rest_share,
                **means,
            )
            self.recent.append(told)
            self._tell(told)
        self._tell_from_every_rank(
            RankTiming(
                self._worker,
                values.images_seen,
                **asdict(interval),
                system=self._system_metrics(),
            )
        )
