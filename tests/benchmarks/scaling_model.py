"""A training on 1 to 512 GPUs, on paper: what of a GPU's own images/s is left after exchange,
spread, evaluation, checkpoints and failures.

    python tests/benchmarks/scaling_model.py [--rate 443 --batch 32 --failures_a_day 0.004 ...]

Prints the tables of docs/scaling.md. Nothing here is measured: every input is a field below with
where it is from, every formula a function with a test that works it by hand
(tests/test_scaling_model.py). Bytes and seconds throughout, bandwidths in bytes/s.
"""

from __future__ import annotations

import argparse
import math
import statistics
from dataclasses import dataclass, fields, replace

DAY = 86_400.0
BUCKET = 25 * 1024 * 1024
"""DDP's default: an all-reduce begins when this many bytes of float32 gradient are ready."""
GBIT = 1e9 / 8


@dataclass(frozen=True)
class Job:
    """Defaults: R50-FPN, 91 classes, 800x800, on H200, 8 a node; COCO train2017 and val2017."""

    rate: float = 443.0
    """Images/s of one GPU at `batch`, alone and in memory: measured with 16, 48 % of bf16 peak
    (docs/benchmarks.md).
    """
    batch: int = 32
    parameters: float = 34.0e6
    gradient_bytes: int = 4
    """A parameter; 2 with gradient compression."""
    gpus_a_node: int = 8
    nvlink: float = 350e9
    """What an all-reduce sees of the 450 GB/s a direction that a GPU has."""
    network: float = 400 * GBIT
    """Of a node, for all its GPUs."""
    network_latency: float = 10e-6
    nvlink_latency: float = 3e-6
    backward: float = 2 / 3
    """Share of the step in which gradients are made and buckets travel beside it."""
    spread: float = 0.005
    """Standard deviation of one GPU's step as a share of it; each step takes as long as its slowest
    rank.
    """
    fixed_images: float = 1.6
    """What a step costs whatever its batch, in images' time."""
    epoch_images: int = 118_287
    val_images: int = 5_000
    eval_rate: float = 129.0
    """Images/s a GPU of a whole evaluation: decoding, NMS, gathering; scoring beside the next
    epoch.
    """
    checkpoint_stall: float = 1.0
    """Seconds in which training stands still for one checkpoint; the upload runs beside it."""
    restart: float = 60.0
    """Seconds from a failure to the next step."""
    failures_a_day: float = 0.004
    """Of a node: 419 in 54 days on 16,384 GPUs (The Llama 3 Herd of Models, arXiv 2407.21783,
    section 3.3.4).
    """
    reclaims_a_day: float = 1.0
    """Of a spot node, with no notice made use of; an assumption."""

    def nodes(self, gpus: int) -> int:
        return math.ceil(gpus / self.gpus_a_node)

    @property
    def buckets(self) -> int:
        """Of float32, compressed or not."""
        return math.ceil(4 * self.parameters / BUCKET)


def exchange_seconds(job: Job, gpus: int) -> float:
    """All buckets one after the other: a ring inside each node, then a ring over the nodes of what
    each GPU of a node holds of the sum.

    A ring of n moves 2 (n-1)/n of the bytes through every member and needs 2 (n-1) hops. NCCL's
    trees need fewer hops on many nodes.
    """
    size, nodes = job.parameters * job.gradient_bytes, job.nodes(gpus)
    inside = math.ceil(gpus / nodes)
    transfer = (
        2 * (inside - 1) / inside * size / job.nvlink + 2 * (nodes - 1) / nodes * size / job.network
    )
    return transfer + job.buckets * (
        2 * (inside - 1) * job.nvlink_latency + 2 * (nodes - 1) * job.network_latency
    )


def exposed_seconds(job: Job, gpus: int, step: float) -> float:
    """What of the exchange the backward pass does not hide: the last bucket in any case, it is
    ready when the pass ends.
    """
    exchange, last = exchange_seconds(job, gpus), 1 / job.buckets
    return max(last * exchange, exchange - job.backward * step * (1 - last))


def slowest(gpus: int) -> float:
    """The expected greatest of that many standard normal numbers (Blom's approximation)."""
    return statistics.NormalDist().inv_cdf((gpus - 0.375) / (gpus + 0.25))


def batch_efficiency(job: Job, batch: float) -> float:
    """Images/s at another batch a GPU, as a share of those at `job.batch`."""
    return batch / (batch + job.fixed_images) / (job.batch / (job.batch + job.fixed_images))


def best_interval(stall: float, failure_every: float) -> float:
    """Seconds between checkpoints that lose least: Young 1974."""
    return math.sqrt(2 * stall * failure_every)


