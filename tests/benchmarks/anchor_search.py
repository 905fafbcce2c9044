"""Seconds and CPU seconds of a search for anchors on a set of the size of COCO.

    python tests/benchmarks/anchor_search.py [--boxes 860000 --candidates 10000 --confirm 5 --cpus 2
    --picture anchors.png]

Writes a shard set with boxes like those of COCO (118k pictures of one byte) into a temporary
folder, connects to a Ray with so many CPUs (0: none, all in this process), and searches from the
paper's anchors on the default canvas, as `tune.anchors.search_anchors` does it: reading the box
columns, sampling, searching, and confirming on all boxes. CPU seconds are those of this process and
of the tasks' processes, without Ray's own.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, ROOT)

from cluster.shards.index import open_shard_set  # noqa: E402
from detector.image_config import CanvasConfig  # noqa: E402
from detector.model_config import AnchorConfig  # noqa: E402
from tests.support.box_sets import annotations, coco_like, write_annotations  # noqa: E402
from tune.anchor_report import picture, recipe, table  # noqa: E402
from tune.anchor_tasks import over_ray  # noqa: E402
from tune.anchors import Part, Result, in_process, search_anchors  # noqa: E402

TASK_SECONDS: list[float] = []


def timed(function, parts: list[Part]) -> list[Result]:
    """`over_ray` that also adds up the CPU seconds of the tasks."""

    def call(part: Part) -> tuple[Result, float]:
        begin = time.process_time()
        return function(part), time.process_time() - begin

    results = over_ray(call, parts)
    TASK_SECONDS.extend(seconds for _, seconds in results)
    return [result for result, _ in results]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--boxes", type=int, default=860_000)
    parser.add_argument("--candidates", type=int, default=10_000)
    parser.add_argument("--confirm", type=int, default=5)
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--picture", type=Path, help="write the picture of the result here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        objects = annotations(coco_like(options.boxes), per_image=7)
        write_annotations(folder, objects, shards=16)
        if options.cpus:
            import ray

            ray.init(num_cpus=options.cpus, include_dashboard=False, log_to_driver=False)
        begin, used = time.perf_counter(), time.process_time()
        found = search_anchors(
            shard_set=open_shard_set(folder),
            canvas=CanvasConfig(),
            anchors=AnchorConfig(),
            candidates=options.candidates,
            confirm=options.confirm,
            spread=timed if options.cpus else in_process,
        )
        seconds, used = time.perf_counter() - begin, time.process_time() - used
    print(
        f"{found.tried} candidates on {sum(found.given.whole.objects):,} boxes,"
        f" {len(found.confirmed)} confirmed: {seconds:.1f} s, {used + sum(TASK_SECONDS):.1f} CPU s"
        f" ({sum(TASK_SECONDS):.1f} in {len(TASK_SECONDS)} tasks), load {os.getloadavg()[0]:.1f}"
    )
    for one in found.confirmed:
        print(
            f"{len(one.anchors.scales)} x {len(one.anchors.ratios)}: score"
            f" {one.score(found.price):.4f}, recall {one.whole.recall:.4f} (sample"
            f" {one.sample.recall:.4f}), mean IoU {one.whole.mean_iou:.4f}"
        )
    print(table(found), recipe(found, data="boxes like COCO's"), sep="\n")
    if options.picture:
        options.picture.write_bytes(picture(found))


if __name__ == "__main__":
    main()
