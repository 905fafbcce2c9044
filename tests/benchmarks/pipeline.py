"""The whole pipeline beside its bare step, and the seconds from the command typed to the first step.

    python tests/benchmarks/pipeline.py [--images 96 --epochs 3 --workers 2]

Makes a synthetic set, prepares it, then types `python -m pipelines.train` and reads its own lines: seconds to the first step, images/s of the
epochs after
the first. Before and after that, as many bare processes as there were workers run the same step on the same batch in memory, all at once, without
data,
Ray or gradient exchange: their summed images/s is what the machine could do at that hour.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
RECIPE = os.path.join(ROOT, "pipelines", "recipes", "small_r18.yaml")
BARE = """
import sys, time
sys.path[:0] = [{root!r}, {here!r}]
import torch
torch.set_num_threads(1)
from step import random_batch
from detector.model import RetinaNet
from detector.optimizer import build_optimizer
from detector.step import train_step
torch.manual_seed(0)
model = RetinaNet(classes=5, backbone="resnet18", width=128, head_norm="group").to(memory_format=torch.channels_last).train()
optimizer = build_optimizer(model, name="adamw", learning_rate=1e-4, weight_decay=1e-4, momentum=0.9)
batch = random_batch(batch={batch}, height=320, width=448, classes=5)
anchors = torch.cat(model.anchors(320, 448))
def step():
    train_step(model, optimizer, batch, anchors, learning_rate=1e-4, clip_norm=10.0, box_weight=1.0, gamma=2.0, alpha=0.25, beta=1/9,
    amp_dtype=torch.bfloat16)
step()
start = time.perf_counter()
for _ in range({steps}):
    step()
print({batch} * {steps} / (time.perf_counter() - start))
"""


def bare_rate(workers: int, *, batch: int, steps: int) -> float:
    """Summed images/s of `workers` single-threaded processes that step side by side."""
    program = BARE.format(root=ROOT, here=os.path.dirname(os.path.abspath(__file__)), batch=batch, steps=steps)
    running = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(workers)]
    return sum(float(process.communicate()[0]) for process in running)


def pipeline_rates(folder: str, options: argparse.Namespace) -> tuple[float, float]:
    """(seconds from the command to the end of the first step, median images/s after the first epoch)."""
    command = [
        sys.executable,
        "-m",
        "pipelines.train",
        "--config",
        RECIPE,
        "--data.train",
        f"{folder}/shards/train",
        "--data.val",
        f"{folder}/shards/val",
    ]
    command += [
        "--storage",
        f"{folder}/runs",
        "--name",
        "bench",
        "--training.epochs",
        str(options.epochs),
        "--training.evaluate_every",
        str(options.epochs),
    ]
    command += [
        "--training.checkpoint_every",
        str(options.epochs),
        "--training.log_steps",
        "1",
        "--training.log_seconds",
        "0",
        "--training.workers",
        str(options.workers),
    ]
    start, first, rates = time.perf_counter(), 0.0, []
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in process.stdout:
        if found := re.search(r"epoch +([\d.]+) .* ([\d.]+) img/s", line):
            first = first or time.perf_counter() - start
            if float(found[1]) > 1:
                rates.append(float(found[2]))
    if process.wait() or not rates:
        raise SystemExit(f"the training failed with exit code {process.returncode}: {' '.join(command)}")
    return first, statistics.median(rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        subprocess.run(
            [sys.executable, "-m", "cluster.synthetic", f"{folder}/coco", "--train", str(options.images), "--val", "8"], cwd=ROOT, check=True
        )
        for split in ("train", "val"):
            source = ["--annotations", f"{folder}/coco/annotations/instances_{split}.json", "--images", f"{folder}/coco/images/{split}"]
            prepare = [sys.executable, "-m", "pipelines.prepare", *source, "--output", f"{folder}/shards/{split}"]
            subprocess.run(prepare, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        batch = 4 // options.workers
        before = bare_rate(options.workers, batch=batch, steps=12)
        first, rate = pipeline_rates(folder, options)
        after = bare_rate(options.workers, batch=batch, steps=12)
    bare = (before + after) / 2
    print(f"small_r18.yaml (ResNet-18, 128 channels, 320x448), {options.workers} workers, {batch} images a worker and step, {options.images} images")
    print("| what | figure |\n|---|---|")
    print(f"| bare step, {options.workers} processes, before / after | {before:.2f} / {after:.2f} img/s |")
    print(f"| whole pipeline, median of the steps after the first epoch | {rate:.2f} img/s |")
    print(f"| pipeline / bare step | {rate / bare:.2f} |")
    print(f"| command typed to first step done | {first:.1f} s |")


if __name__ == "__main__":
    main()
