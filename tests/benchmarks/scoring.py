"""Seconds of COCO box scoring by library, and whether each says what pycocotools says to the last
digit; in interleaved rounds, in one process.

    python tests/benchmarks/scoring.py [--images 5000 --detections 100 --classes 80 --rounds 3
    --leave-out pycocotools]

Every library gets the same columns in memory: `index` is truth into its own form, `load` the
detections into it, `score` evaluate, accumulate and summarize. `coco_table` is the whole way of
detector/metrics.py, from its truth and detections by image to the table. The last line is what a
training does for a checkpoint: that table, the thresholds of the classes, and what was detected.
Wall and CPU seconds are medians over the rounds. A library that is not installed is left out by
name; any of them can be, with `pip install hotcoco faster-coco-eval ultrafast-pycocotools`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import io
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", ".."))

import numpy as np

from cluster.runs.evaluations import Evaluation, Request
from cluster.scoring.evaluate import evaluate_checkpoint
from detector.decode import Detections
from detector.metrics import Truth, coco_table

CHECKPOINT = "evaluate_checkpoint"
LIBRARIES = {
    "pycocotools": ("pycocotools.coco", "pycocotools.cocoeval", "COCOeval"),
    "faster-coco-eval": ("faster_coco_eval", "faster_coco_eval", "COCOeval_faster"),
    "ultrafast-pycocotools": ("ultrafast_pycocotools", "ultrafast_pycocotools", "COCOeval"),
    "hotcoco": ("hotcoco", "hotcoco", "COCOeval"),
}
"""Distribution -> module of `COCO`, module of the evaluation, its name."""


def synthetic(
    images: int, per_image: int, classes: int, seed: int = 0
) -> tuple[list[Truth], dict[int, Detections]]:
    """About 7.3 objects an image as in COCO, 3 % of them crowds, log-uniform sides from 6 to 400
    px; half of the detections are objects moved by some pixels, the others lie anywhere. Scores in
    steps of 1/1000, so that many tie.
    """
    random = np.random.default_rng(seed)
    truths, detections = [], {}
    for image_id in range(1, images + 1):
        count = int(random.poisson(7.3))
        sides = np.exp(random.uniform(np.log(6), np.log(400), (count, 2)))
        corners = random.uniform(0, 1, (count, 2)) * [560, 400]
        boxes = np.concatenate([corners, corners + sides], axis=1).astype(np.float32)
        labels = random.integers(0, classes, count)
        area = sides.prod(axis=1) * random.uniform(0.5, 1, count)
        truths.append(Truth(image_id, 480, 640, boxes, labels, random.random(count) < 0.03, area))
        copies = random.integers(0, count, per_image // 2 if count else 0)
        moved = boxes[copies] + random.normal(0, 0.06, (len(copies), 4)) * np.repeat(
            sides[copies], 2, axis=1
        )
        strays = per_image - len(copies)
        corner = random.uniform(0, 1, (strays, 2)) * [560, 400]
        every = np.concatenate(
            [
                moved,
                np.concatenate(
                    [corner, corner + np.exp(random.uniform(2, 6, (strays, 2)))], axis=1
                ),
            ]
        ).astype(np.float32)
        every[:, 2:] = np.maximum(every[:, 2:], every[:, :2] + 1)
        named = np.concatenate(
            [
                np.where(random.random(len(copies)) < 0.85, labels[copies], 0),
                random.integers(0, classes, strays),
            ]
        )
        scores = np.sort(np.round(random.random(per_image), 3)).astype(np.float32)[::-1].copy()
        order = random.permutation(per_image)
        detections[image_id] = Detections(every[order], scores, named[order].astype(np.int64))
    return truths, detections


def columns(truths: list[Truth], detections: dict[int, Detections], classes: int) -> dict[str, Any]:
    """What every library is given: lists of images and categories, columns of annotations, and
    detections as (N, 7) float64.
    """

    def xywh(boxes: np.ndarray) -> np.ndarray:
        return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).astype(
            np.float64
        )

    rows = [
        np.column_stack(
            [np.full(len(d.scores_N), i, np.float64), xywh(d.boxes_N4), d.scores_N, d.labels_N + 1]
        )
        for i, d in detections.items()
    ]
    return {
        "images": [{"id": t.image_id, "height": t.height, "width": t.width} for t in truths],
        "categories": [{"id": k + 1, "name": str(k)} for k in range(classes)],
        "image_ids": np.concatenate([np.full(len(t.labels_N), t.image_id) for t in truths]),
        "category_ids": np.concatenate([t.labels_N for t in truths]) + 1,
        "boxes": np.concatenate([xywh(t.boxes_N4) for t in truths]),
        "area": np.concatenate([t.area_N for t in truths]).astype(np.float64),
        "iscrowd": np.concatenate([t.crowd_N for t in truths]),
        "detections": np.concatenate(rows),
    }


def as_dictionaries(given: dict[str, Any]) -> dict[str, Any]:
    names = ("image_ids", "category_ids", "boxes", "area", "iscrowd")
    annotations = [
        {
            "id": n,
            "image_id": image,
            "category_id": category,
            "bbox": box,
            "area": area,
            "iscrowd": int(crowd),
        }
        for n, (image, category, box, area, crowd) in enumerate(
            zip(*(given[name].tolist() for name in names), strict=True), 1
        )
    ]
    return {
        "images": given["images"],
        "categories": given["categories"],
        "annotations": annotations,
    }


def from_dictionaries(index_of: Any, given: dict[str, Any]) -> Any:
    index = index_of()
    index.dataset = as_dictionaries(given)
    index.createIndex()
    return index


def from_columns(index_of: Any, given: dict[str, Any]) -> Any:
    names = ("images", "categories", "image_ids", "category_ids", "boxes")
    ids = np.arange(1, len(given["boxes"]) + 1)
    return index_of.from_arrays(
        *(given[name] for name in names), ids=ids, area=given["area"], iscrowd=given["iscrowd"]
    )


def loaded(name: str) -> tuple[Any, Any] | None:
    """The classes of index and evaluation, or None where the library is not installed."""
    of_index, of_evaluation, evaluation = LIBRARIES[name]
    try:
        return importlib.import_module(of_index).COCO, getattr(
            importlib.import_module(of_evaluation), evaluation
        )
    except ImportError:
        print(f"{name} is not installed: left out")
        return None


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float, float]:
    """(result, wall seconds, CPU seconds of the process)"""
    wall, cpu = time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        result = function(*arguments)
    return result, time.perf_counter() - wall, time.process_time() - cpu


def score(
    library: tuple[Any, Any], given: dict[str, Any]
) -> tuple[dict[str, tuple[float, float]], Any]:
    """Seconds by part, and the evaluation."""
    index_of, evaluation_of = library

    def evaluate(truth: Any, found: Any) -> Any:
        evaluation = evaluation_of(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        return evaluation

    truth, *indexing = timed(
        from_columns if hasattr(index_of, "from_arrays") else from_dictionaries, index_of, given
    )
    found, *loading = timed(truth.loadRes, given["detections"].copy())
    evaluation, *scoring = timed(evaluate, truth, found)
    return {"index": tuple(indexing), "load": tuple(loading), "score": tuple(scoring)}, evaluation


def differences(evaluation: Any, reference: Any) -> str:
    """Which of the arrays differ from the reference's in any bit, and by how much at most."""
    found = []
    for name in ("precision", "recall", "scores"):
        ours, theirs = np.asarray(evaluation.eval[name]), np.asarray(reference.eval[name])
        ours = ours.reshape(theirs.shape) if ours.size == theirs.size else ours
        if not np.array_equal(ours, theirs):
            by = (
                f"{np.abs(ours - theirs).max():.1e}"
                if ours.shape == theirs.shape
                else f"shape {ours.shape}"
            )
            found.append(f"{name} ({by})")
    ours, theirs = np.asarray(evaluation.stats)[:12], np.asarray(reference.stats)
    if not np.array_equal(ours, theirs):
        found.append(f"stats ({np.abs(ours - theirs).max():.1e})")
    return ", ".join(found) or "none"