def lost_to_failures(job: Job, *, failure_every: float) -> float:
    """Share of the time spent in checkpoints at the best interval, in work done twice and in
    restarts.
    """
    interval = best_interval(job.checkpoint_stall, failure_every)
    return job.checkpoint_stall / interval + (interval / 2 + job.restart) / failure_every


def lost_to_evaluation(job: Job, gpus: int, rate: float) -> float:
    """Share of the time of an epoch, at `rate` images/s in all, that a synchronous evaluation after
    each takes.
    """
    training, evaluation = job.epoch_images / rate, job.val_images / (gpus * job.eval_rate)
    return evaluation / (training + evaluation)


@dataclass(frozen=True)
class Row:
    gpus: int
    step: float
    exchange: float
    exposed: float
    weak: float
    """Images/s of a GPU in company, as a share of one alone."""
    rate: float
    """Images/s in all, while it trains."""
    evaluation: float
    whole: float
    """Images/s over days, with failures and with evaluations beside the training, as a share of
    `gpus` GPUs alone.
    """


def row(job: Job, gpus: int) -> Row:
    alone = job.batch / job.rate
    step = alone * (1 + job.spread * slowest(gpus)) if gpus > 1 else alone
    exposed = exposed_seconds(job, gpus, step) if gpus > 1 else 0.0
    weak = alone / (step + exposed)
    rate = gpus * job.rate * weak
    lost = lost_to_failures(job, failure_every=DAY / (job.failures_a_day * job.nodes(gpus)))
    exchange = exchange_seconds(job, gpus) if gpus > 1 else 0.0
    return Row(
        gpus,
        step,
        exchange,
        exposed,
        weak,
        rate,
        lost_to_evaluation(job, gpus, rate),
        weak * (1 - lost),
    )


COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


def speed_table(job: Job) -> str:
    head = (
        "| GPUs | images/s | efficiency against one GPU | exchange | exposed part of it |"
        " 100 Gbit/s for each node: efficiency | and bf16 gradients | images/s over days |"
    )
    lines = [head, "|" + "---|" * 8]
    for gpus in COUNTS:
        one = row(job, gpus)
        slow = row(replace(job, network=100 * GBIT), gpus)
        small = row(replace(job, network=100 * GBIT, gradient_bytes=2), gpus)
        lines.append(
            f"| {gpus} | {one.rate:,.0f} | {one.weak:.3f} | {1000 * one.exchange:.1f} ms |"
            f" {1000 * one.exposed:.1f} ms | {slow.weak:.3f} | {small.weak:.3f} |"
            f" {gpus * job.rate * one.whole:,.0f} |"
        )
    return "\n".join(lines)


def failure_table(job: Job) -> str:
    head = (
        "| nodes | a failure every | best interval | lost | spot: a failure every | best interval |"
        " lost |"
    )
    lines = [head, "|" + "---|" * 7]
    for nodes in (1, 2, 8, 16, 64):
        cells = [str(nodes)]
        for a_day in (job.failures_a_day, job.reclaims_a_day):
            every = DAY / (a_day * nodes)
            lost = lost_to_failures(job, failure_every=every)
            cells += [
                f"{every / 3600:,.1f} h",
                f"{best_interval(job.checkpoint_stall, every) / 60:.1f} min",
                f"{100 * lost:.2f} %",
            ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for field in fields(Job):
        parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    job = Job(**vars(parser.parse_args()))
    print(f"{speed_table(job)}\n\n{failure_table(job)}\n")
    print(
        f"A synchronous evaluation after each epoch takes {100 * row(job, 8).evaluation:.1f} % of"
        " the time."
    )
    print("Against published points (docs/scaling.md says what they are):")
    print(
        f"8 GPUs, weak scaling: {row(job, 8).weak:.3f}; without spread"
        f" {row(replace(job, spread=0.0), 8).weak:.3f}"
    )
    halved = batch_efficiency(job, job.batch / 2)
    print(
        f"16 over 8 GPUs, weak scaling: {row(job, 16).weak / row(job, 8).weak:.3f}; the global"
        f" batch kept, times {halved:.3f}"
    )
    print(
        f"batch 4 and 1 a GPU against {job.batch}: {batch_efficiency(job, 4):.2f} and"
        f" {batch_efficiency(job, 1):.2f}"
    )
    mlperf = replace(job, epoch_images=1_170_301, val_images=24_781)
    rate = 8 * 305.0
    print(
        "evaluation of 24,781 images beside 1,170,301 on 8 GPUs at 305 images/s:"
        f" {100 * lost_to_evaluation(mlperf, 8, rate):.1f} %, ",
        end="",
    )
    print(
        "at three times the training's rate"
        f" {100 * lost_to_evaluation(replace(mlperf, eval_rate=915.0), 8, rate):.1f} %"
    )


if __name__ == "__main__":
    main()
