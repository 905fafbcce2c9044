"""Seconds for which training stands still at a checkpoint: a copy in memory, against writing and
uploading before the next step.

    python tests/benchmarks/checkpoint.py [--backbone resnet50 --canvas 320 --batch 4 --steps 8
    --rounds 3]

One process trains a RetinaNet of 80 classes with AdamW and a moving average on a batch in memory.
Each round makes the same number of steps without a checkpoint, with one that is saved as training
does it, and with one that is written and uploaded to a local folder before training goes on. Still
is the time of the call; beside is by how much longer the steps that follow take, while the files
are written and copied on the same cores.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable

import torch

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.dirname(os.path.dirname(HERE)), HERE]

import step  # noqa: E402

from cluster.runs import run_folder  # noqa: E402
from cluster.storage import files  # noqa: E402
from cluster.training.checkpoints import CheckpointStore  # noqa: E402
from detector.checkpoint import Snapshot, take_snapshot  # noqa: E402
from detector.choices import LossSettings  # noqa: E402
from detector.model import RetinaNet  # noqa: E402
from detector.optimizer import MovingAverage, build_optimizer  # noqa: E402
from detector.precision import autocast_dtype  # noqa: E402
from detector.step import train_step  # noqa: E402
from tests.support.saved_checkpoint import save_checkpoint  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--canvas", type=int, default=320, help="px a side")
    parser.add_argument("--batch", type=int, default=4, help="images a step")
    parser.add_argument("--steps", type=int, default=8, help="steps after each checkpoint")
    parser.add_argument(
        "--rounds",
        type=int,
        default=3,
        help="times that the three are measured, one after the other",
    )
    given = parser.parse_args()

    torch.manual_seed(0)
    batch = step.random_batch(
        batch=given.batch, height=given.canvas, width=given.canvas, classes=80
    )
    model = RetinaNet(classes=80, backbone=given.backbone).to(memory_format=torch.channels_last)
    optimizer = build_optimizer(
        model, name="adamw", learning_rate=1e-4, weight_decay=0.01, momentum=0.9
    )
    average = MovingAverage(model, images=1000)
    anchors_A4 = torch.cat(model.anchors(given.canvas, given.canvas))
    dtype = autocast_dtype(torch.device("cpu"), amp=True)
    parts = dict(model=model, optimizer=optimizer, average=average, state={})

    def steps() -> float:
        start = time.perf_counter()
        for _ in range(given.steps):
            train_step(
                model, optimizer, batch, anchors_A4,
                loss=LossSettings(), learning_rate=1e-4, clip_norm=10.0, amp_dtype=dtype,
            )  # fmt: skip
            average.update(model, given.batch)
        return time.perf_counter() - start

    with tempfile.TemporaryDirectory(prefix="checkpoint-bench-") as folder:
        store = CheckpointStore(
            f"{folder}/beside", f"{folder}/local", keep=2, tell=lambda event: None
        )

        def take(memory: Snapshot | None) -> Snapshot:
            return take_snapshot(**parts, before=memory)

        def blocking(number: int) -> None:
            save_checkpoint(f"{folder}/blocking", **parts)
            files.upload_folder(
                f"{folder}/blocking", f"{folder}/store/{number}", last=run_folder.STATE_FILE
            )

        ways: dict[str, Callable[[int], object]] = {
            "none": lambda number: None,
            "beside": lambda number: store.save(
                run_folder.checkpoint_uri(f"{folder}/beside", number), take, to_be_evaluated=False
            ),
            "blocking": blocking,
        }
        steps()
        still: dict[str, list[float]] = {way: [] for way in ways}
        after: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(1, given.rounds + 1):
            for way, save in ways.items():
                start = time.perf_counter()
                save(number)
                still[way].append(time.perf_counter() - start)
                after[way].append(steps())
                if way == "beside":
                    store.settle()
        size = take(None).size
    bare = statistics.median(after["none"])
    parameters = sum(p.numel() for p in model.parameters())
    took = f"{bare / given.steps:.2f} s a step, {torch.get_num_threads()} threads"
    print(f"{parameters / 1e6:.1f} M parameters, {size / 1e6:.0f} MB a checkpoint, {took}")
    print("           still, s: median (first, least, most)   steps beside it, s longer")
    for way in ("beside", "blocking"):
        times = still[way]
        longer = statistics.median(after[way]) - bare
        print(
            f"{way:10s} {statistics.median(times):8.2f} ({times[0]:.2f}, {min(times):.2f},"
            f" {max(times):.2f}) {longer:20.2f}"
        )


if __name__ == "__main__":
    main()
