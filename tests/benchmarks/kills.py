"""A command that is killed at random moments and typed again until it ends: what is lost, and what
is done twice.

    python tests/benchmarks/kills.py predict|sweep [--kills 20 --of driver|worker
    --signals KILL TERM INT --seed 0 --pictures 1500 --trials 6]

Everything is typed in a folder of its own with relative paths. First the command runs undisturbed,
which tells how long it takes. Then it is started again and again with another output; each time it
gets one of the signals after a random share of that time: its driver, or one of the processes that
work for it. A command that ends before its moment is begun anew with another output.

predict: the rows are those of the undisturbed run, and no part is written a second time.
sweep: each line `epoch n of m` of a trial stands once in all logs, the trials are those of the
undisturbed run, and no MLflow run stays RUNNING.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import mlflow
import psutil
import pyarrow.parquet as pq

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))

from tests.support.trainings import environment

ROOT = Path(__file__).parents[2]
MODEL = {
    "model.backbone": "resnet18",
    "model.width": "64",
    "canvas.height": "96",
    "canvas.width": "128",
    "optimizer.name": "adamw",
    "optimizer.learning_rate": "0.001",
    "data.train": "data/shards/train",
    "data.val": "data/shards/val",
    "training.batch_size": "8",
}


class Command:
    """A verb as it is typed in the folder, its lines in a file."""

    def __init__(self, folder: Path, verb: str, options: dict[str, str]):
        self.log = folder / f"log-{time.monotonic_ns()}.txt"
        self.begun = time.monotonic()
        with open(self.log, "w") as lines:
            self.process = subprocess.Popen(
                [sys.executable, "-m", f"pipelines.{verb}", *flags(options)],
                cwd=folder,
                env=environment(PYTHONPATH=str(ROOT)),
                stdout=lines,
                stderr=subprocess.STDOUT,
            )

    def must_end(self) -> str:
        """Its lines, of a command that ends well."""
        if self.process.wait():
            raise SystemExit(f"exit code {self.process.returncode}:\n{self.log.read_text()}")
        return self.log.read_text()

    def kill(self, after_s: float, sent: signal.Signals, of: str) -> bool:
        """Wait, then send the signal; False where there was nobody to get it."""
        while time.monotonic() < self.begun + after_s:
            if self.process.poll() is not None:
                return False
            time.sleep(0.02)
        if of == "driver":
            self.process.send_signal(sent)
            self.process.wait()
            return True
        while not (workers := self.workers()):
            if self.process.poll() is not None:
                return False
            time.sleep(0.02)
        random.choice(workers).send_signal(sent)
        return True

    def workers(self) -> list[psutil.Process]:
        """Processes of Ray that have a task or an actor. Its agents are left alone: without them
        the node ends, and with it the driver of a Ray on one machine.
        """
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                name = (child.cmdline() or [""])[0]
            except psutil.Error:
                continue
            if (
                name.startswith("ray::")
                and not name.startswith("ray::IDLE")
                and "Agent" not in name
            ):
                found.append(child)
        return found


def flags(options: dict[str, str]) -> list[str]:
    return [word for name, value in options.items() for word in (f"--{name}", value)]


def prepare(folder: Path, pictures: int) -> None:
    """A data set to train on, and pictures to predict on."""
    made = [f"{folder}/data/coco", "--train", "48", "--val", "16"]
    subprocess.run([sys.executable, "-m", "cluster.prepare.synthetic", *made], cwd=ROOT, check=True)
    made = [f"{folder}/data/pictures", "--train", str(pictures), "--val", "1"]
    subprocess.run([sys.executable, "-m", "cluster.prepare.synthetic", *made], cwd=ROOT, check=True)
    for split in ("train", "val"):
        source = {
            "annotations": f"data/coco/annotations/instances_{split}.json",
            "images": f"data/coco/images/{split}",
            "output": f"data/shards/{split}",
        }
        Command(folder, "prepare", source).must_end()


class Predict:
    verb = "predict"

    def __init__(self, folder: Path):
        self.folder = folder
        run = {**MODEL, "name": "cells", "training.epochs": "1"}
        Command(folder, "train", run).must_end()
        Command(folder, "register", {"run": "runs/runs/cells", "name": "cells"}).must_end()
        self.stored: dict[Path, tuple[int, int]] = {}
        self.again = 0
        """Parts that were written a second time."""

    def options(self, output: str) -> dict[str, str]:
        return {
            "model": "models:/cells/1",
            "images": "data/pictures/images/train",
            "output": output,
            "cpus_per_worker": "0.5",
        }

    def after_kill(self, output: str) -> None:
        parts = self.folder.glob(f"{output}/parts/part-*.parquet")
        now = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in parts}
        self.again += sum(now.get(path, (0, 0)) != was for path, was in self.stored.items())
        self.stored = now

    def result(self, output: str) -> object:
        table = pq.read_table(self.folder / output / "predictions.parquet")
        self.after_kill(output)
        self.stored = {}
        return table.to_pylist()

    def counts(self) -> str:
        return f"{self.again} parts written a second time"


class Sweep:
    verb = "sweep"

    def __init__(self, folder: Path, trials: int):
        self.folder = folder
        rates = [10**-power for power in range(3, 3 + trials)]
        self.space = {
            "sweep.preset": "none",
            "sweep.space.optimizer.learning_rate": str(rates),
            "sweep.trials": str(trials),
            "sweep.epochs": "3",
        }
        self.twice: Counter[str] = Counter()
        self.epochs = 0
        self.read: set[Path] = set(folder.glob("log-*.txt"))

    def options(self, output: str) -> dict[str, str]:
        return {**MODEL, "name": output, **self.space}

    def after_kill(self, output: str) -> None:
        """The lines are counted at the end."""

    def result(self, output: str) -> object:
        logs = set(self.folder.glob("log-*.txt")) - self.read
        self.read |= logs
        seen = Counter(
            line
            for log in logs
            for line in re.findall(r"trial-\w+ epoch \d+ of \d+", log.read_text())
        )
        self.epochs += len(seen)
        self.twice.update({line: count for line, count in seen.items() if count > 1})
        client = mlflow.MlflowClient(f"sqlite:///{self.folder}/runs/mlflow.db")
        runs = client.search_runs([each.experiment_id for each in client.search_experiments()])
        running = [run.info.run_name for run in runs if run.info.status == "RUNNING"]
        trials = {line.split()[0] for line in seen}
        return {"running": running, "trials": sorted(trials)}

    def counts(self) -> str:
        return f"{self.epochs} epochs, {len(self.twice)} of them trained twice {dict(self.twice)}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill a command again and again.")
    parser.add_argument("verb", choices=["predict", "sweep"])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--of", choices=["driver", "worker"], default="driver")
    parser.add_argument("--signals", nargs="+", default=["KILL"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pictures", type=int, default=1500)
    parser.add_argument("--trials", type=int, default=6)
    asked = parser.parse_args()
    random.seed(asked.seed)
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    prepare(folder, asked.pictures if asked.verb == "predict" else 1)
    work = Predict(folder) if asked.verb == "predict" else Sweep(folder, asked.trials)
    undisturbed = Command(folder, work.verb, work.options("undisturbed"))
    undisturbed.must_end()
    seconds = time.monotonic() - undisturbed.begun
    wanted = work.result("undisturbed")
    print(f"undisturbed: {seconds:.1f} s", flush=True)

    sent = ended = wrong = 0
    while sent < asked.kills:
        ended += 1
        output = f"killed-{ended}"
        done = False
        while not done:
            command = Command(folder, work.verb, work.options(output))
            if sent < asked.kills:
                name = random.choice(asked.signals)
                moment = random.uniform(0, seconds)
                if command.kill(moment, getattr(signal, f"SIG{name}"), asked.of):
                    sent += 1
                    work.after_kill(output)
                    print(f"{output}: SIG{name} at {moment:.1f} s", flush=True)
                    if asked.of == "driver" and command.process.returncode != 0:
                        continue
            command.must_end()
            done = True
        found = work.result(output)
        wrong += found != wanted
        print(f"{output}: {'as undisturbed' if found == wanted else found}", flush=True)
    print(
        f"{asked.verb}: {sent} signals to a {asked.of}, {ended} outputs, {wrong} of them not as"
        f" undisturbed; {work.counts()}; files in {folder}"
    )


if __name__ == "__main__":
    main()
