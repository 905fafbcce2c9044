"""What a second worker brings and what the pipeline around the step costs, each as a ratio within
one run.

    python tests/benchmarks/scaling.py [--batch 2 --rounds 4 --steps 5 --images 32 --epochs 3]   #
    --bare: only the first of the two tables, 2 minutes

First, bare processes without Ray and data, each on one thread and one core of its own,
small_r18.yaml's network and --batch images in memory: one alone, then two side by side without any
exchange, with DDP over gloo, and with its gradients as bfloat16. The four take turns in the same
two processes. Two processes without exchange against one is what the machine's shared caches and
memory allow; with gradients against without is gloo.

Then `retinaray train` on synthetic pictures: one worker on one core against two on two,
evaluations after every epoch against one at the end, and the share of its time that a training
stands still for checkpoints. The figures are those which the run itself puts into MLflow.
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
from collections.abc import Callable
from typing import Any

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path[:0] = [ROOT, HERE]
RECIPE = os.path.join(ROOT, "pipelines", "recipes", "small_r18.yaml")
ARMS = ("one process", "two, no exchange", "two, gloo", "two, gloo, gradients as bfloat16")


def bare_rank(options: argparse.Namespace) -> None:
    """One of the two processes. Rank 0 prints, for each round, the summed images/s and the CPU
    seconds an image of every arm.
    """
    import torch
    import torch.distributed as dist
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

    from cluster.training.step import distribute

    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[options.rank]})
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{options.store}", rank=options.rank, world_size=2
    )

    networks = [lambda model: model, lambda model: model, distribute, distribute]
    steps = [step_of(wrap, torch, images=options.batch) for wrap in networks]
    steps[3].network.register_comm_hook(None, bf16_compress_hook)
    for round_ in range(options.rounds + 1):
        for arm, step in zip(ARMS, steps, strict=True):
            dist.barrier()
            idle = arm == ARMS[0] and options.rank
            begun, cpu = time.perf_counter(), time.process_time()
            for _ in range(0 if idle else options.steps):
                step()
            seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
            images = 0 if idle else options.batch * options.steps
            mine = torch.tensor([images / seconds, cpu, images])
            dist.all_reduce(mine)
            # The first round warms up.
            if round_ and options.rank == 0:
                print(f"{arm}|{mine[0].item()}|{(mine[1] / mine[2]).item()}", flush=True)
    dist.destroy_process_group()


def step_of(wrap: Callable[[Any], Any], torch: Any, *, images: int) -> Callable[[], None]:
    import torch.distributed as dist
    from step import random_batch

    from detector.baselines import build_model
    from detector.choices import LossSettings
    from detector.optimizer import build_optimizer
    from detector.precision import autocast_dtype
    from detector.step import train_step

    torch.manual_seed(0)
    model = build_model(
        classes=5, backbone="resnet18", width=128, norm="batch", head_norm="group"
    ).to(memory_format=torch.channels_last)
    network = wrap(model)
    alone = network is model
    batch = random_batch(batch=images, height=320, width=448, classes=5)
    anchors = torch.cat(model.anchors(320, 448))
    optimizer = build_optimizer(
        model, name="adamw", learning_rate=1e-4, weight_decay=1e-4, momentum=0.9
    )
    dtype = autocast_dtype(torch.device("cpu"), amp=True)
    how = dict(
        loss=LossSettings(),
        learning_rate=1e-4,
        clip_norm=5.0,
        amp_dtype=dtype,
    )

    def sum_over_ranks(tensor: Any) -> Any:
        dist.all_reduce(tensor)
        return tensor

    exchange = {} if alone else {"sum_over_ranks": sum_over_ranks, "ranks": 2}

    def step() -> None:
        train_step(network, optimizer, batch, anchors, **how, **exchange)

    step.network = network
    return step


def bare_rates(options: argparse.Namespace, *, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """(images/s, CPU seconds an image) of every arm and round."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        command = [
            sys.executable,
            os.path.abspath(__file__),
            "--store",
            f"{folder}/store",
            "--rounds",
            str(rounds),
            "--steps",
            str(options.steps),
        ]
        command += ["--batch", str(options.batch)]
        running = [
            subprocess.Popen([*command, "--rank", str(rank)], stdout=subprocess.PIPE, text=True)
            for rank in range(2)
        ]
        printed = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise SystemExit("a bare process failed")
    rates: dict[str, list[tuple[float, float]]] = {arm: [] for arm in ARMS}
    for line in printed[0].splitlines():
        arm, rate, cpu = line.split("|")
        rates[arm].append((float(rate), float(cpu)))
    return rates


def print_bare(rates: dict[str, list[tuple[float, float]]], *, images: int) -> None:
    def ratios(place: int, arm: str, base: str, times: float) -> str:
        found = [
            mine[place] / (times * other[place])
            for mine, other in zip(rates[arm], rates[base], strict=True)
        ]
        return f"{statistics.median(found):.3f} ({min(found):.3f}..{max(found):.3f})"

    print(
        f"\n{len(rates[ARMS[0]])} rounds, {images} images a process and step; ratios within a"
        " round, medians (least..greatest)\n"
    )
    print(
        "| bare processes | images/s | weak scaling: / (2 x one process) | / two, no exchange | CPU"
        " seconds an image / one process |"
    )
    print("|---|---|---|---|---|")
    for arm in ARMS:
        two = 1.0 if arm == ARMS[0] else 2.0
        middle = statistics.median(rate for rate, _ in rates[arm])
        print(
            f"| {arm} | {middle:.2f} | {ratios(0, arm, ARMS[0], two)} |"
            f" {ratios(0, arm, ARMS[1], 1)} | {ratios(1, arm, ARMS[0], 1)} |"
        )


