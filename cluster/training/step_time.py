"""How long a training takes for an image on this machine, measured by a few steps before it."""

from __future__ import annotations

import math
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from cluster.runs.config import TrainSections
from detector.batch import Batch
from detector.choices import LossSettings

WARM, STEPS = 2, 4
"""Steps before those that are measured: the first ones allocate memory."""
BESIDE = 1.25
"""Reading, exchange between workers, evaluations and checkpoints, as a factor of the steps."""
OBJECTS = 16
"""Of each image; their number hardly changes the time."""


def seconds_per_image(settings: TrainSections, *, classes: int, gpus: int) -> float:
    """Seconds of the whole machine for an image, in training and all beside it. The step is run in
    a process of its own, so that this one keeps neither its memory nor its threads.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return BESIDE * pool.submit(_measure, settings, classes, gpus).result()


def epochs_within(minutes: float, *, images: int, seconds_each: float) -> int:
    """The passes over so many images that the minutes allow; at least one."""
    return max(1, math.floor(60 * minutes / (images * seconds_each)))


def _measure(settings: TrainSections, classes: int, gpus: int) -> float:
    import torch

    from detector.anchors import anchor_grid
    from detector.baselines import build_model
    from detector.optimizer import build_optimizer
    from detector.precision import autocast_dtype
    from detector.step import train_step

    device = torch.device("cuda" if gpus else "cpu")
    model_settings, chosen = settings.model, settings.optimizer
    anchors = model_settings.anchors.model_dump()
    model = build_model(
        classes=classes, **model_settings.model_dump(exclude={"anchors"}), **anchors
    )
    # torch's stubs do not know memory_format.
    model.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = build_optimizer(
        model,
        name=chosen.name,
        learning_rate=chosen.learning_rate,
        weight_decay=chosen.weight_decay,
        momentum=chosen.momentum,
    )
    height, width = settings.canvas.canvases[0]
    share = max(1, settings.training.batch_size // max(1, gpus))
    batch = _batch(share, height, width).to(device)
    grid = torch.cat(anchor_grid(height, width, **anchors)).to(device)
    started = 0.0
    for step in range(WARM + STEPS):
        if step == WARM:
            started = time.perf_counter()
        report = train_step(
            model,
            optimizer,
            batch,
            grid,
            loss=LossSettings(**settings.loss.model_dump()),
            learning_rate=chosen.learning_rate / 1000,
            clip_norm=chosen.clip_norm,
            amp_dtype=autocast_dtype(device, amp=settings.training.amp),
        )
        report.read()  # A GPU has finished the step.
    return (time.perf_counter() - started) / (STEPS * share * max(1, gpus))


def _batch(images: int, height: int, width: int) -> Batch:
    """Grey noise with objects of the first class, of half the canvas down to an eighth."""
    import torch

    generator = torch.Generator().manual_seed(0)
    sides_G2 = torch.linspace(0.125, 0.5, OBJECTS)[:, None] * torch.tensor([width, height])
    corners_G2 = torch.rand(OBJECTS, 2, generator=generator) * (
        torch.tensor([width, height]) - sides_G2
    )
    boxes_G4 = torch.cat([corners_G2, corners_G2 + sides_G2], dim=1)
    pixels = torch.randint(
        0, 256, (images, 3, height, width), dtype=torch.uint8, generator=generator
    )
    return Batch(
        pixels.contiguous(memory_format=torch.channels_last),
        boxes_G4.repeat(images, 1, 1),
        torch.zeros(images, OBJECTS, dtype=torch.long),
        torch.tensor([[height, width]] * images, dtype=torch.float32),
        torch.arange(images),
        torch.zeros(images, dtype=torch.bool),
    )
