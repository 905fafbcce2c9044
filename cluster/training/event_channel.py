"""Events of the workers, carried to the driver."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable
from typing import Any

Event = dict[str, Any]


class Guarded:
    """A consumer of events whose failures cost nobody else's: a terminal that was closed ends no
    tracking. The first is told on stderr.
    """

    def __init__(self, consumer: Callable[[Event], None]):
        self.consumer, self.told = consumer, False

    def __call__(self, event: Event) -> None:
        try:
            self.consumer(event)
        except Exception as error:  # whatever it is, the training is worth more
            if not self.told:
                self.told = True
                with contextlib.suppress(OSError):
                    text = (
                        f"warning: what training says ({event['kind']}) could not be passed on:"
                        f" {type(error).__name__}: {error}; it goes on"
                    )
                    print(text, file=sys.stderr, flush=True)


class Board:
    """Carries events from the workers to a function in the driver: an actor collects them, a thread
    fetches them twice a second.
    """

    def __init__(self, on_event: Callable[[Event], None] | None):
        self.on_event = on_event and Guarded(on_event)

    def __enter__(self) -> Any:
        if self.on_event is None:
            return None
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        # On the driver's own node: on one that is taken away it would take all that is said after
        # with it. One thread: with several Ray 2.60 gives up the order of calls, and makes those
        # twice whose answer a broken connection has lost.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.actor = ray.remote(num_cpus=0, scheduling_strategy=here)(EventList).remote()
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.fetch, daemon=True, name="events")
        self.thread.start()
        return self.actor

    def __exit__(self, *_: object) -> None:
        if self.on_event is not None:
            self.stopped.set()
            self.thread.join(timeout=30)

    def fetch(self) -> None:
        import ray

        while True:
            last = self.stopped.wait(0.5)
            for event in ray.get(self.actor.take.remote()):
                self.on_event(event)
            if last:
                return


class EventList:
    """The actor of `Board`."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def put(self, event: Event) -> None:
        self.events.append(event)

    def take(self) -> list[Event]:
        taken, self.events = self.events, []
        return taken
