"""What one rank reports of its steps."""

from __future__ import annotations

import pytest

from cluster.runs.events import Event, RankTiming, StepsDone, WorkerProcess
from cluster.training import report
from cluster.training.report import Reporter, StepValues
from cluster.training.timing import Interval
from detector.step import StepNumbers

WORKER = WorkerProcess(1, "10.0.0.2", 42)


class Timing:
    """Every interval is 2 s long, half of it in steps and a quarter waiting for data."""

    def take(self) -> Interval:
        return Interval(2.0, 0.5, 1.0, 0.25)


def reporter(every: int) -> tuple[Reporter, list[Event], list[Event]]:
    told: list[Event] = []
    told_by_all: list[Event] = []
    made = Reporter(
        every=every,
        images_per_epoch=16,
        worker=WORKER,
        timing=Timing(),
        system_metrics=lambda: {"cpu_utilization_percentage": 50.0},
        tell=told.append,
        tell_from_every_rank=told_by_all.append,
    )
    return made, told, told_by_all


def numbers(box: float) -> StepNumbers:
    return StepNumbers(0.5, box, 3.0, 1.0, 90.0)


def test_means_are_over_the_updates_that_were_made() -> None:
    made, told, told_by_all = reporter(every=3)
    made.add(numbers(1.0), StepValues(0.1, 4, 4), last=False)
    made.add(None, StepValues(9.0, 4, 8), last=False)
    assert told == told_by_all == []
    made.add(numbers(2.0), StepValues(0.3, 4, 12), last=False)
    (steps,) = told
    assert isinstance(steps, StepsDone)
    # 12 images in 2 s, the skipped update's too.
    assert (steps.images_seen, steps.epoch, steps.images_per_second) == (12, 0.75, 6.0)
    assert (steps.box, steps.learning_rate) == (1.5, pytest.approx(0.2))
    assert (steps.data_share, steps.step_share, steps.rest_share) == (0.25, 0.5, 0.25)
    assert told_by_all == [
        RankTiming(WORKER, 12, 2.0, 0.5, 1.0, 0.25, {"cpu_utilization_percentage": 50.0})
    ]


def test_the_last_step_of_an_epoch_reports_what_there_is() -> None:
    made, told, _ = reporter(every=3)
    made.add(numbers(1.0), StepValues(0.1, 4, 16), last=True)
    assert [event.images_seen for event in told] == [16]


def test_if_all_updates_were_skipped_only_the_time_is_reported() -> None:
    made, told, told_by_all = reporter(every=1)
    made.add(None, StepValues(0.1, 4, 4), last=False)
    assert told == [] and len(told_by_all) == 1


def test_only_recent_metrics_are_kept_for_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "KEPT_STEPS", 2)
    made, told, _ = reporter(every=1)
    for images_seen in (4, 8, 12):
        made.add(numbers(1.0), StepValues(0.1, 4, images_seen), last=False)
    assert list(made.recent) == told[1:]
