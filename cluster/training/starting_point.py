"""The settings of a first training, chosen from its pictures, its boxes and the machine, each with
its reason. What the user has given stays; `automatic` decides what depends on the cluster.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.reports.anchor_fit import BACKGROUND_BELOW, View, best_iou_of_objects
from cluster.runs.config import TrainSections
from cluster.runs.training_config import Auto
from cluster.shards.statistics import Annotations
from detector.canvas_fit import fit_canvas
from detector.image_config import DEFAULT_CANVAS, CanvasConfig
from detector.model_config import AnchorConfig

SHORT_SIDES = (320, 480, 640, DEFAULT_CANVAS[0])
"""px of the canvas on a machine without GPUs. With the first a ResNet-18 of 128 channels trains 2
to 4 images/s on two cores.
"""
SMALL_OBJECT = 16
"""px on the canvas, two positions of P3: objects below it are hard to find."""
FEW_SMALL = 0.1
"""Share of the objects that may be smaller."""
AS_GOOD = 0.02
"""A share of unfit objects that is larger by less than this is as good."""
MANY_IMAGES = 5000
"""From so many on a larger network is worth its time on a GPU."""
IMAGES_OF_A_CORE, IMAGES_ON_GPU = 1000, 20_000
"""Images that a training sees at least; more cores than 20 see no more. BCCD
(205 images, three classes) had AP50 0.847 after 1,025 and 0.875 after 2,050 images.
"""
FEWEST_EPOCHS_ON_CPU, FEWEST_EPOCHS_ON_GPU, MOST_EPOCHS = 3, 12, 100
USUAL_EPOCHS_ON_CPU, MOST_IMAGES_OF_A_CORE = 10, 5000
"""Ten epochs, as long as these are not more images than that."""
BATCH_ON_CPU, BATCH_PER_GPU, LARGE_GPU_GIB = 4, 8, 15.0
"""A GPU with less memory takes half."""
RATE_OF_ONE, MOST_RATE = 0.0004, 0.001
"""AdamW's learning rate for a batch of one image; it grows with the root of the batch."""


@dataclass(frozen=True)
class Material:
    """What is trained on: the number of images and classes, and a sample of the objects."""

    images: int
    classes: int
    sample: Annotations


@dataclass(frozen=True)
class Machine:
    """All machines together, but the memory of one GPU."""

    cores: int
    gpus: int = 0
    gpu_gib: float = 0.0


@dataclass(frozen=True)
class Chosen:
    """One decision: the fields by section, what was decided, why, and the flags that change it."""

    fields: dict[str, dict[str, Any]]
    said: str
    reason: str
    flags: str

    def line(self) -> str:
        verb = "change" if " and " in self.flags else "changes"
        return f"{self.said}: {self.reason} ({self.flags} {verb} it)"


def choose_start(
    material: Material, machine: Machine, settings: TrainSections, given: Collection[str]
) -> tuple[Chosen, ...]:
    """Every decision, in an order in which each needs only those before it. `given` are the names
    of the options that the user has set in the `settings`: what they decide is not decided here.
    """
    decisions, canvas = list[Chosen](), settings.canvas
    if settings.from_checkpoint is None:
        decisions.append(_network(material, machine, settings))
    if not canvas.is_given:
        canvas, decision = _canvas(material.sample, machine)
        decisions.append(decision)
    has_anchors = settings.model.architecture == "retinanet"
    starts_there = settings.pretrained or settings.from_checkpoint
    if has_anchors and not starts_there and not _any_of("model.anchors", given):
        decisions += _anchors(material.sample, canvas)
    batch = settings.training.batch_size
    if "training.batch_size" not in given:
        batch, decision = _batch(material, machine, settings.training.workers)
        decisions.append(decision)
    if "training.amp" not in given:
        reason = "bfloat16 for the network, if that is faster on every device"
        decisions.append(Chosen({}, "training.amp true", reason, "--training.amp"))
    if not _any_of("optimizer", given):
        decisions.append(_optimizer(batch, settings))
    if not _any_of("augmentation", given):
        decisions.append(_augmentation())
    if "training.epochs" in given:
        return (*decisions, of_epochs(settings.training.epochs, "as given"))
    return (*decisions, _epochs(material, machine))


