"""Tiny trainings of the integration tests: in this process, watched event by event, or as a command
that is typed, watched line by line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from cluster.errors import PlainError
from cluster.runs import run_folder
from cluster.runs.config import TrainConfig
from cluster.runs.events import CheckpointStored, Event, WorkersPlaced
from cluster.storage import files
from cluster.training import launch
from tests.support.gates import Gate

ROOT = Path(__file__).parents[2]
TINY: dict[str, Any] = {
    "model": {
        "backbone": "resnet18",
        "width": 64,
        "norm": "batch",
        "anchors": {"base_sizes": [12, 24, 48, 96, 192]},
    },
    "canvas": {"height": 64, "width": 96},
    "optimizer": {"name": "adamw", "learning_rate": 0.001, "ema_images": 20},
    "augmentation": {"scale_min": 0.5, "photometric": 0.5},
}
TRAINING: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 4,
    "workers": 2,
    "cpus_per_worker": 0.5,
    "evaluate_every": 2,
    "evaluation": "between",
    "log_steps": 1,
    "checkpoint_images": 8,
    "keep_checkpoints": 100,
}
"""Of 24 images: 12 steps, a checkpoint after every second one."""
ALONE = {"workers": 1, "decode_threads": 2}
"""Changes of `TRAINING`: one worker, half the processes to start."""
ENDLESS = {"epochs": 500, "evaluate_every": 500}
"""Until the test ends it."""
LIMIT_S = 900.0
"""Seconds after which a command that a test types counts as hanging."""


def environment(**changes: str) -> dict[str, str]:
    """This process's environment without what tests/conftest.py set for the shared cluster."""
    passed_on = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("RAY_", "RETINARAY_", "PYTHONPATH"))
    }
    return {**passed_on, "RAY_USAGE_STATS_ENABLED": "0", **changes}


def configured(
    sets: dict[str, str], storage: Path | str, name: str, **training: Any
) -> TrainConfig:
    sections = {"data": sets, "storage": str(storage), "name": name}
    return TrainConfig.model_validate({**TINY, **sections, "training": {**TRAINING, **training}})


def last_weights(config: TrainConfig) -> dict[str, bytes]:
    """Those of the checkpoint at the end of `TRAINING`."""
    last = run_folder.checkpoints(config.run_uri)[-1]
    assert last.endswith(f"images-{48:012d}")
    return {
        name: files.read_bytes(f"{last}/{name}")
        for name in ("model.safetensors", "ema.safetensors")
    }


class Watched:
    """Trains here and keeps the events and the error. With `faults`, the workers wait at `gate`:
    once a checkpoint of a group of workers is in storage, the group, {rank: pid}, gets the next
    fault. After the last fault the gate is open. `callbacks` go to Ray Train.
    """

    def __init__(
        self,
        config: TrainConfig,
        *faults: Callable[[dict[int, int]], None],
        gate: Gate | None = None,
        callbacks: Sequence[Any] = (),
    ):
        self.faults, self.gate = list(faults), gate
        self.events: list[Event] = []
        self.pids: dict[int, int] = {}
        self.stored = False
        self.error: PlainError | None = None
        gates = [gate.callback()] if gate else []
        try:
            launch.launch(config, on_event=self.hear, callbacks=[*gates, *callbacks])
        except PlainError as error:
            self.error = error

    def hear(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, WorkersPlaced):
            self.pids = {worker.rank: worker.pid for worker in event.workers}
        self.stored |= isinstance(event, CheckpointStored)
        if self.faults and self.stored and self.pids:
            self.faults.pop(0)(self.pids)
            self.pids, self.stored = {}, False
            if not self.faults and self.gate:
                self.gate.open()

    def of(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


def train_flags(
    sets: dict[str, str], storage: Path | str, name: str, folder: Path, **training: Any
) -> list[str]:
    """What is typed behind `train`; the recipe and the MLflow store lie in `folder`."""
    recipe = folder / f"{name}.yaml"
    recipe.write_text(json.dumps({**TINY, "training": {**TRAINING, "log_seconds": 0, **training}}))
    data = ["--data.train", sets["train"], "--data.val", sets["val"]]
    run = ["--storage", str(storage), "--name", name]
    return ["--config", str(recipe), *data, *run, "--tracking.uri", f"sqlite:///{folder}/mlflow.db"]


class Typed:
    """`python -m pipelines.VERB`, with `patch` run before it, and the lines it prints."""

    def __init__(self, flags: list[str], *, verb: str = "train", patch: str = "", **changes: str):
        start = f"runpy.run_module('pipelines.{verb}', run_name='__main__', alter_sys=True)"
        # As in a terminal, also where the tests run behind `&`, which has it ignored.
        ctrl_c = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"{ctrl_c}\n{patch}\nimport runpy; {start}", *flags],
            cwd=ROOT,
            env=environment(PYTHONPATH=str(ROOT), PYTHONUNBUFFERED="1", **changes),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        # A test that waits for a line of a process that hangs would wait for ever.
        self.limit = threading.Timer(LIMIT_S, self.process.kill)
        self.limit.daemon = True
        self.limit.start()
        self.text = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.communicate()
        self.limit.cancel()

    def until(self, words: str, *, times: int = 1) -> None:
        """Wait for so many more lines with these words."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.text += line
            times -= words in line
            if not times:
                return
        raise AssertionError(f"{words}: the command ended with {self.process.wait()}\n{self.text}")

    def ends(self) -> int:
        assert self.process.stdout is not None
        self.text += self.process.stdout.read()
        return self.process.wait()

    def interrupt(self) -> None:
        """As `kill` or a service manager ends it."""
        self.process.terminate()
        assert self.ends() == 5, self.text
        assert "error: interrupted; the same command continues where it stopped" in self.text
        assert "Traceback" not in self.text and "Stack" not in self.text, self.text
