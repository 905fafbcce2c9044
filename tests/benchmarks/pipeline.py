"""The whole pipeline beside its bare step and torchvision's, and the seconds from the command typed
to the first step.

    python tests/benchmarks/pipeline.py [--images 96 --epochs 3 --workers 2]

Makes a synthetic set, prepares it, types `retinaray train` and reads its own lines:
seconds to the first step, images/s of the epochs after the first. Before and after that, as many
bare processes as there were workers run a training step on one batch in memory, all at once,
without data, Ray or gradient exchange: their summed images/s is what the machine could do at that
hour. The start is compared with that of a bare Ray Train job of as many workers: a script that
connects, imports torch and torchvision in the workers and makes one step of a ResNet-18. Last the
same command is typed against a cluster that runs already (`ray start --head`), three times.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
RECIPE = os.path.join(ROOT, "pipelines", "recipes", "small_r18.yaml")
STEPS = """
import sys, time
sys.path[:0] = [{root!r}, {here!r}]
import torch
torch.set_num_threads(1)
torch.manual_seed(0)
import step
batch = step.random_batch(batch={batch}, height=320, width=448, classes=5)
if {torchvision}:
    one = step.torchvision_step(batch, backbone="resnet18", classes=5, amp=True, channels_last=True)
else:
    one = step.our_step(
        batch, backbone="resnet18", classes=5, amp=True, width=128, head_norm="group"
    )
one()
start = time.perf_counter()
for _ in range({steps}):
    one()
print({batch} * {steps} / (time.perf_counter() - start))
"""
BARE_RAY_TRAIN = """
import sys, tempfile
def work():
    import ray.train, ray.train.torch, torch, torchvision
    model = ray.train.torch.prepare_model(torchvision.models.resnet18())
    model(torch.zeros(2, 3, 64, 64)).sum().backward()
    if ray.train.get_context().get_world_rank() == 0:
        open({mark!r}, "w").close()
