"""Measures where one rank's time goes: waiting for data, in steps, in the rest."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from cluster.training.profile import start_profiler
from detector.batch import Batch


@dataclass(frozen=True)
class Interval:
    """What a rank did between two reports, seconds by its clock."""

    seconds: float
    """Length of the interval."""
    data_seconds: float
    """Waiting for data."""
    step_seconds: float
    """In steps."""
    forward_seconds: float
    """Mean of a step's forward passes; 0 where there was none."""

    @property
    def data_share(self) -> float:
        return self.data_seconds / max(self.seconds, 1e-9)

    @property
    def step_share(self) -> float:
        return self.step_seconds / max(self.seconds, 1e-9)

    @property
    def rest_share(self) -> float:
        """Everything else: checkpoints, reports."""
        return max(0.0, 1 - self.data_share - self.step_share)


class Timing:
    """What this rank did since the last `take`. It exchanges nothing with other ranks and waits for
    no device.

    In a step all ranks wait for the slowest, so their steps take equally long whoever is slow. In
    the forward pass no rank waits for another: `cluster.training.stragglers` compares those.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        profile_steps: int = 0,
        on_profile: Callable[[torch.profiler.profile], None] = lambda profiler: None,
    ):
        self._device = device
        self._began: float | None = None
        self._clear()
        self._profiler = start_profiler(profile_steps, on_profile) if profile_steps else None

    def _clear(self) -> None:
        self._data_seconds = self._step_seconds = 0.0
        self.steps = 0
        self._marks: list[Any] = []

    def batches(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same batches. The wait for each counts as waiting for data, except for the very
        first: it includes the start of processes, and made the first ETA ten times too long.
        """
        arriving = iter(batches)
        while True:
            asked = time.monotonic()
            batch = next(arriving, None)
            now = time.monotonic()
            if self._began is None:
                self._began = now
            else:
                self._data_seconds += now - asked
            if batch is None:
                return
            yield batch

    @contextlib.contextmanager
    def step(self, network: nn.Module) -> Iterator[None]:
        """One training step with the forward passes of `network` in it."""
        begun = time.monotonic()
        hooks = (
            network.register_forward_pre_hook(self._mark),
            network.register_forward_hook(self._mark),
        )
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        self._step_seconds += time.monotonic() - begun
        self.steps += 1
        if self._profiler is not None:
            self._profiler.step()

    def _mark(self, *_: object) -> None:
        if self._device.type == "cpu":
            self._marks.append(time.monotonic())
        else:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)

    def _forward_seconds(self) -> float:
        pairs = list(zip(self._marks[::2], self._marks[1::2], strict=True))
        if self._device.type == "cpu":
            seconds = sum(end - start for start, end in pairs)
        else:
            # The step before the last one was read already, so this waits for the last forward pass
            # at most.
            for _, end in pairs[-1:]:
                end.synchronize()
            seconds = sum(start.elapsed_time(end) for start, end in pairs) / 1000
        return seconds / max(self.steps, 1)

    def take(self) -> Interval:
        """End the interval and begin the next. Only after the first batch."""
        assert self._began is not None, "no batch has arrived yet"
        now = time.monotonic()
        taken = Interval(
            now - self._began, self._data_seconds, self._step_seconds, self._forward_seconds()
        )
        self._began = now
        self._clear()
        return taken

    def close(self) -> None:
        """The run is over: a profile that has begun is saved with the steps it has."""
        if self._profiler is not None:
            self._profiler.stop()
