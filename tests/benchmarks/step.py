"""Images/s of a training step, or of detecting, beside torchvision's RetinaNet: same network,
images, dtype and layout, interleaved in one process.

    python tests/benchmarks/step.py [--backbones resnet18,resnet50 --sizes 320x320,480x480 --batches
    4 --classes 91 --rounds 5] python tests/benchmarks/step.py --ablation      the step without each
    technique in turn, and compiled python tests/benchmarks/step.py --breakdown     where the step's
    time goes, by torch's profiler python tests/benchmarks/step.py --inference     pictures ->
    detections, and whether both find the same python tests/benchmarks/step.py --parts
    matching and the focal loss alone python tests/benchmarks/step.py --norm frozen --frozen-stages
    2      as a pretrained network is trained on: both of them python tests/benchmarks/step.py
    --compile       seconds of the first compiled step, with an empty cache and with a filled one

On a GPU the defaults are resnet50 at 800x800, batches 16 and 32, and 800x1344. Needs torch,
torchvision and numpy, nothing else of this project's requirements. Prints Markdown: medians,
smallest and largest over the rounds; ratios to torchvision in the same dtype, channels-last, as
medians of those within a round, since a shared machine's speed changes between rounds; on a CPU
also the ratios of CPU time, which other processes disturb less (with one thread: two of them wait
for each other by spinning).
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", ".."))

import torch
import torchvision
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

import detector.convolution
from detector.anchors import anchor_grid, match
from detector.batch import Batch
from detector.choices import LossSettings
from detector.focal import focal_sums, plain_focal_sums
from detector.folding import fold_batch_norm, for_detecting
from detector.model import RetinaNet
from detector.optimizer import build_optimizer
from detector.precision import autocast_dtype
from detector.step import compiled_parts, train_step
from tests.benchmarks.flops import convolution_flops

PEAK_TFLOPS = {"H200": 790.0, "H100": 790.0, "A100": 312.0}
"""Dense bf16 of a GPU, as MFU is reckoned in docs/benchmarks.md. A CPU's is measured, see
`matrix_rate`.
"""
CANDIDATES = 500
"""Class scores above the threshold in a picture, of the networks that detect."""
GROUPS = {
    "compiled elementwise work": ("triton_",),
    "optimiser and clipping": ("_fused_", "_foreach_", "vector_norm", "multi_tensor", "adam"),
    "convolutions": ("conv", "fprop", "dgrad", "wgrad", "cudnn_"),
    "matrix products": ("gemm", "mm", "matmul", "nvjet"),
    "normalisation": ("norm", "bn_"),
    "copies, casts, layouts": (
        "copy",
        "memcpy",
        "cat",
        "clone",
        "contiguous",
        "pad",
        "nchwto",
        "nhwcto",
    ),
}
"""Parts of the names, in small letters, of operations on a CPU and of kernels on a GPU. The first
group that fits counts; what is in none of them is "rest": elementwise work, the loss, matching."""


@dataclass(frozen=True)
class Case:
    backbone: str
    height: int
    width: int
    batch: int
    classes: int
    norm: str = "batch"
    frozen_stages: int = 0


def random_batch(*, batch: int, height: int, width: int, classes: int, objects: int = 14) -> Batch:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(batch, objects, 2, generator=generator) * torch.tensor(
        [width - 90.0, height - 90.0]
    )
    sides = 20 + 60 * torch.rand(batch, objects, 2, generator=generator)
    boxes, labels = torch.zeros(batch, 16, 4), torch.full((batch, 16), -1)
    boxes[:, :objects] = torch.cat([corners, corners + sides], dim=2)
    labels[:, :objects] = torch.randint(0, classes, (batch, objects), generator=generator)
    images = torch.randint(
        0, 256, (batch, 3, height, width), dtype=torch.uint8, generator=generator
    ).contiguous(memory_format=torch.channels_last)
    sizes = torch.tensor([[height, width]] * batch, dtype=torch.float32)
    return Batch(
        images, boxes, labels, sizes, torch.arange(batch), torch.zeros(batch, dtype=torch.bool)
    )


def our_step(
    batch: Batch,
    *,
    backbone: str,
    classes: int,
    amp: bool,
    width: int = 256,
    head_norm: str = "none",
    norm: str = "batch",
    frozen_stages: int = 0,
    channels_last: bool = True,
    fused: bool = True,
    compiled: str | dict[str, Any] | None = None,
    read_late: bool = True,
) -> Callable[..., None]:
    """`compiled` is a mode of torch.compile: "default", or "reduce-overhead" for CUDA graphs; or
    its options.
    `read_late`: read a step's numbers one step later.
    """
    device = batch.images.device
    parts = dict(
        width=width, head_norm=head_norm, norm=norm, frozen_stages=frozen_stages, p6_from="p5"
    )
    model = RetinaNet(classes=classes, backbone=backbone, **parts).train().to(device)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(
        model, name="adamw", learning_rate=1e-4, weight_decay=1e-4, momentum=0.9
    )
    if not fused:
        # In the groups: they were told, and what a group says goes before what its optimiser does.
        for group in optimizer.param_groups:
            group |= {"fused": False, "foreach": False}
    anchors = torch.cat(model.anchors(*batch.images.shape[2:]))
    how = {"options": compiled} if isinstance(compiled, dict) else {"mode": compiled}
    network = model if compiled is None else torch.compile(model, dynamic=False, **how)
    # The parts without CUDA graphs: with them a part's sums would be overwritten by those of the
    # next.
    settings: dict[str, Any] = {} if compiled is None else compiled_parts(LossSettings())
    settings |= dict(loss=LossSettings(), learning_rate=1e-4, clip_norm=10.0)
    reports: list[Any] = []

    def step(batch: Batch = batch) -> None:
        reports.append(
            train_step(
                network,
                optimizer,
                batch,
                anchors,
                amp_dtype=autocast_dtype(device, amp=amp),
                **settings,
            )
        )
        if len(reports) > (1 if read_late else 0):
            reports.pop(0).read()

    return step


def torchvision_model(
    *,
    backbone: str,
    classes: int,
    height: int,
    width: int,
    norm: str = "batch",
    frozen_stages: int = 0,
) -> torch.nn.Module:
    body = resnet_fpn_backbone(
        backbone_name=backbone,
        weights=None,
        norm_layer=torchvision.ops.FrozenBatchNorm2d if norm == "frozen" else torch.nn.BatchNorm2d,
        trainable_layers=5 - frozen_stages,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
    )
    return torchvision.models.detection.RetinaNet(
        body, num_classes=classes, min_size=min(height, width), max_size=max(height, width)
    )


def torchvision_step(
    batch: Batch, *, amp: bool, channels_last: bool, **parts: Any
) -> Callable[[], None]:
    height, width = batch.images.shape[2:]
    device = batch.images.device
    model = torchvision_model(height=height, width=width, **parts).train().to(device)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    images = [image.float() / 255 for image in batch.images]
    targets = [
        {"boxes": b[k >= 0], "labels": k[k >= 0]}
        for b, k in zip(batch.boxes_BG4, batch.labels_BG, strict=True)
    ]
    dtype = autocast_dtype(device, amp=amp)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            losses = model(images, targets)
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()

    return step


def without_products(build: Callable[..., Any], *given: Any, **settings: Any) -> Any:
    """A network whose weight gradients are oneDNN's."""
    chosen, detector.convolution.SLOW_WEIGHT_GRADIENT = (
        detector.convolution.SLOW_WEIGHT_GRADIENT,
        False,
    )
    try:
        return build(*given, **settings)
    finally:
        detector.convolution.SLOW_WEIGHT_GRADIENT = chosen


