"""AP of runs that are killed midway and go on with another number of workers, beside the same runs
uninterrupted.

    python tests/benchmarks/resume_noise.py [--seeds 0,1,2]

A synthetic set of 160 pictures, ten epochs with two workers. Of each seed a second run loses both
workers by SIGKILL after half of its images, and goes on from its newest checkpoint with one worker,
which has other running statistics and other sums. How far two seeds are apart is the noise.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import statistics
import tempfile
from typing import Any

from reliability import prepare

from cluster.compute.session import connect
from cluster.errors import PlainError
from cluster.runs.config import TrainConfig
from cluster.runs.evaluations import Evaluation
from cluster.runs.events import Event, StepsDone, WorkersPlaced
from cluster.training import launch

IMAGES, EPOCHS = 160, 10
RECIPE: dict[str, Any] = {
    "model": {
        "backbone": "resnet18",
        "width": 64,
        "norm": "batch",
        "head_norm": "group",
        "anchors": {"base_sizes": [12, 24, 48, 96, 192]},
    },
    "canvas": {"height": 128, "width": 160},
    "augmentation": {"flip": 0.5, "scale_min": 0.9, "scale_max": 1.2},
    "optimizer": {
        "name": "adamw",
        "learning_rate": 0.0007,
        "clip_norm": 5.0,
        "schedule": "cosine",
        "warmup": 0.05,
        "ema_images": 300,
    },
}
TRAINING = {
    "epochs": EPOCHS,
    "batch_size": 4,
    "evaluate_every": EPOCHS,
    "evaluation": "between",
    "checkpoint_images": 200,
    "retries": 0,
}


def train(
    folder: str, name: str, *, kill_after: float = float("inf"), **training: float
) -> Evaluation:
    """The run's best.json, which is its last evaluation: there is one. Its workers are killed after
    so many images.
    """
    pids: list[int] = []

    def hear(event: Event) -> None:
        if isinstance(event, WorkersPlaced):
            pids[:] = [worker.pid for worker in event.workers]
        if isinstance(event, StepsDone) and event.images_seen >= kill_after:
            while pids:
                os.kill(pids.pop(), signal.SIGKILL)

    places = {
        "name": name,
        "storage": f"{folder}/runs",
        "data": {split: f"{folder}/shards/{split}" for split in ("train", "val")},
    }
    return launch.launch(
        TrainConfig.model_validate({**RECIPE, **places, "training": {**TRAINING, **training}}),
        on_event=hear,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", default="0,1,2")
    seeds = [int(seed) for seed in parser.parse_args().seeds.split(",")]
    found = []
    print(
        "| seed | uninterrupted: AP | AP50 | killed, on with one worker: AP | AP50 | difference of"
        " AP |\n|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder:
        prepare(folder, train=IMAGES, val=48)
        connect(num_cpus=4)
        for seed in seeds:
            whole = train(folder, f"whole-{seed}", seed=seed, workers=2)
            with contextlib.suppress(PlainError):
                train(
                    folder, f"killed-{seed}", seed=seed, workers=2, kill_after=IMAGES * EPOCHS / 2
                )
            resumed = train(folder, f"killed-{seed}", seed=seed, workers=1)
            found.append((whole.ap, resumed.ap))
            cells = (
                f"{each.metrics[name]:.4f}" for each in (whole, resumed) for name in ("AP", "AP50")
            )
            print(f"| {seed} | {' | '.join(cells)} | {resumed.ap - whole.ap:+.4f} |", flush=True)
    if len(found) > 1:
        for words, values in zip(
            ("uninterrupted", "killed"), zip(*found, strict=True), strict=True
        ):
            print(
                f"{words}: mean {statistics.mean(values):.4f}, standard deviation"
                f" {statistics.stdev(values):.4f}"
            )


if __name__ == "__main__":
    main()
