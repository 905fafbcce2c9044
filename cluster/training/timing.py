"""Where one rank's time goes: in waiting for data, in the step, in the rest; what its node is busy
with; a torch profile of a few steps.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import psutil
import torch
from torch import nn

from cluster.training.profile import record
from detector.batch import Batch


class Timing:
    """What this rank did since the last `take`, in seconds by its clock. Nothing is exchanged with
    other ranks and no device is waited for.

    In a step all ranks wait for the slowest, so their steps take equally long whoever is slow. In
    the forward pass none waits for another: its seconds are what `cluster.training.stragglers`
    compares.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        profile_steps: int = 0,
        on_profile: Callable[[Any], None] = lambda profiler: None,
    ):
        self.device = device
        self.began: float | None = None
        self.clear()
        self.profiler = record(profile_steps, on_profile) if profile_steps else None
        # Counts from the call before.
        psutil.cpu_percent()

    def clear(self) -> None:
        self.data_seconds = self.step_seconds = 0.0
        self.steps = 0
        self.marks: list[Any] = []

    def batches(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same batches; what each keeps waiting is counted, but for the very first: the start
        of processes is no throughput, and made the first ETA ten times too long.
        """
        arriving = iter(batches)
        while True:
            asked = time.monotonic()
            batch = next(arriving, None)
            now = time.monotonic()
            if self.began is None:
                self.began = now
            else:
                self.data_seconds += now - asked
            if batch is None:
                return
            yield batch

    @contextlib.contextmanager
    def step(self, network: nn.Module) -> Iterator[None]:
        """One training step with the forward passes of `network` in it."""
        begun = time.monotonic()
        hooks = (
            network.register_forward_pre_hook(self.mark),
            network.register_forward_hook(self.mark),
        )
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        self.step_seconds += time.monotonic() - begun
        self.steps += 1
        if self.profiler is not None:
            self.profiler.step()

    def mark(self, *_: object) -> None:
        if self.device.type == "cpu":
            self.marks.append(time.monotonic())
        else:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)

    def forward_seconds(self) -> float:
        """A step's forward passes, on the average; 0 where none was seen."""
        pairs = list(zip(self.marks[::2], self.marks[1::2], strict=True))
        if self.device.type == "cpu":
            seconds = sum(end - start for start, end in pairs)
        else:
            # The step before the last one was read already, so this waits for the last forward pass
            # at most.
            for _, end in pairs[-1:]:
                end.synchronize()
            seconds = sum(start.elapsed_time(end) for start, end in pairs) / 1000
        return seconds / max(self.steps, 1)

    def take(self) -> dict[str, float]:
        """The interval that ends now; the next begins."""
        now = time.monotonic()
        taken = {
            "seconds": now - self.began,
            "data_seconds": self.data_seconds,
            "step_seconds": self.step_seconds,
            "forward_seconds": self.forward_seconds(),
        }
        self.began = now
        self.clear()
        return taken

    def close(self) -> None:
        """The run is over: a profile that has begun is saved with the steps it has."""
        if self.profiler is not None:
            self.profiler.stop()


def shares(taken: dict[str, float]) -> dict[str, float]:
    """How an interval was spent: waiting for data, in steps, in the rest (checkpoints, reports),
    each as a share of it.
    """
    data, step = (
        taken[name] / max(taken["seconds"], 1e-9) for name in ("data_seconds", "step_seconds")
    )
    return {"data_share": data, "step_share": step, "rest_share": max(0.0, 1 - data - step)}