def _any_of(section: str, given: Collection[str]) -> bool:
    return any(name == section or name.startswith(f"{section}.") for name in given)


def _network(material: Material, machine: Machine, settings: TrainSections) -> Chosen:
    flags = "--model.backbone and --model.width"
    if settings.pretrained is not None:
        fine = {"backbone": "resnet50", "norm": "frozen", "frozen_stages": 2}
        said = "model resnet50, 256 channels, its first stages fixed"
        return Chosen({"model": fine}, said, "usual for the weights of --pretrained", flags)
    small: dict[str, Any] = {"backbone": "resnet18", "norm": "batch", "width": 128}
    if settings.model.architecture == "retinanet":
        small["head_norm"] = "group"
    why = "random weights at the start; --pretrained FILE gives trained ones"
    if machine.gpus and material.images >= MANY_IMAGES:
        large = {**small, "backbone": "resnet50", "width": 256}
        reason = f"{material.images} images and a GPU; {why}"
        return Chosen({"model": large}, "model resnet50, 256 channels", reason, flags)
    reason = "no GPU" if not machine.gpus else f"{material.images} images are few"
    return Chosen({"model": small}, "model resnet18, 128 channels", f"{reason}; {why}", flags)


def _canvas(sample: Annotations, machine: Machine) -> tuple[CanvasConfig, Chosen]:
    """That of `fit_canvas`; without a GPU the smallest on which few objects are small."""
    short_sides = SHORT_SIDES[-1:] if machine.gpus else SHORT_SIDES
    tried = [
        fit_canvas(sample.heights_I, sample.widths_I, short_side=short) for short in short_sides
    ]
    enough = (one for one in tried if _small_side(sample, one) >= SMALL_OBJECT)
    canvas = next(enough, tried[-1])
    height, width = _most_frequent(sample)
    reason = f"most pictures are {height}x{width} px"
    if len(sample.labels_N):
        reason += (
            f", and nine of ten objects are larger than {_small_side(sample, canvas):.0f} px on it"
        )
    shown = " and ".join(f"{height}x{width}" for height, width in canvas.canvases)
    fields = canvas.model_dump(exclude_defaults=True)
    flags = "--canvas.height and --canvas.width"
    return canvas, Chosen({"canvas": fields}, f"canvas {shown}", reason, flags)


def _small_side(sample: Annotations, canvas: CanvasConfig) -> float:
    """px on the canvas: the root of the area that few objects are below."""
    placed_N4 = View(canvas, AnchorConfig()).place(sample).boxes(sample)
    sides_N = np.sqrt((placed_N4[:, 2:] - placed_N4[:, :2]).prod(axis=1))
    return float(np.quantile(sides_N, FEW_SMALL)) if len(sides_N) else math.inf


def _most_frequent(sample: Annotations) -> tuple[int, int]:
    sizes_I2 = np.stack([sample.heights_I, sample.widths_I], axis=1)
    sizes, counts = np.unique(sizes_I2, axis=0, return_counts=True)
    height, width = sizes[counts.argmax()].tolist()
    return height, width


def _anchors(sample: Annotations, canvas: CanvasConfig) -> Iterator[Chosen]:
    """The first of some sets of anchors that leaves about as few objects without one as any."""
    usual = AnchorConfig()
    if not len(sample.labels_N):
        return
    wide = (0.4 * min(usual.ratios), *usual.ratios, 2.5 * max(usual.ratios))
    tried = [
        AnchorConfig(base_sizes=tuple(size * factor for size in usual.base_sizes), ratios=ratios)
        for ratios in (usual.ratios, wide)
        for factor in (1.0, 0.5, 0.25, 2.0)
    ]
    unfit = [
        float((best_iou_of_objects(sample, View(canvas, anchors)) < BACKGROUND_BELOW).mean())
        for anchors in tried
    ]
    number = next(i for i, share in enumerate(unfit) if share <= min(unfit) + AS_GOOD)
    anchors = tried[number]
    fields = anchors.model_dump(include={"base_sizes", "ratios"})
    yield Chosen(
        {"model": {"anchors": fields}},
        f"anchors of {_listed(anchors.base_sizes)} px, height / width {_listed(anchors.ratios)}",
        f"{1 - unfit[number]:.1%} of the objects have one with an IoU of {BACKGROUND_BELOW:g}",
        "--model.anchors.base_sizes and --model.anchors.ratios",
    )