def prepare(folder: str, images: int) -> None:
    coco = [
        sys.executable,
        "-m",
        "cluster.prepare.synthetic",
        f"{folder}/coco",
        "--train",
        str(images),
        "--val",
        "16",
    ]
    subprocess.run(coco, cwd=ROOT, check=True)
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
        ]
        subprocess.run(verb, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def train(
    folder: str, name: str, *, workers: int, images: int, epochs: int, evaluate_every: int
) -> dict[str, list[Any]]:
    """Run the verb, on one core where there is one worker, and return the run's step metrics as
    MLflow has them.
    """
    import mlflow

    flags = {
        "config": RECIPE,
        "data.train": f"{folder}/shards/train",
        "data.val": f"{folder}/shards/val",
        "storage": f"{folder}/runs",
        "name": name,
        "training.batch_size": images * workers,
        "training.epochs": epochs,
        "training.evaluate_every": evaluate_every,
        "training.log_steps": 1,
        "training.workers": workers,
        "ray.num_cpus": 2,
    }
    command = [
        sys.executable,
        "-m",
        "pipelines.train",
        *(text for flag, value in flags.items() for text in (f"--{flag}", str(value))),
    ]
    pinned = ["taskset", "-c", str(sorted(os.sched_getaffinity(0))[0])] if workers == 1 else []
    done = subprocess.run([*pinned, *command], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the training failed: {done.stdout[-1000:]}{done.stderr[-2000:]}")
    store = re.search(r"sqlite:\S+mlflow\.db", done.stdout)[0]
    client = mlflow.MlflowClient(store)
    (run,) = client.search_runs(
        [e.experiment_id for e in client.search_experiments()],
        filter_string=f"attributes.run_name = '{name}'",
    )
    names = ("images_per_second", "rest_share", "data_share", "epoch")
    return {name: client.get_metric_history(run.info.run_id, f"train/{name}") for name in names}


def after_first_epoch(metrics: dict[str, list[Any]], name: str) -> list[float]:
    return [
        metric.value
        for metric, epoch in zip(metrics[name], metrics["epoch"], strict=True)
        if epoch.value > 1.001
    ]


def rate(metrics: dict[str, list[Any]]) -> float:
    return statistics.median(after_first_epoch(metrics, "images_per_second"))


def wall_rate(metrics: dict[str, list[Any]]) -> float:
    """Images/s by the clock from the end of the first epoch to the last step: what happens between
    steps counts.
    """
    first = next(epoch for epoch in metrics["epoch"] if epoch.value > 0.999)
    last = metrics["epoch"][-1]
    return (last.step - first.step) / ((last.timestamp - first.timestamp) / 1000)


def still_share(metrics: dict[str, list[Any]], batch: int) -> float:
    """The rest (what is neither step nor waiting for data) as a share of the time of all steps
    after the first epoch.
    """
    seconds = [batch / rate for rate in after_first_epoch(metrics, "images_per_second")]
    rests = after_first_epoch(metrics, "rest_share")
    return sum(rest * second for rest, second in zip(rests, seconds, strict=True)) / sum(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=5, help="a process, arm and round")
    parser.add_argument("--batch", type=int, default=2, help="images a process and step")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--bare", action="store_true", help="without the pipeline")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--store", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank is not None:
        return bare_rank(options)
    if len(os.sched_getaffinity(0)) < 2:
        raise SystemExit("this needs two cores")
    rates = bare_rates(options, rounds=options.rounds)
    if not options.bare:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            prepare(folder, options.images)
            one = train(
                folder,
                "one",
                workers=1,
                images=options.batch,
                epochs=options.epochs,
                evaluate_every=options.epochs,
            )
            two = train(
                folder,
                "two",
                workers=2,
                images=options.batch,
                epochs=options.epochs,
                evaluate_every=options.epochs,
            )
            often = train(
                folder,
                "often",
                workers=2,
                images=options.batch,
                epochs=options.epochs,
                evaluate_every=1,
            )
        # Before and after the pipeline: the machine's speed drifts.
        for arm, found in bare_rates(options, rounds=max(1, options.rounds // 2)).items():
            rates[arm] += found
    print_bare(rates, images=options.batch)
    if options.bare:
        return
    bare = {arm: statistics.median(rate for rate, _ in found) for arm, found in rates.items()}
    print(
        f"\nThe whole pipeline, {options.images} images, {options.epochs} epochs, a checkpoint"
        " after each\n\n| what | figure |\n|---|---|"
    )
    print(
        f"| one worker, its job on one core; two workers on two cores | {rate(one):.2f};"
        f" {rate(two):.2f} images/s |"
    )
    print(f"| weak scaling: two / (2 x one) | {rate(two) / (2 * rate(one)):.3f} |")
    print(f"| one worker / one bare process | {rate(one) / bare[ARMS[0]]:.3f} |")
    print(f"| two workers / two bare processes with gloo | {rate(two) / bare[ARMS[2]]:.3f} |")
    print(
        f"| two workers / two bare processes without exchange | {rate(two) / bare[ARMS[1]]:.3f} |"
    )
    print(
        "| waiting for data, share of a step, median |"
        f" {statistics.median(after_first_epoch(two, 'data_share')):.3f} |"
    )
    print(
        "| standing still for checkpoints and reports, share of an epoch |"
        f" {still_share(two, 2 * options.batch):.3f} |"
    )
    print(
        "| evaluation after every epoch (16 images) / at the end only: images/s of the steps |"
        f" {rate(often) / rate(two):.3f} |"
    )
    print(f"| the same, images/s by the clock | {wall_rate(often) / wall_rate(two):.3f} |")


if __name__ == "__main__":
    main()
