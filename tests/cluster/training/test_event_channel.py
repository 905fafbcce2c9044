"""Events on their way to the consumers that print and record them."""

from __future__ import annotations

import time

import pytest
import ray

from cluster.runs.events import CheckpointStored, Event, ProfileStored, TrainingWarning
from cluster.training.event_channel import EventChannel, Guarded, Sender


def test_a_consumer_that_fails_is_reported_once_and_gets_the_next_events(
    capsys: pytest.CaptureFixture[str],
) -> None:
    received: list[Event] = []

    def closed(event: Event) -> None:
        if isinstance(event, TrainingWarning):
            raise BrokenPipeError(32, "Broken pipe")
        received.append(event)

    guarded = Guarded(closed)
    first, last = CheckpointStored("/c", 8), ProfileStored("/p", 3)
    for event in (first, TrainingWarning("a"), TrainingWarning("b"), last):
        guarded(event)
    assert received == [first, last]
    assert capsys.readouterr().err == (
        "warning: the event TrainingWarning could not be shown or recorded: BrokenPipeError:"
        " [Errno 32] Broken pipe; training continues\n"
    )


def test_a_terminal_that_is_closed_altogether_stops_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Closed:
        def write(self, text: str) -> int:
            raise BrokenPipeError(32, "Broken pipe")

        flush = write

    def fails(event: Event) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("sys.stderr", Closed())
    Guarded(fails)(TrainingWarning("a"))


def test_without_a_listener_events_go_nowhere() -> None:
    Sender(None)(TrainingWarning("a"))


def test_the_process_that_carries_events_ends_with_the_channel(ray_cluster: str) -> None:
    received: list[Event] = []
    stored = CheckpointStored("/c", 8)
    with EventChannel(received.append) as mailbox:
        Sender(mailbox)(stored)
    assert received == [stored]
    with pytest.raises(ray.exceptions.RayActorError):
        # Ray ends it soon, and on a busy machine not at once.
        while True:
            ray.get(mailbox.take.remote())
            time.sleep(0.1)
