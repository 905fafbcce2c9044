"""Which trials end early. Tune's schedulers decide, and the trial ends by itself after the same
evaluation, with its last checkpoint in storage. Tune would kill it, and its workers would keep
their room until Ray finds out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.schedulers.trial_scheduler import FIFOScheduler

from tune.config import Stopping
from tune.trials import OUT_OF_TIME, Point, TrialRecord

REDUCTION = 3
"""Of the trials that reach a rung one in so many goes on (eta of Li et al., MLSys 2020)."""
MEDIAN_OF = 3
"""Other trials that must have reached a length before their median counts."""


@dataclass(frozen=True)
class _Named:
    """What Tune's schedulers need of a trial. Its name stays the same when the sweep goes on."""

    trial_id: str


class _NobodyWaits:
    """What the median rule asks Tune's controller: a trial of ours is never paused for another."""

    @staticmethod
    def get_live_trials() -> list[Any]:
        return []


class EarlyStopping(FIFOScheduler):
    """Decides after each evaluation, by images seen. It never has Tune stop a trial: the reason to
    end is in `verdict`.
    """

    def __init__(
        self,
        rule: Stopping,
        *,
        epochs: int,
        grace_epochs: int,
        images_per_epoch: int,
        name_of: Callable[[Any], str],
        deadline: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
    ):
        """`name_of` gives a Tune trial's name. After the `deadline` every trial ends."""
        super().__init__()
        self._name_of, self._epochs = name_of, epochs
        self._deadline, self._clock = deadline, clock
        self._rule, self._rule_name = _rule(rule, epochs, grace_epochs, images_per_epoch), rule
        if self._rule is not None:
            self._rule.set_search_properties("AP", "max")
        self._known: set[str] = set()
        self._verdicts: dict[tuple[str, int], str] = {}
        """By name and images seen: why the trial ends, empty: it goes on."""

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles it so that it can restart itself; a sweep goes on from its trial records.
        return {}

    def replay(self, records: Sequence[TrialRecord]) -> None:
        """The evaluations of an interrupted sweep, so that the rungs are as they were."""
        told = [(point.images_seen, record, point) for record in records for point in record.curve]
        # Rungs are filled from the shortest: the order within one does not change who passes it.
        for _, record, point in sorted(told, key=lambda one: (one[0], one[1].number)):
            self._decide(record.trial, point)
        for record in records:
            if record.stop and record.last is not None and not record.is_out_of_time:
                self._verdicts[record.trial, record.last.images_seen] = record.stop

    def verdict(self, name: str, point: Point) -> str | None:
        """Why the trial ends after this evaluation; None: it goes on."""
        return self._verdicts.get((name, point.images_seen)) or None

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if "images_seen" in result:
            self._decide(self._name_of(trial), Point.from_json(result))
        return TrialScheduler.CONTINUE

    def _decide(self, name: str, point: Point) -> None:
        if (name, point.images_seen) in self._verdicts:
            # A trial that was started again tells its last evaluation once more.
            return
        reason = ""
        if self._rule is not None and point.ap is not None:
            named = _Named(name)
            if name not in self._known:
                self._known.add(name)
                # Ray's types ask for more of a trial than its schedulers use.
                self._rule.on_trial_add(_NobodyWaits(), named)  # pyright: ignore[reportArgumentType]
            decision = self._rule.on_trial_result(
                _NobodyWaits(),  # pyright: ignore[reportArgumentType]
                named,  # pyright: ignore[reportArgumentType]
                {"images_seen": point.images_seen, "AP": point.ap},
            )
            if decision == TrialScheduler.STOP:
                reason = _WHY[self._rule_name].format(epoch=point.epoch)
        if not reason and self._clock() > self._deadline:
            reason = f"{OUT_OF_TIME} after epoch {point.epoch}"
        # At its last epoch a trial ends anyway.
        self._verdicts[name, point.images_seen] = reason if point.epoch < self._epochs else ""


_WHY = {
    "asha": "not among the best third after epoch {epoch}",
    "median": "below the median after epoch {epoch}",
}


def _rule(
    rule: Stopping, epochs: int, grace_epochs: int, images_per_epoch: int
) -> ASHAScheduler | MedianStoppingRule | None:
    grace = min(grace_epochs, epochs) * images_per_epoch
    if rule == "asha":
        return ASHAScheduler(
            time_attr="images_seen",
            max_t=epochs * images_per_epoch,
            grace_period=grace,
            reduction_factor=REDUCTION,
            stop_last_trials=False,
        )
    if rule == "median":
        return MedianStoppingRule(
            time_attr="images_seen", grace_period=grace, min_samples_required=MEDIAN_OF
        )
    return None
