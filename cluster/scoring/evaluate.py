"""Detections and the truth of a set -> named numbers, by a tuple of metrics: the one evaluation of
training (between epochs and beside it) and of the verb `evaluate`.

A metric is a plain function of detections (by image id; an image without any may be missing),
truths (one for each image, crowds among its objects) and class names (the label is the place in
them). A new one is added to `METRICS`, where all of them see it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from cluster.runs.evaluations import Evaluation, Request, Weights
from cluster.runs.pictures import ExampleImage
from cluster.shards.format import FREQUENCIES
from detector.decode import Detections
from detector.detection_counts import DetectionCounts, count_detections
from detector.metrics import CocoTable, Truth, coco_table, mean
from detector.operating_points import f1_thresholds
from detector.scores import score
from detector.voc_metrics import NAMES, voc_average_precisions


@dataclass(frozen=True)
class MetricResult:
    """The numbers of one metric; None stands for a number without objects to count, and so do -1
    and NaN, see `detector.scores`.
    """

    summary: Mapping[str, float | None]
    """Name -> number over all classes."""
    per_class: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    """Class name -> name -> number; may be empty."""
    precision_RK: np.ndarray | None = None
    """The curves to draw, see `CocoTable`; None where the metric has none."""


Metric = Callable[[Mapping[int, Detections], Sequence[Truth], Sequence[str]], MetricResult]


def coco(
    detections: Mapping[int, Detections],
    truths: Sequence[Truth],
    class_names: Sequence[str],
    *,
    limits: Sequence[int] = (1, 10, 100),
    frequencies: Mapping[str, str] | None = None,
) -> MetricResult:
    """COCO's AP and AR. `limits`: detections of an image and class that count, an AR for each.
    `frequencies` by class name add LVIS's AP of each.
    """
    table = coco_table(truths, detections, class_names, max_detections=limits)
    summary = table.summary | _by_frequency(table.per_class, frequencies or {})
    return MetricResult(summary, table.per_class, table.precision_RK)


def _by_frequency(
    per_class: Mapping[str, Mapping[str, float | None]], frequencies: Mapping[str, str]
) -> dict[str, float | None]:
    """AP_r, AP_c, AP_f: the mean AP of the rare, common and frequent classes that have objects
    (Gupta et al., LVIS, CVPR 2019). Nothing without frequencies.
    """
    found: dict[str, float | None] = {}
    for frequency in FREQUENCIES if frequencies else ():
        of_these = [
            row["AP"] for name, row in per_class.items() if frequencies.get(name) == frequency
        ]
        found[f"AP_{frequency}"] = mean(np.array([ap for ap in of_these if ap is not None]))
    return found


def voc(
    detections: Mapping[int, Detections], truths: Sequence[Truth], class_names: Sequence[str]
) -> MetricResult:
    """PASCAL VOC's AP at IoU 0.5, by the rule of 2010 and by that of 2007."""
    precisions_K2 = voc_average_precisions(truths, detections, class_names)
    means = {name: mean(column) for name, column in zip(NAMES, precisions_K2.T, strict=True)}
    per_class: dict[str, dict[str, float | None]] = {
        name: dict(zip(NAMES, precisions_2.tolist(), strict=True))
        for name, precisions_2 in zip(class_names, precisions_K2, strict=True)
    }
    return MetricResult(means, per_class)


EXAMPLES = 6
"""Images of an evaluation that its training shows."""
METRICS: tuple[Metric, ...] = (coco,)
"""What every evaluation computes; the verb `evaluate` computes `voc` too."""


def metrics_of(
    frequencies: Mapping[str, str], *, limits: Sequence[int] = (1, 10, 100)
) -> list[Metric]:
    """`METRICS` for a set whose classes have these `frequencies`, see `coco`."""
    of_set = partial(coco, limits=limits, frequencies=frequencies)
    return [of_set if metric is coco else metric for metric in METRICS]


