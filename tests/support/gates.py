"""A training that a test leads: its workers stop at a gate until the test opens it, and time passes
for their watchdog when the test says so.

Without a gate the small trainings of the tests are over within a second or two, on a fast machine
before the driver has heard of their first checkpoint.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from ray.train.v2._internal.execution.callback import WorkerGroupCallback

from cluster.training import launch


class Gate:
    """Every worker makes `steps` steps after its start and then waits until the gate is open.
    `callback()` goes to Ray Train.
    """

    def __init__(self, folder: Path | str, *, steps: int):
        self.folder, self.steps = Path(folder), steps
        self.folder.mkdir(parents=True, exist_ok=True)

    def open(self) -> None:
        """For all workers, now and after restarts."""
        (self.folder / "open").touch()

    def let_time_pass(self, pid: int) -> None:
        """As soon as this worker waits for others, its watchdog sees that hours have passed."""
        (self.folder / f"late-{pid}").touch()

    def callback(self) -> Any:
        return on_every_worker(wait_at_gate(str(self.folder), self.steps))


def wait_at_gate(folder: str, steps: int) -> Any:
    # Functions in here are sent with their code: Ray's processes do not know this module.
    def prepare_worker() -> None:
        import os
        import sys
        import threading
        import time
        import traceback
        from types import SimpleNamespace

        from torch.nn.modules.module import register_module_forward_pre_hook

        from cluster.training import watchdog
        from detector.baseline import Baseline
        from detector.model import RetinaNet

        begun, trains = 0, 0

        def before_forward(module: Any, _: Any) -> None:
            nonlocal begun, trains
            if isinstance(module, (RetinaNet, Baseline)) and module.training:
                begun, trains = begun + 1, threading.get_ident()
                while begun > steps and not os.path.exists(f"{folder}/open"):
                    time.sleep(0.05)

        def waits_for_others() -> bool:
            frames = traceback.extract_stack(sys._current_frames()[trains])
            return any(f.name == "backward" or "/torch/distributed/" in f.filename for f in frames)

        def monotonic() -> float:
            late = os.path.exists(f"{folder}/late-{os.getpid()}") and waits_for_others()
            return time.monotonic() + (1e6 if late else 0.0)

        register_module_forward_pre_hook(before_forward)
        watchdog.time = SimpleNamespace(monotonic=monotonic, sleep=time.sleep)

    return prepare_worker


def wait_before_steps(seconds: float) -> Any:
    def prepare_worker() -> None:
        import time

        from torch.nn.modules.module import register_module_forward_pre_hook

        from detector.baseline import Baseline
        from detector.model import RetinaNet

        def before_forward(module: Any, _: Any) -> None:
            if isinstance(module, (RetinaNet, Baseline)) and module.training:
                time.sleep(seconds)

        register_module_forward_pre_hook(before_forward)

    return prepare_worker


def on_every_worker(prepare_worker: Any) -> Any:
    """A callback for Ray Train that runs `prepare_worker` in every worker before it trains."""

    class Prepare(WorkerGroupCallback):
        def after_worker_group_start(self, worker_group: Any) -> None:
            worker_group.execute(prepare_worker)

    return Prepare()


def gate_launches(folder: str, *, steps: int) -> None:
    """In a driver that a test starts: a gate for every training of this process."""
    launch.launch = partial(launch.launch, callbacks=[Gate(folder, steps=steps).callback()])


def slow_launches(seconds: float) -> None:
    """In a driver that a test starts: its trainings, which go on until the test ends them, wait
    before each step and leave the cores to others.
    """
    launch.launch = partial(launch.launch, callbacks=[on_every_worker(wait_before_steps(seconds))])