def seconds_of(work: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def rates(
    ways: dict[str, Callable[[], Any]],
    images: int,
    device: torch.device,
    *,
    rounds: int,
    calls: int,
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Images/s of each way in every round, the ways one after the other, after two calls that warm
    up; and images a CPU second.
    """
    for way in ways.values():
        for _ in range(2):
            way()
    wall, cpu = ({name: [] for name in ways} for _ in range(2))
    for _ in range(rounds):
        for name, way in ways.items():
            begun = time.process_time()
            wall[name].append(
                images * calls / seconds_of(lambda way=way: [way() for _ in range(calls)], device)
            )
            cpu[name].append(images * calls / (time.process_time() - begun))
    return wall, cpu


def ratios(found: dict[str, list[float]], reference: str) -> dict[str, str]:
    """Medians of the ratios within a round."""
    return {
        name: (
            f"{statistics.median(a / b for a, b in zip(values, found[reference], strict=True)):.2f}"
        )
        for name, values in found.items()
    }


def table(
    found: dict[str, list[float]], reference: str, columns: dict[str, dict[str, str]]
) -> None:
    ratio = ratios(found, reference)
    print(
        "".join(f"| {name} " for name in ("", "median img/s", "min", "max", "ratio", *columns))
        + "|\n"
        + "|---" * (5 + len(columns))
        + "|"
    )
    for name, values in found.items():
        more = "".join(f" {cells.get(name, '')} |" for cells in columns.values())
        print(
            f"| {name} | {statistics.median(values):.2f} | {min(values):.2f} | {max(values):.2f} |"
            f" {ratio[name]} |{more}"
        )


def matrix_rate(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of a large product of matrices: what the cores reach at best."""
    side = 1024 if device.type == "cpu" else 8192
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / min(seconds_of(lambda: a @ b, device) for _ in range(12))


def utilisation(
    case: Case, found: dict[str, list[float]], dtype: torch.dtype, device: torch.device
) -> dict[str, str]:
    """The share of the device's peak that each way's convolutions reach, MFU: images/s x FLOPs of a
    training step an image / peak.
    """
    with torch.device("meta"):
        network = RetinaNet(
            classes=case.classes,
            backbone=case.backbone,
            frozen_stages=case.frozen_stages,
            p6_from="p5",
        ).train()
        flops = convolution_flops(network, case.height, case.width).train
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        peak = 1e12 * next(
            (value for key, value in PEAK_TFLOPS.items() if key in name), float("nan")
        )
    else:
        peak = matrix_rate(dtype, device)
    print(f"{flops / 1e9:.1f} GFLOP a training step and image; peak {peak / 1e12:.3f} TFLOP/s")
    return {
        name: f"{100 * statistics.median(v) * flops / peak:.0f} %"
        for name, v in found.items()
        if "fp32" not in name or dtype == torch.float32
    }


def memory(ways: dict[str, Callable[[], Any]], images: int, device: torch.device) -> dict[str, str]:
    """Most GPU memory a step takes beside what is there between steps, GiB an image."""
    found = {}
    for name, way in ways.items():
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        way()
        torch.cuda.synchronize(device)
        found[name] = f"{(torch.cuda.max_memory_allocated(device) - before) / images / 2**30:.2f}"
    return found


def group_of(operation: str) -> str:
    return next(
        (
            group
            for group, parts in GROUPS.items()
            if any(part in operation.lower() for part in parts)
        ),
        "rest",
    )


def breakdown(way: Callable[[], Any], device: torch.device) -> None:
    """Shares of the operations' own time in one call; on a GPU of its kernels' alone, which the
    operations that launch them count once more.
    """
    activities = [torch.profiler.ProfilerActivity.CPU] + (
        [torch.profiler.ProfilerActivity.CUDA] if device.type == "cuda" else []
    )
    with torch.profiler.profile(activities=activities, acc_events=True) as profiler:
        seconds_of(way, device)
    on_gpu = device.type == "cuda"
    name = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    spent = dict.fromkeys([*GROUPS, "rest"], 0.0)
    for entry in profiler.key_averages():
        if (entry.device_type == torch.autograd.DeviceType.CUDA) == on_gpu:
            spent[group_of(entry.key)] += getattr(entry, name)
    total = sum(spent.values())
    print(
        "| part of a step | share |\n|---|---|\n"
        + "\n".join(f"| {group} | {100 * value / total:.1f} % |" for group, value in spent.items())
    )


def training(case: Case, device: torch.device, options: argparse.Namespace) -> None:
    batch = random_batch(
        batch=case.batch, height=case.height, width=case.width, classes=case.classes
    ).to(device)
    common = dict(
        backbone=case.backbone,
        classes=case.classes,
        norm=case.norm,
        frozen_stages=case.frozen_stages,
    )
    dtype = autocast_dtype(device, amp=options.dtype != "fp32") or torch.float32
    short, amp = ("bf16", True) if dtype == torch.bfloat16 else ("fp32", False)
    ours, reference = f"ours, {short}", f"torchvision, {short}, channels-last"
    ways: dict[str, Callable[[], Any]] = {ours: our_step(batch, amp=amp, **common)}
    if options.ablation:
        if detector.convolution.SLOW_WEIGHT_GRADIENT and not amp:
            ways["oneDNN's weight gradients"] = without_products(our_step, batch, amp=amp, **common)
        ways["contiguous weights"] = our_step(batch, amp=amp, channels_last=False, **common)
        ways["frozen batch normalisation"] = our_step(
            batch, amp=amp, **(common | {"norm": "frozen"})
        )
        ways["optimiser not fused"] = our_step(batch, amp=amp, fused=False, **common)
        ways["numbers read at once"] = our_step(batch, amp=amp, read_late=False, **common)
        ways["compiled"] = our_step(batch, amp=amp, compiled="default", **common)
        if device.type == "cuda":
            ways["compiled, CUDA graphs"] = our_step(
                batch, amp=amp, compiled="reduce-overhead", **common
            )
    elif device.type == "cuda":
        ways[f"{ours}, compiled"] = our_step(batch, amp=amp, compiled="default", **common)
    ways[reference] = torchvision_step(batch, amp=amp, channels_last=True, **common)
    if not options.ablation:
        ways["torchvision, fp32, plain"] = torchvision_step(
            batch, amp=False, channels_last=False, **common
        )
    found, cpu = rates(
        ways, case.batch, device, rounds=options.rounds, calls=10 if device.type == "cuda" else 1
    )
    columns = {"MFU": utilisation(case, found, dtype, device)}
    if device.type == "cuda":
        columns["GiB an image"] = memory(ways, case.batch, device)
    else:
        columns["ratio, CPU"] = ratios(cpu, reference)
    table(found, reference, columns)
    if options.breakdown:
        # On a GPU the step that long runs make.
        for name in (ours, f"{ours}, compiled"):
            if name in ways:
                print(f"\n{name}:\n")
                breakdown(ways[name], device)


def parts(case: Case, device: torch.device, options: argparse.Namespace) -> None:
    """Milliseconds of what is no network, for the whole batch: matching, and the focal loss forward
    and backward.
    """
    batch = random_batch(
        batch=case.batch, height=case.height, width=case.width, classes=case.classes
    ).to(device)
    with torch.device("meta"):
        levels = RetinaNet(classes=case.classes, backbone=case.backbone)
    anchors = torch.cat(anchor_grid(case.height, case.width, **levels.anchor_shapes)).to(device)
    dtype = autocast_dtype(device, amp=options.dtype != "fp32") or torch.float32
    logits = (
        (torch.randn(case.batch, len(anchors), case.classes, device=device) - 4)
        .to(dtype)
        .requires_grad_()
    )
    slots = match(anchors, batch.boxes_BG4, batch.labels_BG)
    classes = torch.where(slots >= 0, batch.labels_BG.gather(1, slots.clamp(min=0)), slots)

    def loss(sums: Callable[..., torch.Tensor]) -> Callable[[], None]:
        def work() -> None:
            logits.grad = None
            sums(logits, classes, gamma=2.0, alpha=0.25).sum().backward()

        return work

    compiled_match = compiled_parts(LossSettings())["assign"]
    ways = {
        "matching": lambda: match(anchors, batch.boxes_BG4, batch.labels_BG),
        "matching, compiled": lambda: compiled_match(anchors, batch.boxes_BG4, batch.labels_BG),
        "focal loss, in chunks with its gradient": loss(focal_sums),
        "focal loss, the formula by autograd": loss(plain_focal_sums),
        "focal loss, compiled": loss(torch.compile(plain_focal_sums, dynamic=False)),
    }
    wall, _ = rates(ways, 1, device, rounds=options.rounds, calls=1)
    print("| | ms | min | max |\n|---|---|---|---|")
    for name, values in wall.items():
        print(
            f"| {name} | {1e3 / statistics.median(values):.1f} | {1e3 / max(values):.1f} |"
            f" {1e3 / min(values):.1f} |"
        )


def same_weights(theirs: torch.nn.Module, ours: RetinaNet) -> None:
    """torchvision's weights into ours, by name."""
    prefixes = {
        "backbone.body.conv1.": "backbone.stem.0.",
        "backbone.body.bn1.": "backbone.stem.1.",
        "backbone.body.": "backbone.",
        "backbone.fpn.inner_blocks.": "pyramid.lateral.",
        "backbone.fpn.layer_blocks.": "pyramid.output.",
        "backbone.fpn.extra_blocks.": "pyramid.",
        "head.classification_head.cls_logits.": "class_head.output.",
        "head.regression_head.bbox_reg.": "box_head.output.",
    }
    for i in range(4):
        prefixes[f"head.classification_head.conv.{i}.0."] = f"class_head.tower.{2 * i}."
        prefixes[f"head.regression_head.conv.{i}.0."] = f"box_head.tower.{2 * i}."
    renamed = {}
    for name, value in theirs.state_dict().items():
        for old, new in prefixes.items():
            if name.startswith(old):
                name = new + name.removeprefix(old)
                break
        name = (
            name.replace(".0.weight", ".weight").replace(".0.bias", ".bias")
            if name.startswith(("pyramid.lateral", "pyramid.output"))
            else name
        )
        renamed[name] = value
    ours.load_state_dict(renamed)


@torch.no_grad()
def inference(case: Case, device: torch.device, options: argparse.Namespace) -> None:
    batch = random_batch(
        batch=case.batch, height=case.height, width=case.width, classes=case.classes
    ).to(device)
    theirs = (
        torchvision_model(
            backbone=case.backbone, classes=case.classes, height=case.height, width=case.width
        )
        .eval()
        .to(device)
    )
    pictures = [image.float() / 255 for image in batch.images]
    ours = (
        RetinaNet(
            classes=case.classes, backbone=case.backbone, p6_from="p5", convention="torchvision"
        )
        .eval()
        .to(device)
    )
    same_weights(theirs, ours)
    # As many candidates as a trained network has: so many logits a picture above the score of 0.05.
    logits, offsets = ours(batch.images)
    prior = float(theirs.head.classification_head.cls_logits.bias[0])
    least = float((logits - prior).float().flatten().topk(CANDIDATES * case.batch)[0][-1])
    theirs.head.classification_head.cls_logits.weight.mul_((math.log(0.05 / 0.95) - prior) / least)
    theirs.head.regression_head.bbox_reg.weight.mul_(0.1 / offsets.std())
    same_weights(theirs, ours)
    dtype = autocast_dtype(device, amp=options.dtype != "fp32")

    def under(
        network: torch.nn.Module,
        detect: Callable[[torch.nn.Module], Any],
        dtype: torch.dtype | None = dtype,
    ) -> Callable[[], Any]:
        network = copy.deepcopy(network).to(memory_format=torch.channels_last)

        def work() -> Any:
            with (
                torch.no_grad(),
                torch.autocast(device.type, dtype=dtype, enabled=dtype is not None),
            ):
                return detect(network)

        return work

    def our_detections(network: torch.nn.Module) -> Any:
        # As many as torchvision keeps.
        return network.detect(batch.images, batch.sizes_B2, max_detections=300)

    short = "bf16" if dtype else "fp32"
    ways = {
        f"ours, {short}": under(
            for_detecting(copy.deepcopy(ours), device, amp=dtype is not None), our_detections
        ),
        "batch normalisation folded, nothing fused": under(
            fold_batch_norm(copy.deepcopy(ours)), our_detections
        ),
        "batch normalisation not folded": under(ours, our_detections),
        f"torchvision, {short}, channels-last": under(theirs, lambda network: network(pictures)),
    }
    if device.type == "cpu":
        # The same there as the first.
        del ways["batch normalisation folded, nothing fused"]
    found, cpu = rates(
        ways, case.batch, device, rounds=options.rounds, calls=10 if device.type == "cuda" else 1
    )
    reference = f"torchvision, {short}, channels-last"
    table(found, reference, {"ratio, CPU": ratios(cpu, reference)} if device.type == "cpu" else {})
    torch.backends.cudnn.allow_tf32 = False
    exact = (
        under(fold_batch_norm(copy.deepcopy(ours)), our_detections, None),
        under(theirs, lambda network: network(pictures), None),
    )
    pairs = list(zip(*(way() for way in exact), strict=True))
    same = sum(same_detections(mine, yours) for mine, yours in pairs)
    print(
        f"in float32 {same} of {len(pairs)} pictures have the same detections,"
        f" {len(pairs[0][0].labels_N)} in the first"
    )
    if options.breakdown:
        breakdown(ways[f"ours, {short}"], device)


def same_detections(mine: Any, yours: dict[str, torch.Tensor]) -> bool:
    """As many, and each has its like, with boxes to 0.02 px and scores to 1e-4: those of nearly one
    score may stand in another order.
    """
    if len(mine.labels_N) != len(yours["labels"]):
        return False
    ours = [
        torch.from_numpy(column).float()
        for column in (mine.boxes_N4 / 200, mine.scores_N[:, None], mine.labels_N[:, None])
    ]
    theirs = [
        yours["boxes"].cpu() / 200,
        yours["scores"].cpu()[:, None],
        yours["labels"].cpu()[:, None].float(),
    ]
    alike = (torch.cat(ours, dim=1)[:, None] - torch.cat(theirs, dim=1)).abs().amax(dim=2) < 1e-4
    return bool(alike.any(dim=0).all() and alike.any(dim=1).all())


def compile_seconds(case: Case) -> None:
    """Each in a process of its own, with one cache folder."""
    arguments = [
        f"--{field.name.replace('_', '-')}={getattr(case, field.name)}" for field in fields(case)
    ]
    with tempfile.TemporaryDirectory(prefix="inductor-") as folder:
        for cache in ("empty", "filled"):
            environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": folder}
            command = [sys.executable, __file__, "--first-step", *arguments]
            child = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=True
            )
            print(f"first compiled step, {cache} cache: {child.stdout.strip()} s")


def first_step(case: Case, device: torch.device) -> None:
    batch = random_batch(
        batch=case.batch, height=case.height, width=case.width, classes=case.classes
    ).to(device)
    parts = dict(
        backbone=case.backbone,
        classes=case.classes,
        norm=case.norm,
        frozen_stages=case.frozen_stages,
    )
    step = our_step(batch, amp=True, compiled="default", **parts)
    print(f"{seconds_of(step, device):.1f}")


def main() -> None:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if gpu else "cpu")
    parser.add_argument(
        "--backbones", "--backbone", default="resnet50" if gpu else "resnet18,resnet50"
    )
    parser.add_argument(
        "--sizes",
        default="800x800,800x1344" if gpu else "320x320,480x480",
        help="height x width, several with commas between",
    )
    parser.add_argument("--batches", "--batch", default="16,32" if gpu else "4")
    parser.add_argument("--classes", type=int, default=91)
    parser.add_argument(
        "--dtype",
        choices=["auto", "fp32"],
        default="auto",
        help="auto: bf16 where the device has instructions for it",
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    for mode in ("ablation", "breakdown", "inference", "parts", "compile", "first-step"):
        parser.add_argument(f"--{mode}", action="store_true")
    parser.add_argument("--norm", choices=["batch", "frozen"], default="batch")
    parser.add_argument(
        "--frozen-stages", type=int, default=0, help="2: the stem and the first stage are fixed"
    )
    parser.add_argument("--height", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--width", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    machine = (
        f"{platform.machine()} with {torch.backends.cpu.get_cpu_capability()}, {options.threads}"
        " threads"
    )
    if device.type == "cuda":
        machine = torch.cuda.get_device_name(device)
    sizes = (
        [(options.height, options.width)]
        if options.height
        else [tuple(map(int, size.split("x"))) for size in options.sizes.split(",")]
    )
    for backbone in options.backbones.split(","):
        for height, width in sizes:
            for images in map(int, options.batches.split(",")):
                case = Case(
                    backbone,
                    height,
                    width,
                    images,
                    options.classes,
                    options.norm,
                    options.frozen_stages,
                )
                torch.manual_seed(0)
                if options.first_step:
                    first_step(case, device)
                    continue
                print(
                    f"\n{backbone}, {options.norm} normalisation, {options.frozen_stages} stages"
                    f" fixed, {options.classes} classes, {images} x {height}x{width}; {machine};"
                    f" torch {torch.__version__}, torchvision {torchvision.__version__};"
                    f" {options.rounds} rounds interleaved",
                    flush=True,
                )
                if options.compile:
                    compile_seconds(case)
                elif options.inference:
                    inference(case, device, options)
                elif options.parts:
                    parts(case, device, options)
                else:
                    training(case, device, options)


if __name__ == "__main__":
    main()
