"""What `gpu.py` measures through Ray: a function for each part, which gives its figures one by one.
Nothing but torch is imported here, so that the parts of the bare network run without the rest.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from itertools import cycle, islice
from typing import Any

import torch
import torchvision

from detector.batch import Batch, on_device
from tests.benchmarks.gpu_parts import RATE, SECONDS, Figure, Sizes, our
from tests.benchmarks.step import seconds_of

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")


def fed(sizes: Sizes) -> Iterator[Figure]:
    """The same step on batches in memory and on batches of the stream, through Ray Data."""
    from cluster.compute.session import connect
    from cluster.loading.stream import Stream
    from tests.benchmarks.ingest import write_set

    device = torch.device(sizes.device)
    connect()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        shard_set = write_set(folder, sizes.images)
        stream = Stream(
            shard_set,
            rank=0,
            batches=[sizes.batch],
            canvases=[sizes.canvas],
            seed=0,
            epochs=sizes.rounds + 1,
            augmentation={"flip": 0.5},
            mirror_later=sizes.on_gpu,
            pinned=sizes.on_gpu,
            threads=sizes.threads,
        )
        whole = [(0, stream.places)]
        kept = list(islice(stream.epoch(0, whole), 4))
        build = our(sizes, compiled="default", norm="frozen", frozen_stages=2)
        step = build(next(on_device(kept[:1], device)))
        steps = sizes.images // sizes.batch

        def seconds(batches: Iterator[Batch]) -> float:
            """From the second batch on: the first one waits for the start of the epoch."""
            arriving = on_device(batches, device)
            step(next(arriving))
            return seconds_of(lambda: [step(batch) for batch in arriving], device)

        for number in range(sizes.rounds):
            taken = {
                "cached batches": seconds(islice(cycle(kept), steps)),
                "the stream": seconds(stream.epoch(number + 1, whole)),
            }
            for name, value in taken.items():
                rate = (steps - 1) * sizes.batch / value
                yield Figure(sizes.case(sizes.batch), name, RATE, rate, number, "cached batches")
        stream.close()


def training(sizes: Sizes) -> Iterator[Figure]:
    """`train` from the command line with the fine-tuning of a classifier, and then `evaluate`."""
    from tests.benchmarks.ingest import write_set

    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for split, images in (("train", sizes.images), ("val", sizes.val_images)):
            write_set(f"{folder}/{split}", images)
        weights = torchvision.models.get_model(sizes.backbone, weights=None).state_dict()
        torch.save(weights, f"{folder}/classifier.pth")
        begun, case = time.perf_counter(), sizes.case(sizes.batch)
        number = 0
        for line in _typed("train", train_flags(sizes, folder)):
            if found := re.search(r"epoch +([\d.]+) .* ([\d.]+) img/s", line):
                if not number:
                    yield Figure(case, "to the first step", SECONDS, time.perf_counter() - begun)
                yield Figure(case, "train", RATE, float(found[2]), number)
                number += 1
        begun = time.perf_counter()
        for _ in _typed("evaluate", evaluate_flags(folder)):
            pass
        taken = time.perf_counter() - begun
        yield Figure(f"{sizes.val_images} images", "evaluate, the whole command", SECONDS, taken)


def train_flags(sizes: Sizes, folder: str) -> dict[str, Any]:
    height, width = sizes.canvas
    return {
        "name": "bench",
        "storage": f"{folder}/runs",
        "data.train": f"{folder}/train",
        "data.val": f"{folder}/val",
        "pretrained": f"{folder}/classifier.pth",
        "model.backbone": sizes.backbone,
        "model.norm": "frozen",
        "model.frozen_stages": 2,
        "canvas.height": height,
        "canvas.width": width,
        "training.batch_size": sizes.batch,
        "training.epochs": 4,
        "training.evaluate_every": 4,
        "training.compile": "on" if sizes.compiles else "off",
        "training.log_steps": 10,
        "training.log_seconds": 0,
    }


def evaluate_flags(folder: str) -> dict[str, Any]:
    gpus = int(torch.cuda.is_available())
    return {
        "run": f"{folder}/runs/runs/bench",
        "data": f"{folder}/val",
        "output": f"{folder}/evaluation",
        "workers": 1,
        "gpus_per_worker": gpus,
    }


def prediction(sizes: Sizes) -> Iterator[Figure]:
    """`predict.py`, beside the bare network; its own lines are kept."""
    height, width = sizes.canvas
    flags = {
        "parts": "rates",
        "images": sizes.images,
        "rounds": min(2, sizes.rounds),
        "backbone": sizes.backbone,
        "width": sizes.width,
        "canvas": f"{height}x{width}",
        "device": sizes.device,
        "cpus": sizes.threads,
    }
    begun = time.perf_counter()
    lines = list(_output([os.path.join("tests", "benchmarks", "predict.py"), *_flags(flags)]))
    seconds = time.perf_counter() - begun
    told = {"lines": " / ".join(line for line in lines if line.startswith("|"))}
    yield Figure(sizes.case(sizes.batch), "predict.py", SECONDS, seconds, more=told)


def quickstart(sizes: Sizes) -> Iterator[Figure]:
    """Its stages, from the command to the last line."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for _ in _output(["-m", "cluster.prepare.synthetic", f"{folder}/data"]):
            pass
        begun = time.perf_counter()
        for _ in _typed("run", quickstart_flags(sizes, folder)):
            pass
        yield Figure("quickstart", "all stages", SECONDS, time.perf_counter() - begun)


def quickstart_flags(sizes: Sizes, folder: str) -> dict[str, Any]:
    flags: dict[str, Any] = {"config": "quickstart", "storage": f"{folder}/runs"}
    for split in ("train", "val"):
        source = f"{folder}/data/annotations/instances_{split}.json"
        flags |= {f"data.{split}.annotations": source}
        flags |= {f"data.{split}.images": f"{folder}/data/images/{split}"}
    return flags if sizes.on_gpu else flags | {"training.epochs": 1}


def _typed(verb: str, flags: Mapping[str, Any]) -> Iterator[str]:
    return _output(["-m", f"pipelines.{verb}", *_flags(flags)])


def _flags(flags: Mapping[str, Any]) -> list[str]:
    return [text for name, value in flags.items() for text in (f"--{name}", str(value))]


def _output(arguments: list[str]) -> Iterator[str]:
    """The lines of a Python command as they come; `SystemExit` with the last ones if it fails."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip())
        yield lines[-1]
    if process.wait():
        raise SystemExit("\n".join([f"{' '.join(arguments)}: failed", *lines[-20:]]))