import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
ray.init(log_to_driver=False, logging_level="ERROR")
scaling = ScalingConfig(num_workers={workers}, resources_per_worker={{"CPU": 0.75}})
run = RunConfig(storage_path=tempfile.mkdtemp(dir={folder!r}))
TorchTrainer(work, scaling_config=scaling, run_config=run).fit()
"""


def bare_rate(workers: int, *, batch: int, steps: int, torchvision: bool) -> float:
    """Summed images/s of `workers` single-threaded processes that step side by side."""
    program = STEPS.format(root=ROOT, here=HERE, batch=batch, steps=steps, torchvision=torchvision)
    running = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        for _ in range(workers)
    ]
    return sum(float(process.communicate()[0]) for process in running)


def bare_start(folder: str, workers: int) -> float:
    """Seconds from the start of a bare Ray Train job to the end of its first step."""
    mark = os.path.join(folder, "stepped")
    script = os.path.join(folder, "bare.py")
    with open(script, "w") as file:
        file.write(BARE_RAY_TRAIN.format(mark=mark, workers=workers, folder=folder))
    begun = time.time()
    subprocess.run(
        [sys.executable, script], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    return os.path.getmtime(mark) - begun


@contextmanager
def running_cluster(folder: str) -> Iterator[tuple[str, dict[str, str]]]:
    """`ray start --head` with a token and ports of its own, as a child of this process; its
    address, and the environment in which it is joined.
    """
    Path(folder, "token").write_text("0123456789abcdef" * 4)
    secured = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": f"{folder}/token"}
    ports = []
    for _ in range(4):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            ports.append(listener.getsockname()[1])
    command = [
        str(Path(sys.executable).parent / "ray"),
        "start",
        "--head",
        "--block",
        f"--port={ports[0]}",
        f"--dashboard-port={ports[1]}",
    ]
    command += [
        f"--dashboard-agent-listen-port={ports[2]}",
        f"--ray-client-server-port={ports[3]}",
        "--node-ip-address=127.0.0.1",
    ]
    command += [
        "--object-store-memory=300000000",
        "--disable-usage-stats",
        f"--temp-dir={folder}/ray",
    ]
    with open(f"{folder}/head.log", "w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, start_new_session=True, env=secured
        )
    try:
        for _ in range(120):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", ports[0])) == 0:
                    break
            time.sleep(0.5)
        # The node's own processes start after the port answers.
        time.sleep(10)
        yield f"127.0.0.1:{ports[0]}", secured
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)


def pipeline_rates(
    folder: str, options: argparse.Namespace, environment: dict[str, str] | None = None, **more: str
) -> tuple[float, float]:
    """(seconds from the command to the end of the first step, median images/s after the first
    epoch).
    """
    flags = {
        "config": RECIPE,
        "data.train": f"{folder}/shards/train",
        "data.val": f"{folder}/shards/val",
        "storage": f"{folder}/runs",
        "name": "bench",
        "training.epochs": options.epochs,
        "training.evaluate_every": options.epochs,
        "training.checkpoint_every": options.epochs,
        "training.log_steps": 1,
        "training.log_seconds": 0,
        "training.workers": options.workers,
        **more,
    }
    command = [
        sys.executable,
        "-m",
        "pipelines.train",
        *(text for name, value in flags.items() for text in (f"--{name}", str(value))),
    ]
    start, first, rates = time.perf_counter(), 0.0, []
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    for line in process.stdout:
        if found := re.search(r"epoch +([\d.]+) .* ([\d.]+) img/s", line):
            first = first or time.perf_counter() - start
            if float(found[1]) > 1:
                rates.append(float(found[2]))
    if process.wait() or not rates:
        raise SystemExit(
            f"the training failed with exit code {process.returncode}: {' '.join(command)}"
        )
    return first, statistics.median(rates)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    batch = 4 // options.workers
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        coco = [
            sys.executable,
            "-m",
            "cluster.prepare.synthetic",
            f"{folder}/coco",
            "--train",
            str(options.images),
            "--val",
            "8",
        ]
        subprocess.run(coco, cwd=ROOT, check=True)
        for split in ("train", "val"):
            source = [
                "--annotations",
                f"{folder}/coco/annotations/instances_{split}.json",
                "--images",
                f"{folder}/coco/images/{split}",
            ]
            prepare = [
                sys.executable,
                "-m",
                "pipelines.prepare",
                *source,
                "--output",
                f"{folder}/shards/{split}",
            ]
            subprocess.run(prepare, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        ours, theirs, starts = [], [], []

        def bare() -> None:
            starts.append(bare_start(folder, options.workers))
            ours.append(bare_rate(options.workers, batch=batch, steps=12, torchvision=False))
            theirs.append(bare_rate(options.workers, batch=batch, steps=12, torchvision=True))

        bare()
        first, rate = pipeline_rates(folder, options)
        bare()
        short = argparse.Namespace(**{**vars(options), "epochs": 2})
        with (
            tempfile.TemporaryDirectory(prefix="rr-") as head,
            running_cluster(head) as (address, secured),
        ):
            joined = [
                pipeline_rates(
                    folder, short, secured, name=f"joined-{i}", **{"ray.address": address}
                )[0]
                for i in range(3)
            ]
    middle = statistics.mean(ours)
    print(
        f"small_r18.yaml (ResNet-18, 128 channels, 320x448), {options.workers} workers, {batch}"
        f" images a worker and step, {options.images} images"
    )
    print("| what | figure |\n|---|---|")
    print(
        f"| bare step, {options.workers} processes, before / after | {ours[0]:.2f} / {ours[1]:.2f}"
        " img/s |"
    )
    print(f"| whole pipeline, median of the steps after the first epoch | {rate:.2f} img/s |")
    print(f"| pipeline / bare step | {rate / middle:.2f} |")
    print(
        "| torchvision's RetinaNet (256 channels), bf16, channels-last, bare step, before / after"
        f" | {theirs[0]:.2f} / {theirs[1]:.2f} img/s |"
    )
    print(f"| pipeline / torchvision's bare step | {rate / statistics.mean(theirs):.2f} |")
    print(f"| command typed to first step done | {first:.1f} s |")
    print(
        "| the same on a running cluster, three in a row |"
        f" {' / '.join(f'{seconds:.1f}' for seconds in joined)} s |"
    )
    print(
        f"| a bare Ray Train job, command to first step, before / after | {starts[0]:.1f} /"
        f" {starts[1]:.1f} s |"
    )


if __name__ == "__main__":
    main()
