"""Seconds from a fault to the next training step, and where they go, beside a bare Ray Train job
that loses a worker.

    python tests/benchmarks/reliability.py [--rounds 3 --faults
    bare,worker,all,driver,start,node,hang]

A tiny network on synthetic pictures, two workers, a checkpoint every 16 images. Each round types
`retinaray train`, waits for a checkpoint and a step more, and then: kills a worker, kills
all, kills the driver and types the command again, kills a node (of two, on a cluster of three
raylets) with one worker as the least, or stops a worker that must make a step in 12 seconds.
`start` kills nothing and types the command the first time. The lines of the training tell the time:
until the failure was noticed, until new workers were there, until they had their state, until the
first step was done. The bare job does what Ray's documentation shows: a checkpoint by
`ray.train.report`, a restart by `FailureConfig`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))

from tests.support.ray_nodes import Nodes

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TINY = {
    "model": {
        "backbone": "resnet18",
        "width": 64,
        "head_norm": "group",
        "anchors": {"base_sizes": [12, 24, 48, 96, 192]},
    },
    "canvas": {"height": 96, "width": 128},
    "optimizer": {"name": "adamw", "learning_rate": 0.001},
    "training": {
        "epochs": 500,
        "batch_size": 4,
        "workers": 2,
        "cpus_per_worker": 0.5,
        "log_steps": 1,
        "log_seconds": 0,
        "checkpoint_images": 16,
    },
}
TINY["training"] |= {"evaluate_every": 500, "evaluation": "between"}
PARTS = {
    "failed: ": "noticed",
    "ranks: ": "new processes",
    "training on ": "state restored",
    "img/s": "first step",
}
"""What a line of the training with these words ends."""
BARE = """
import os, signal, sys, tempfile, time
def work():
    import ray.train, ray.train.torch, torch, torchvision
    model = ray.train.torch.prepare_model(torchvision.models.resnet18())
    again = ray.train.get_checkpoint()
    while True:
        model(torch.zeros(2, 3, 64, 64)).sum().backward()
        if ray.train.get_context().get_world_rank():
            ray.train.report({{}})
            if not again:
                time.sleep(2)
                open({mark!r} + "-killed", "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
        else:
            if again:
                open({mark!r} + "-stepped", "w").close()
            with tempfile.TemporaryDirectory() as folder:
                torch.save(model.state_dict(), folder + "/model.pt")
                ray.train.report({{}}, checkpoint=ray.train.Checkpoint.from_directory(folder))
        if again:
            return
import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
ray.init(log_to_driver=False, logging_level="ERROR")
run = RunConfig(
    storage_path=tempfile.mkdtemp(dir={folder!r}), failure_config=FailureConfig(max_failures=1))
scaling = ScalingConfig(num_workers=2, resources_per_worker={{"CPU": 0.75}})
TorchTrainer(work, scaling_config=scaling, run_config=run).fit()
"""


def bare(folder: str, name: str) -> dict[str, float]:
    mark, script = f"{folder}/{name}", f"{folder}/{name}.py"
    with open(script, "w") as file:
        file.write(BARE.format(mark=mark, folder=folder))
    subprocess.run(
        [sys.executable, script], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    return {"all": os.path.getmtime(mark + "-stepped") - os.path.getmtime(mark + "-killed")}


def prepare(folder: str, *, train: int, val: int) -> None:
    coco = [
        sys.executable,
        "-m",
        "cluster.prepare.synthetic",
        f"{folder}/coco",
        "--train",
        str(train),
        "--val",
        str(val),
    ]
    subprocess.run(coco, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    for split in ("train", "val"):
        source = [
            "--annotations",
            f"{folder}/coco/annotations/instances_{split}.json",
            "--images",
            f"{folder}/coco/images/{split}",
        ]
        verb = [
            sys.executable,
            "-m",
            "pipelines.prepare",
            *source,
            "--output",
            f"{folder}/shards/{split}",
            "--row_group_rows",
            "8",
        ]
        subprocess.run(verb, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


class Training:
    """A command, its lines with the time of each, and the processes of its ranks."""

    def __init__(self, folder: str, name: str, **training: float | str):
        recipe, address = f"{folder}/{name}.yaml", training.pop("address", None)
        with open(recipe, "w") as file:
            json.dump({**TINY, "training": {**TINY["training"], **training}}, file)
        self.command = [
            sys.executable,
            "-m",
            "pipelines.train",
            "--config",
            recipe,
            "--name",
            name,
            "--storage",
            f"{folder}/runs",
        ]
        self.command += [
            "--data.train",
            f"{folder}/shards/train",
            "--data.val",
            f"{folder}/shards/val",
        ]
        self.command += ["--ray.address", address] if address else ["--ray.num_cpus", "2"]
        self.pids: dict[int, int] = {}
        self.start()

    def start(self) -> None:
        env = os.environ | {"PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            self.command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=env,
            text=True,
        )

    def lines(self) -> Iterator[tuple[float, str]]:
        for line in self.process.stdout:
            for rank, pid in re.findall(
                r"(\d+) on [\d.]+ \(pid (\d+)\)", line if "ranks: " in line else ""
            ):
                self.pids[int(rank)] = int(pid)
            yield time.time(), line
        raise SystemExit(f"the training ended with {self.process.wait()}")

    def until_a_step_after_a_checkpoint(self) -> None:
        lines = self.lines()
        next(line for _, line in lines if "checkpoint " in line)
        next(line for _, line in lines if "img/s" in line)

    def parts(self, began: float) -> dict[str, float]:
        """Seconds of each part from `began` to the first step."""
        found, last = {}, began
        for now, line in self.lines():
            # Steps that were under way, and the workers that there were.
            part = next(
                (
                    part
                    for words, part in PARTS.items()
                    if words in line and (words != "img/s" or "state restored" in found)
                ),
                None,
            )
            if part is not None and part not in found:
                found[part], last = now - last, now
            if part == "first step":
                return {**found, "all": now - began}
        raise AssertionError

    def end(self) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.stdout.read()
        self.process.wait()


def with_workers(
    number: signal.Signals, *ranks: int, **training: float
) -> Callable[[str, str], dict[str, float]]:
    def measured(folder: str, name: str) -> dict[str, float]:
        run = Training(folder, name, **training)
        run.until_a_step_after_a_checkpoint()
        began = time.time()
        for rank in ranks:
            os.kill(run.pids[rank], number)
        found = run.parts(began)
        run.end()
        return found

    return measured


def driver(folder: str, name: str) -> dict[str, float]:
    run = Training(folder, name)
    run.until_a_step_after_a_checkpoint()
    run.process.kill()
    run.process.wait()
    began = time.time()
    run.start()
    found = run.parts(began)
    run.end()
    return found


def start(folder: str, name: str) -> dict[str, float]:
    began = time.time()
    run = Training(folder, name)
    found = run.parts(began)
    run.end()
    return found


def node(folder: str, name: str) -> dict[str, float]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    os.environ["RAY_AUTH_MODE"] = "disabled"
    with Nodes(env) as nodes:
        for one in ("first", "second"):
            nodes.add(one, cpus=1)
        run = Training(folder, name, min_workers=1, address=nodes.address)
        run.until_a_step_after_a_checkpoint()
        began = time.time()
        nodes.kill("second")
        found = run.parts(began)
        run.end()
    return found


FAULTS = {
    "bare": ("a bare Ray Train job, one worker killed", bare),
    "worker": ("one worker killed", with_workers(signal.SIGKILL, 1)),
    "all": ("all workers killed", with_workers(signal.SIGKILL, 0, 1)),
    "driver": ("driver killed, the command typed again", driver),
    "start": ("the command typed the first time", start),
    "node": ("a node killed, 1..2 workers", node),
    "hang": ("a worker stopped, 12 s allowed", with_workers(signal.SIGSTOP, 1, hang_minutes=0.2)),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--faults", default=",".join(FAULTS))
    options = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder,
        contextlib.chdir(folder),
    ):
        prepare(folder, train=64, val=4)
        for round_ in range(options.rounds):
            for fault in options.faults.split(","):
                words, measured = FAULTS[fault]
                seconds = measured(folder, f"{fault}-{round_}")
                found.setdefault(words, []).append(seconds)
                print(
                    f"{words}:"
                    f" {', '.join(f'{part} {value:.1f}' for part, value in seconds.items())}",
                    flush=True,
                )
    columns = [*PARTS.values()]
    print(f"\n{options.rounds} rounds, seconds, medians (least..greatest)\n")
    print(f"| fault | all | {' | '.join(columns)} |\n|---|{'---|' * (1 + len(columns))}")
    for words, rounds in found.items():
        cells = []
        for name in ("all", *columns):
            values = sorted(parts[name] for parts in rounds if name in parts)
            cells.append(
                f"{statistics.median(values):.1f} ({values[0]:.1f}..{values[-1]:.1f})"
                if values
                else ""
            )
        print(f"| {words} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
