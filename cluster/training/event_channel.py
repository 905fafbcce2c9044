"""Carries events from the workers and the controller to the driver."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from cluster.runs.events import Event

Told = TypeVar("Told")
"""What a channel carries: an `Event`, or one with the name of its trial."""
_FETCH_EVERY_S = 0.5
_LAST_FETCH_S = 30.0
"""Seconds for the last fetch when training has ended."""


class Guarded(Generic[Told]):
    """A consumer of events whose failure does not affect the others: a closed terminal must not end
    the tracking. Only the first failure is printed, to stderr.
    """

    def __init__(self, consumer: Callable[[Told], None]):
        self._consumer, self._has_warned = consumer, False

    def __call__(self, event: Told) -> None:
        try:
            self._consumer(event)
        except Exception as error:  # whatever it is, the training is worth more
            if not self._has_warned:
                self._has_warned = True
                with contextlib.suppress(OSError):
                    text = (
                        f"warning: the event {type(event).__name__} could not be shown or recorded:"
                        f" {type(error).__name__}: {error}; training continues"
                    )
                    print(text, file=sys.stderr, flush=True)


class Sender:
    """Sends events to the driver from any process: call it with an event. It does not wait and does
    not fail. `mailbox` is what entering an `EventChannel` returned.
    """

    def __init__(self, mailbox: Any):
        self._mailbox = mailbox

    def __call__(self, event: Event) -> None:
        if self._mailbox is not None:
            self._mailbox.put.remote(event)


class EventChannel(Generic[Told]):
    """Delivers events to a function in the driver: an actor collects them, a thread fetches them
    twice a second, and ends with the channel. Entering it returns the actor's handle, None where
    nobody listens.
    """

    def __init__(self, on_event: Callable[[Told], None] | None):
        self._deliver = None if on_event is None else Guarded(on_event)

    def __enter__(self) -> Any:
        if self._deliver is None:
            return None
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        # On the driver's own node: if it ran on a node that is taken away, all later events would
        # be lost. With one thread: with several, Ray 2.60 does not keep the order of calls, and
        # repeats a call if a broken connection has lost its answer.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor: Any = ray.remote(_Mailbox)
        self._mailbox = actor.options(num_cpus=0, scheduling_strategy=here).remote()
        self._stopped = threading.Event()
        self._thread = threading.Thread(
            target=self._fetch, args=(self._deliver,), daemon=True, name="events"
        )
        self._thread.start()
        return self._mailbox

    def __exit__(self, *_: object) -> None:
        if self._deliver is not None:
            import ray
            from ray.exceptions import RayError

            self._stopped.set()
            self._thread.join(timeout=_LAST_FETCH_S)
            # By itself the actor stays, often until the driver ends (seen with Ray 2.60).
            with contextlib.suppress(RayError):
                ray.kill(self._mailbox)

    def _fetch(self, deliver: Callable[[Told], None]) -> None:
        import ray

        while True:
            last = self._stopped.wait(_FETCH_EVERY_S)
            for event in ray.get(self._mailbox.take.remote()):
                deliver(event)
            if last:
                return


class _Mailbox:
    """The actor of `EventChannel`."""

    def __init__(self) -> None:
        self._events: list[Any] = []

    def put(self, event: Any) -> None:
        self._events.append(event)

    def take(self) -> list[Any]:
        taken, self._events = self._events, []
        return taken
