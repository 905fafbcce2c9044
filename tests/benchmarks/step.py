"""Images/s of one training step on in-memory data: ours beside torchvision's RetinaNet, same network size, images, dtype and layout, interleaved.

    python tests/benchmarks/step.py [--backbone resnet18 --height 320 --width 448 --batch 4 --classes 3 --threads 2 --rounds 7]

Prints a Markdown table: median, minimum and maximum images/s over the rounds, and the ratio of the medians to torchvision in bfloat16.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", ".."))

import torch
import torchvision
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from detector.batch import Batch
from detector.model import RetinaNet
from detector.optimizer import build_optimizer
from detector.step import train_step


def random_batch(*, batch: int, height: int, width: int, classes: int, objects: int = 14) -> Batch:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(batch, objects, 2, generator=generator) * torch.tensor([width - 90.0, height - 90.0])
    sides = 20 + 60 * torch.rand(batch, objects, 2, generator=generator)
    boxes, labels = torch.zeros(batch, 16, 4), torch.full((batch, 16), -1)
    boxes[:, :objects] = torch.cat([corners, corners + sides], dim=2)
    labels[:, :objects] = torch.randint(0, classes, (batch, objects), generator=generator)
    images = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8, generator=generator).contiguous(memory_format=torch.channels_last)
    sizes = torch.tensor([[height, width]] * batch, dtype=torch.float32)
    return Batch(images, boxes, labels, sizes, torch.arange(batch), torch.zeros(batch, dtype=torch.bool))


def our_step(batch: Batch, *, backbone: str, classes: int, amp: bool, width: int = 256, head_norm: str = "none") -> Callable[..., None]:
    model = RetinaNet(classes=classes, backbone=backbone, width=width, head_norm=head_norm, p6_from="p5").train()
    model = model.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(model, name="adamw", learning_rate=1e-4, weight_decay=1e-4, momentum=0.9)
    anchors = torch.cat(model.anchors(*batch.images.shape[2:]))

    def step(batch: Batch = batch) -> None:
        train_step(
            model,
            optimizer,
            batch,
            anchors,
            learning_rate=1e-4,
            clip_norm=10.0,
            box_weight=1.0,
            gamma=2.0,
            alpha=0.25,
            beta=1 / 9,
            amp_dtype=torch.bfloat16 if amp else None,
        )

    return step


def torchvision_step(batch: Batch, *, backbone: str, classes: int, amp: bool, channels_last: bool) -> Callable[[], None]:
    height, width = batch.images.shape[2:]
    body = resnet_fpn_backbone(
        backbone_name=backbone,
        weights=None,
        norm_layer=torch.nn.BatchNorm2d,
        trainable_layers=5,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
    )
    model = torchvision.models.detection.RetinaNet(body, num_classes=classes, min_size=min(height, width), max_size=max(height, width)).train()
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    images = [image.float() / 255 for image in batch.images]
    targets = [{"boxes": b[k >= 0], "labels": k[k >= 0]} for b, k in zip(batch.boxes_BG4, batch.labels_BG, strict=True)]

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
            losses = model(images, targets)
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--height", type=int, default=320)
    parser.add_argument("--width", type=int, default=448)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--classes", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    batch = random_batch(batch=options.batch, height=options.height, width=options.width, classes=options.classes)
    common = dict(backbone=options.backbone, classes=options.classes)
    steps = {
        "ours, bf16": our_step(batch, amp=True, **common),
        "torchvision, bf16, channels-last": torchvision_step(batch, amp=True, channels_last=True, **common),
        "torchvision, fp32": torchvision_step(batch, amp=False, channels_last=False, **common),
    }
    rates: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for _ in range(options.rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            rates[name].append(options.batch / (time.perf_counter() - start))
    reference = statistics.median(rates["torchvision, bf16, channels-last"])
    print(
        f"{options.backbone}, {options.classes} classes, {options.batch} x {options.height}x{options.width}, {options.threads} threads, "
        f"torch {torch.__version__}, "
        f"torchvision {torchvision.__version__}, {platform.processor() or platform.machine()}, {options.rounds} rounds interleaved"
    )
    print("| step | median img/s | min | max | ratio |\n|---|---|---|---|---|")
    for name, values in rates.items():
        middle = statistics.median(values)
        print(f"| {name} | {middle:.2f} | {min(values):.2f} | {max(values):.2f} | {middle / reference:.2f} |")


if __name__ == "__main__":
    main()