def evaluate_detections(
    detections: Mapping[int, Detections],
    truths: Sequence[Truth],
    class_names: Sequence[str],
    metrics: Sequence[Metric],
) -> CocoTable:
    """One table with the numbers of all metrics. Raises `ValueError` for detections of an image
    without a truth, and for a label out of range.
    """
    summary: dict[str, float | None] = {}
    per_class: dict[str, dict[str, float | None]] = {name: {} for name in class_names}
    precision_RK = np.full((101, len(class_names)), -1.0)
    for metric in metrics:
        result = metric(detections, truths, class_names)
        if taken := summary.keys() & result.summary.keys():
            raise ValueError(f"two metrics give {', '.join(sorted(taken))}; rename one of them")
        # MLflow and JSON take floats; a metric may count, or compute with NumPy.
        summary |= {name: score(value) for name, value in result.summary.items()}
        for name, numbers in result.per_class.items():
            per_class[name] |= {key: score(value) for key, value in numbers.items()}
        if result.precision_RK is not None:
            precision_RK = result.precision_RK
    count = sum(len(each.scores_N) for each in detections.values())
    return CocoTable(summary, per_class, precision_RK, len(truths), count)


def evaluate_checkpoint(
    request: Request,
    weights: Weights,
    detections: Mapping[int, Detections],
    truths: Sequence[Truth],
    class_names: Sequence[str],
    *,
    frequencies: Mapping[str, str],
    seconds: float | None = None,
) -> Evaluation:
    """The evaluation of a checkpoint of a run whose `weights` gave these detections, in so many
    seconds of wall time.
    """
    table = evaluate_detections(detections, truths, class_names, metrics_of(frequencies))
    return Evaluation(
        request.checkpoint,
        request.images_seen,
        request.epoch,
        weights=weights,
        metrics=table.summary,
        per_class={name: numbers["AP"] for name, numbers in table.per_class.items()},
        images_evaluated=table.images,
        seconds=seconds,
        detected=counted(detections, truths, class_names),
        thresholds=f1_thresholds(truths, detections, class_names),
        examples=examples_of(detections, truths),
    )


def examples_of(
    detections: Mapping[int, Detections], truths: Sequence[Truth]
) -> tuple[ExampleImage, ...]:
    """`EXAMPLES` images, spread evenly over those with objects, in the order of the set; where
    fewer have objects, others too. The same for the same truths.
    """
    with_objects = [truth for truth in truths if len(truth.boxes_N4)]
    without = [truth for truth in truths if not len(truth.boxes_N4)]
    candidates = with_objects + without[: max(0, EXAMPLES - len(with_objects))]
    places = np.unique(np.linspace(0, len(candidates) - 1, min(EXAMPLES, len(candidates))).round())
    nothing = Detections(np.empty((0, 4), np.float32), np.empty(0), np.empty(0, np.int64))
    examples = []
    for place in places.astype(int):
        truth = candidates[place]
        found = detections.get(truth.image_id, nothing)
        examples.append(
            ExampleImage(
                truth.image_id, truth.boxes_N4, found.boxes_N4, found.scores_N, found.labels_N
            )
        )
    return tuple(examples)


def counted(
    detections: Mapping[int, Detections], truths: Sequence[Truth], class_names: Sequence[str]
) -> DetectionCounts:
    """What was detected, hit or not: later predictions are compared with it."""
    found = [detections.get(truth.image_id) for truth in truths]
    with_some = [each for each in found if each is not None]
    return count_detections(
        class_names,
        image_N=np.repeat(
            np.arange(len(truths)), [0 if each is None else len(each.labels_N) for each in found]
        ),
        labels_N=np.concatenate([np.empty(0, np.int64), *(each.labels_N for each in with_some)]),
        scores_N=np.concatenate([np.empty(0), *(each.scores_N for each in with_some)]),
        heights_I=np.array([truth.height for truth in truths]),
        widths_I=np.array([truth.width for truth in truths]),
    )