def _listed(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)


def _batch(material: Material, machine: Machine, workers: int | Auto) -> tuple[int, Chosen]:
    each = BATCH_PER_GPU if machine.gpu_gib >= LARGE_GPU_GIB else BATCH_PER_GPU // 2
    batch = each * machine.gpus if machine.gpus else BATCH_ON_CPU
    reason = f"{each} for each GPU" if machine.gpus else "small batches learn most from few images"
    # Ten updates an epoch at least, and two images: batch normalisation needs them.
    most = max(2, material.images // 10)
    if batch > most:
        batch, reason = most, f"ten updates or more for each pass over {material.images} images"
    if workers != "auto" and batch % workers:
        batch += workers - batch % workers
        reason = f"{reason}, in equal parts for {workers} workers"
    fields = {"training": {"batch_size": batch}}
    return batch, Chosen(fields, f"training.batch_size {batch}", reason, "--training.batch_size")


def _optimizer(batch: int, settings: TrainSections) -> Chosen:
    flags = "--optimizer.learning_rate"
    if settings.pretrained is not None:
        rate = 0.01 * batch / 16
        fields = {"name": "sgd", "learning_rate": rate}
        return Chosen(
            {"optimizer": fields}, f"sgd with rate {rate:g}", "usual for fine-tuning", flags
        )
    rate = float(f"{min(MOST_RATE, RATE_OF_ONE * math.sqrt(batch)):.2g}")
    fields = {"name": "adamw", "learning_rate": rate, "weight_decay": 0.01, "clip_norm": 5.0}
    return Chosen(
        {"optimizer": {**fields, "ema_images": 300.0}},
        f"adamw with rate {rate:g}",
        f"for batches of {batch}; the weights are averaged over 300 images",
        flags,
    )


def _augmentation() -> Chosen:
    return Chosen(
        {"augmentation": {"flip": 0.5, "scale_min": 0.9, "scale_max": 1.1}},
        "flips left to right and sizes of 0.9 to 1.1",
        "objects may look so too, and a short training has no time for more",
        "--augmentation.flip and --augmentation.scale_min",
    )


def _epochs(material: Material, machine: Machine) -> Chosen:
    images = max(1, material.images)
    if machine.gpus:
        epochs = max(FEWEST_EPOCHS_ON_GPU, math.ceil(IMAGES_ON_GPU / images))
    else:
        least = min(IMAGES_ON_GPU, IMAGES_OF_A_CORE * machine.cores)
        usual = min(USUAL_EPOCHS_ON_CPU, MOST_IMAGES_OF_A_CORE * machine.cores // images)
        epochs = max(FEWEST_EPOCHS_ON_CPU, usual, math.ceil(least / images))
    epochs = min(MOST_EPOCHS, epochs)
    reason = f"{epochs * images} images are seen in all"
    return of_epochs(epochs, reason)


def of_epochs(epochs: int, reason: str) -> Chosen:
    """Also evaluates four times in a training."""
    fields = {"epochs": epochs, "evaluate_every": math.ceil(epochs / 4)}
    return Chosen({"training": fields}, f"training.epochs {epochs}", reason, "--training.epochs")


def fields_of(decisions: Sequence[Chosen]) -> dict[str, Any]:
    """All fields by section, as a YAML file has them."""
    sections: dict[str, Any] = {}
    for decision in decisions:
        for name, fields in decision.fields.items():
            sections[name] = {**sections.get(name, {}), **fields}
    return sections