def of_checkpoint(
    truths: list[Truth], detections: dict[int, Detections], classes: int
) -> Evaluation:
    names = [str(k) for k in range(classes)]
    request = Request("", 0, 1)
    return evaluate_checkpoint(request, "model", detections, truths, names, frequencies={})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=100, help="an image")
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--leave-out", nargs="*", default=[], choices=list(LIBRARIES))
    args = parser.parse_args()
    truths, detections = synthetic(args.images, args.detections, args.classes)
    given = columns(truths, detections, args.classes)
    print(
        f"{args.images} images, {len(given['boxes'])} objects, {len(given['detections'])}"
        f" detections, {args.classes} classes;"
    )
    machine = (
        f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}, numpy"
        f" {np.__version__}"
    )
    print(f"{machine}; load average {os.getloadavg()[0]:.1f}\n")
    libraries = {
        name: library
        for name in LIBRARIES
        if name not in args.leave_out and (library := loaded(name)) is not None
    }
    seconds: dict[str, list[dict[str, tuple[float, float]]]] = {
        name: [] for name in [*libraries, "coco_table", CHECKPOINT]
    }
    evaluations = {}
    for _ in range(args.rounds):
        for name, library in libraries.items():
            parts, evaluations[name] = score(library, given)
            seconds[name].append(parts)
        table, *whole = timed(coco_table, truths, detections, [str(k) for k in range(args.classes)])
        seconds["coco_table"].append({"whole": tuple(whole)})
        _, *whole = timed(of_checkpoint, truths, detections, args.classes)
        seconds[CHECKPOINT].append({"whole": tuple(whole)})
    reference = evaluations.get("pycocotools")
    print(
        "| | version | index s wall / CPU | load | score | whole | differs from pycocotools"
        " |\n|---|---|---|---|---|---|---|"
    )
    for name, rounds in seconds.items():
        medians = {
            part: tuple(statistics.median(r[part][i] for r in rounds) for i in (0, 1))
            for part in rounds[0]
        }
        whole = tuple(sum(pair[i] for pair in medians.values()) for i in (0, 1))
        cells = [
            f"{wall:.3f} / {cpu:.3f}"
            for wall, cpu in (
                *(medians.get(part, (0, 0)) for part in ("index", "load", "score")),
                whole,
            )
        ]
        if name not in libraries:
            cells[:3] = ["", "", ""]
        version = importlib.metadata.version(name) if name in libraries else ""
        exact = "not compared"
        if reference is not None and name in libraries:
            exact = differences(evaluations[name], reference)
        elif name == "coco_table" and reference is not None:
            exact = (
                "none"
                if np.array_equal(
                    [-1 if v is None else v for v in table.summary.values()], reference.stats
                )
                else "stats"
            )
        print(f"| {name} | {version} | {' | '.join(cells)} | {exact} |")


if __name__ == "__main__":
    main()
