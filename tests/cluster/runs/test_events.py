"""Metrics of steps as checkpoints store them, and events on their way between processes."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from typing import Any

import pytest

from cluster.runs import events
from cluster.runs.events import StepsDone, stored_steps

STEPS = StepsDone(8, 0.5, 9.0, 0.1, 0.8, 0.1, 0.5, 0.25, 3.0, 1.0, 90.0, 0.01)
PREVIOUS_VERSION = {
    "images_seen": 8,
    "epoch": 0.5,
    "images_per_second": 9.0,
    "data_share": 0.1,
    "step_share": 0.8,
    "rest_share": 0.1,
    "classification": 0.5,
    "box": 0.25,
    "positives": 3.0,
    "gradient_norm": 1.0,
    "loss_normalizer": 90.0,
    "learning_rate": 0.01,
}


def test_stored_metrics_come_back_as_they_were() -> None:
    assert StepsDone.from_json(json.loads(json.dumps(STEPS.to_json()))) == STEPS


def test_lines_of_the_previous_version_are_read() -> None:
    assert stored_steps([PREVIOUS_VERSION]) == [STEPS]
    assert STEPS.to_json() == {"version": 1, **PREVIOUS_VERSION}


def test_a_line_without_some_metric_stays_without_it() -> None:
    """It is stored again in the next checkpoint, whose JSON knows no NaN."""
    line = {"images_seen": 8, "box": 0.25, "version": 9, "unknown": 1.0}
    (steps,) = stored_steps([line])
    assert (steps.images_seen, steps.box) == (8, 0.25)
    assert steps.to_json() == {"version": 1, "images_seen": 8, "box": 0.25}


@pytest.mark.parametrize("line", [{}, {"box": 1.0}, "text", None, {"images_seen": 8, "box": "x"}])
def test_a_line_that_cannot_be_read_is_left_out(line: Any) -> None:
    assert stored_steps([line, PREVIOUS_VERSION]) == [STEPS]


def test_events_travel_between_processes() -> None:
    worker = events.WorkerProcess(0, "10.0.0.1", 42)
    for event in (
        STEPS,
        events.WorkersPlaced((worker,)),
        events.WorkerHung(worker, 9.0, "here"),
        events.BatchSeen(1, (64, 96), ()),
    ):
        assert pickle.loads(pickle.dumps(event)) == event
    assert replace(STEPS, box=1.0) != STEPS
