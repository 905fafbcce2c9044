"""What a sweep costs beside its trainings.

    python tests/benchmarks/sweep.py [--parts cost rate grow] [--trials 12] [--simulated 200]

cost: CPU seconds and memory of all processes of a sweep with a third of the trials and with all of
    them, one epoch each, and of three epochs. The difference of all and a third is what a trial
    costs; without what its epoch costs it is the fixed cost of a trial.
rate: trials an hour of a sweep whose training is replaced by a function that reports three
    evaluations, beside bare Ray Tune with the same function, OptunaSearch and ASHA.
grow: simulated trials: memory of the driver, rows in MLflow's store and files in storage after each
    quarter of them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

import psutil

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, ROOT)

EPOCHS = 3
TINY = {
    "model": {"backbone": "resnet18", "width": 64, "norm": "batch", "head_norm": "group"},
    "canvas": {"height": 96, "width": 128},
    "optimizer": {"name": "adamw", "learning_rate": 0.001},
    "training": {"batch_size": 4},
}


class Watched:
    """CPU seconds of a process and all its descendants, and the most memory of those that Ray
    started, sampled twice a second. Memory is counted once for pages that processes share (PSS).
    """

    def __init__(self, command: list[str], folder: str):
        self.cpu: dict[int, float] = {}
        self.most_mib: dict[str, float] = {}
        began = time.monotonic()
        environment = {**os.environ, "PYTHONPATH": ROOT}
        with open(f"{folder}/log", "w", encoding="utf-8") as log:
            started = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT
            )
            watched = psutil.Process(started.pid)
            while started.poll() is None:
                self._sample(watched)
                time.sleep(0.5)
        self.seconds = time.monotonic() - began
        if started.returncode:
            with open(f"{folder}/log", encoding="utf-8") as log:
                raise SystemExit(f"{' '.join(command)} failed:\n{log.read()[-3000:]}")

    def _sample(self, root: psutil.Process) -> None:
        memory: dict[str, float] = {}
        try:
            for process in [root, *root.children(recursive=True)]:
                try:
                    times, name = process.cpu_times(), " ".join(process.cmdline()[:1])
                    self.cpu[process.pid] = times.user + times.system
                    if name.startswith("ray::"):
                        mib = process.memory_full_info().pss / 2**20
                        memory[name] = memory.get(name, 0.0) + mib
                except psutil.Error:
                    continue
        except psutil.Error:
            return
        for name, mib in memory.items():
            self.most_mib[name] = max(mib, self.most_mib.get(name, 0.0))

    @property
    def cpu_seconds(self) -> float:
        return sum(self.cpu.values())


def make_sets(folder: str) -> dict[str, str]:
    command = [sys.executable, "-m", "cluster.prepare.synthetic", f"{folder}/coco"]
    subprocess.run([*command, "--train", "48", "--val", "16"], cwd=ROOT, check=True)
    for split in ("train", "val"):
        given = [f"--annotations={folder}/coco/annotations/instances_{split}.json"]
        given += [f"--images={folder}/coco/images/{split}", f"--output={folder}/{split}"]
        command = [sys.executable, "-m", "pipelines.prepare", *given]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return {"train": f"{folder}/train", "val": f"{folder}/val"}


def cost(folder: str, data: dict[str, str], trials: int) -> None:
    with open(f"{folder}/tiny.yaml", "w", encoding="utf-8") as file:
        json.dump(TINY, file)

    def run(name: str, count: int, epochs: int) -> Watched:
        flags = {"data.train": data["train"], "data.val": data["val"], "storage": folder}
        flags |= {"name": name, "sweep.trials": str(count), "sweep.epochs": str(epochs)}
        flags |= {"sweep.stopping": "none", "sweep.searcher": "random"}
        words = [word for flag, value in flags.items() for word in (f"--{flag}", value)]
        command = [sys.executable, "-m", "pipelines.sweep", "--config", "tiny.yaml", *words]
        return Watched(command, folder)

    few, many = run("few", trials // 3, 1), run("many", trials, 1)
    long = run("long", trials // 3, EPOCHS)
    more = trials - trials // 3
    each = (many.cpu_seconds - few.cpu_seconds) / more
    epoch = (long.cpu_seconds - few.cpu_seconds) / (trials // 3) / (EPOCHS - 1)
    print(f"sweep of {trials // 3} trials: {few.cpu_seconds:.0f} CPU s, {few.seconds:.0f} s")
    print(f"sweep of {trials} trials: {many.cpu_seconds:.0f} CPU s, {many.seconds:.0f} s")
    print(f"a trial of one epoch: {each:.1f} CPU s, its epoch {epoch:.1f} CPU s")
    print(f"fixed cost of a trial: {each - epoch:.1f} CPU s")
    print("most memory at a time, MiB (PSS), by kind of process:")
    for name, mib in sorted(many.most_mib.items(), key=lambda item: -item[1]):
        print(f"  {name}: {mib:.0f}")


def curve(sample: dict[str, Any]) -> list[float]:
    """What a simulated trial is evaluated to."""
    return [0.1 * epoch / (1 + abs(sample["loss.gamma"] - 2)) for epoch in range(1, EPOCHS + 1)]


def simulated(proposed: dict[str, Any], told: Any) -> None:
    """In place of `tune.search._trial`."""
    from tune import trainable
    from tune.trials import trial_config

    sample = json.loads(proposed["sample"])
    name = trial_config(told.config, told.sweep, told.uri, sample).name
    for epoch, ap in enumerate(curve(sample), 1):
        point = {"images_seen": 48 * epoch, "epoch": epoch, "AP": ap, "AP50": ap}
        if trainable._report(told, name, point) is not None:
            return


def simulated_sweep(folder: str, data: dict[str, str], trials: int, name: str) -> float:
    from cluster.compute.session import RayConfig
    from cluster.runs.config import TrainConfig
    from cluster.tracking.config import TrackingConfig
    from tune import search, sweep
    from tune.config import SweepConfig

    search._trial = simulated
    config = {"name": name, "storage": folder, "data": data, **TINY}
    began = time.monotonic()
    sweep.sweep(
        TrainConfig.model_validate(config),
        SweepConfig(trials=trials, epochs=EPOCHS),
        ray=RayConfig(),
        tracking=TrackingConfig(),
    )
    return time.monotonic() - began


def bare_tune(folder: str, trials: int) -> float:
    """Ray Tune as its documentation shows it."""
    from ray.tune import RunConfig, TuneConfig, Tuner, report, uniform, with_resources
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    def train(sample: dict[str, Any]) -> None:
        for epoch, ap in enumerate(curve({"loss.gamma": sample["gamma"]}), 1):
            report({"AP": ap, "epoch": epoch})

    space = {"gamma": uniform(0, 5), "alpha": uniform(0.05, 0.95)}
    began = time.monotonic()
    Tuner(
        with_resources(train, {"cpu": 0.75}),
        param_space=space,
        tune_config=TuneConfig(
            metric="AP",
            mode="max",
            num_samples=trials,
            max_concurrent_trials=2,
            search_alg=OptunaSearch(),
            scheduler=ASHAScheduler(time_attr="epoch", max_t=EPOCHS, reduction_factor=3),
        ),
        run_config=RunConfig(storage_path=f"{folder}/bare", verbose=0),
    ).fit()
    return time.monotonic() - began


def rate(folder: str, data: dict[str, str], trials: int) -> None:
    from cluster.compute import session

    session.connect()
    ours = simulated_sweep(folder, data, trials, "rate")
    bare = bare_tune(folder, trials)
    for name, seconds in (("sweep", ours), ("bare Ray Tune", bare)):
        print(f"{name}: {trials} trials in {seconds:.0f} s, {3600 * trials / seconds:.0f} an hour")


def grow(folder: str, data: dict[str, str], trials: int) -> None:
    """The sweep is continued three times; each command's driver is this process."""
    import sqlite3

    print("trials | seconds | driver MiB | MLflow metrics | files in storage")
    for count in [trials * quarter // 4 for quarter in (1, 2, 3, 4)]:
        seconds = simulated_sweep(folder, data, count, "grow")
        mib = psutil.Process().memory_info().rss / 2**20
        with sqlite3.connect(f"{folder}/mlflow.db") as store:
            (metrics,) = store.execute("select count(*) from metrics").fetchone()
        files = sum(len(names) for _, _, names in os.walk(f"{folder}/sweeps/grow"))
        print(f"{count} | {seconds:.0f} | {mib:.0f} | {metrics} | {files}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", default=["cost", "rate", "grow"])
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--simulated", type=int, default=200)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sweep-") as folder:
        data = make_sets(folder)
        if "cost" in options.parts:
            cost(folder, data, options.trials)
        if "rate" in options.parts:
            rate(folder, data, 30)
        if "grow" in options.parts:
            grow(folder, data, options.simulated)


if __name__ == "__main__":
    main()
