"""Seconds of the paired difference in AP of two sets of detections, on images as of COCO.

    python tests/benchmarks/resampling.py [--images 5000 --detections 100 --classes 80
    --resamples 1000 --sizes --judge]

The second set is the first with other scores and without one detection in twenty. `match` matches
both with the objects; `difference` draws the images and scores both sets on every draw. `--sizes`
adds the intervals of all numbers, over all classes and of each, of one set; `--judge` adds what
else the report of an evaluation says: pairs, error kinds, thresholds, confusions, calibration.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable
from typing import Any

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", ".."))

import numpy as np
import psutil

from detector.coco_matching import match
from detector.decode import Detections
from detector.judgement import judge
from detector.resampling import intervals, paired_difference, resamples_for, said
from tests.benchmarks.scoring import synthetic


def varied(detections: dict[int, Detections]) -> dict[int, Detections]:
    random = np.random.default_rng(1)
    found = {}
    for image_id, its in detections.items():
        scores = its.scores_N * random.uniform(0.9, 1, len(its.scores_N)).astype(np.float32)
        order = np.argsort(-scores, kind="stable")
        order = order[random.random(len(order)) > 0.05]
        found[image_id] = Detections(its.boxes_N4[order], scores[order], its.labels_N[order])
    return found


def timed(part: str, function: Callable[[], Any]) -> Any:
    wall, cpu = time.perf_counter(), time.process_time()
    result = function()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"{part}: {wall:.2f} s, {cpu:.2f} s of CPU")
    return result


def resident_mib() -> float:
    return psutil.Process().memory_info().rss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=100, help="an image")
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument(
        "--resamples", type=int, default=1000, help="0 for as many as a report draws"
    )
    parser.add_argument("--sizes", action="store_true")
    parser.add_argument("--judge", action="store_true")
    args = parser.parse_args()
    truths, first = synthetic(args.images, args.detections, args.classes)
    names = [str(k) for k in range(args.classes)]
    sets = (first, varied(first))
    print(
        f"{args.images} images with {args.detections} detections, {args.classes} classes;"
        f" {os.cpu_count()} CPUs, {platform.machine()}, numpy"
        f" {np.__version__}, load average {os.getloadavg()[0]:.1f}"
    )
    matched = timed("match", lambda: [match(truths, its, names) for its in sets])
    resamples = args.resamples or resamples_for(matched[0])
    print(f"{resamples} resamples")
    difference = timed(
        "difference", lambda: paired_difference(*matched, seed=0, resamples=resamples)
    )
    print(f"  {said(difference)}")
    if args.sizes:
        timed("intervals", lambda: intervals(matched[0], seed=0, resamples=resamples))
    if args.judge:
        before = resident_mib()
        judged = timed("judge", lambda: judge(truths, first, names, resamples=0))
        print(f"  {resident_mib() - before:.0f} MiB more for {len(judged.kept_D)} detections")


if __name__ == "__main__":
    main()
