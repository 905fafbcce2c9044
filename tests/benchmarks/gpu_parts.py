"""What `gpu.py` measures of the bare network: a function for each part, which gives its figures one
by one.
"""

from __future__ import annotations

import platform
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torchvision.io import ImageReadMode, decode_jpeg, encode_jpeg

from detector.batch import Batch
from tests.benchmarks.step import (
    Case,
    memory,
    our_step,
    random_batch,
    rates,
    seconds_of,
    torchvision_step,
    utilisation,
)

RATE, MS, SECONDS = "images/s", "ms", "s"
TIMES = (MS, SECONDS)
"""Units of which less is faster."""
COMPILER_OPTIONS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "coordinate descent": {"coordinate_descent_tuning": True},
    "cooperative reductions": {"triton.cooperative_reductions": True},
    "max-autotune, no CUDA graphs": {"max_autotune": True, "triton.cudagraphs": False},
}


@dataclass(frozen=True)
class Figure:
    """One measurement of one way in one round."""

    case: str
    way: str
    unit: str
    value: float
    round: int = 0
    reference: str = ""
    """The way of the same part that it is compared with."""
    more: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    device: str
    backbone: str
    canvas: tuple[int, int]
    batch: int
    small_batch: int
    classes: int
    width: int
    rounds: int
    calls: int
    images: int
    """In the shards that feed the network."""
    val_images: int
    threads: int
    compiles: bool

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    def case(self, batch: int) -> str:
        height, width = self.canvas
        return f"{self.backbone}, {batch} x {height}x{width}"


REAL = Sizes("cuda", "resnet50", (800, 800), 32, 2, 91, 256, 3, 10, 1600, 5000, 8, True)
DRY = Sizes("cpu", "resnet18", (64, 96), 4, 2, 5, 64, 1, 1, 16, 16, 1, False)


def about(sizes: Sizes) -> dict[str, str]:
    """The machine and the versions, beside every figure."""
    name = torch.cuda.get_device_name() if sizes.on_gpu else platform.machine()
    return {"machine": name, "torch": torch.__version__, "torchvision": torchvision.__version__}


def fixed(sizes: Sizes) -> Iterator[Figure]:
    """The usual fine-tuning: normalisation fixed, stem and first stage fixed."""
    ours = dict(norm="frozen", frozen_stages=2)
    yield from _steps(
        sizes,
        sizes.batch,
        {
            "ours, compiled": our(sizes, compiled="default", **ours),
            "ours, eager": our(sizes, **ours),
            "torchvision, autocast": theirs(sizes, **ours),
        },
        reference="torchvision, autocast",
        **ours,
    )


def trained(sizes: Sizes) -> Iterator[Figure]:
    """Batch normalisation over the batch: of all stages, and with the first ones fixed."""
    yield from _steps(
        sizes,
        sizes.batch,
        {
            "all trained, compiled": our(sizes, compiled="default"),
            "all trained, eager": our(sizes),
            "first stages fixed, compiled": our(sizes, compiled="default", frozen_stages=2),
            "torchvision, autocast": theirs(sizes),
        },
        reference="torchvision, autocast",
    )


def small_batch(sizes: Sizes) -> Iterator[Figure]:
    """Two images a step, as the paper's recipes have them, beside 16."""
    ours = dict(norm="frozen", frozen_stages=2)
    usual = 8 * sizes.small_batch
    yield from _steps(
        sizes, usual, {"compiled, 16": our(sizes, compiled="default", **ours)}, **ours
    )
    yield from _steps(
        sizes,
        sizes.small_batch,
        {
            "eager": our(sizes, **ours),
            "compiled": our(sizes, compiled="default", **ours),
            "compiled, CUDA graph": our(sizes, compiled="reduce-overhead", **ours),
        },
        reference="compiled, 16",
        **ours,
    )


def compiler(sizes: Sizes) -> Iterator[Figure]:
    """What options of the compiler do for the usual fine-tuning; one after the other, because each
    compiles for a minute.
    """
    ours = dict(norm="frozen", frozen_stages=2)
    for name, options in COMPILER_OPTIONS.items():
        torch._dynamo.reset()
        compiled = {"compiled": options or "default"}
        yield from _steps(
            sizes,
            sizes.batch,
            {name: our(sizes, **compiled, **ours)},
            reference=next(iter(COMPILER_OPTIONS)),
            **ours,
        )


def our(
    sizes: Sizes, *, compiled: str | dict[str, Any] | None = None, **settings: Any
) -> Callable[[Batch], Callable[[], Any]]:
    # A dry run is about the way through this file: it compiles nothing.
    chosen = compiled if sizes.compiles else None
    return lambda batch: our_step(
        batch,
        backbone=sizes.backbone,
        classes=sizes.classes,
        width=sizes.width,
        amp=True,
        compiled=chosen,
        **settings,
    )


def theirs(sizes: Sizes, **settings: Any) -> Callable[[Batch], Callable[[], Any]]:
    return lambda batch: torchvision_step(
        batch,
        backbone=sizes.backbone,
        classes=sizes.classes,
        amp=True,
        channels_last=True,
        **settings,
    )


def _steps(
    sizes: Sizes,
    count: int,
    ways: Mapping[str, Callable[[Batch], Callable[[], Any]]],
    *,
    reference: str = "",
    norm: str = "batch",
    frozen_stages: int = 0,
) -> Iterator[Figure]:
    """The first step's seconds of each way, and then its images/s in interleaved rounds."""
    device, (height, width) = torch.device(sizes.device), sizes.canvas
    batch = random_batch(batch=count, height=height, width=width, classes=sizes.classes).to(device)
    case = sizes.case(count)
    steps = {name: build(batch) for name, build in ways.items()}
    for name, step in steps.items():
        yield Figure(f"{case}, first step", name, SECONDS, seconds_of(step, device))
    for number in range(sizes.rounds):
        found, _ = rates(steps, count, device, rounds=1, calls=sizes.calls)
        more: dict[str, dict[str, str]] = {}
        if sizes.on_gpu:
            network = Case(sizes.backbone, height, width, count, sizes.classes, norm, frozen_stages)
            more["MFU"] = utilisation(network, found, torch.bfloat16, device)
            more["GiB an image"] = memory(steps, count, device)
        for name, (value,) in found.items():
            beside = {column: cells[name] for column, cells in more.items()}
            yield Figure(case, name, RATE, value, number, reference, beside)


def batch_norm(sizes: Sizes) -> Iterator[Figure]:
    """Batch statistics with ReLU, forward and backward, of the first stage's largest map."""
    device = torch.device(sizes.device)
    height, width = (side // 4 for side in sizes.canvas)
    kind = torch.bfloat16 if sizes.on_gpu else torch.float32
    shape = (sizes.batch, 256, height, width)
    images = torch.randn(shape, device=device, dtype=kind)
    images = images.contiguous(memory_format=torch.channels_last).requires_grad_()
    scale, bias = (torch.ones(256, device=device, requires_grad=True) for _ in range(2))

    def both(images: torch.Tensor) -> torch.Tensor:
        return F.relu(F.batch_norm(images, None, None, scale, bias, training=True))

    def way(forward: Callable[[torch.Tensor], torch.Tensor], cudnn: bool) -> Callable[[], None]:
        def work() -> None:
            with torch.backends.cudnn.flags(enabled=cudnn):
                result = forward(images)
                result.backward(torch.ones_like(result))

        return work

    ways = {
        "cuDNN": way(both, True),
        "torch's kernels": way(both, False),
        "compiled": way(torch.compile(both, dynamic=False) if sizes.compiles else both, True),
    }
    for number in range(sizes.rounds):
        found, _ = rates(ways, 1, device, rounds=1, calls=sizes.calls)
        for name, (rate,) in found.items():
            yield Figure(str(shape), name, MS, 1000 / rate, number, "cuDNN")


def jpegs(sizes: Sizes) -> Iterator[Figure]:
    """JPEGs of 640x480 px, decoded on the device and on the CPU, and how far the pixels differ."""
    generator = torch.Generator().manual_seed(0)
    # Of torchvision's decoders, which torchcodec is to replace.
    warnings.simplefilter("ignore", DeprecationWarning)
    files = []
    for _ in range(sizes.batch):
        picture = torch.full((1, 3, 480, 640), 120.0)
        for cell, contrast in ((128, 60), (32, 30), (8, 14), (2, 8)):
            noise = torch.randn(1, 3, 480 // cell, 640 // cell, generator=generator)
            picture += contrast * F.interpolate(noise, size=(480, 640), mode="bicubic")
        files.append(encode_jpeg(picture[0].clamp(0, 255).byte(), quality=90))
    device = torch.device(sizes.device)

    def decode(where: str) -> list[torch.Tensor]:
        return decode_jpeg(files, mode=ImageReadMode.RGB, device=where)

    ways = {"CPU": lambda: decode("cpu"), "device": lambda: decode(sizes.device)}
    there, here = (torch.stack([p.float().cpu() for p in ways[name]()]) for name in ways)
    apart = (there - here).abs()
    more = {"mean difference": f"{apart.mean():.3f}", "largest": f"{apart.max():.0f}"}
    case = f"{len(files)} JPEGs of {sum(map(len, files)) / len(files) / 1000:.0f} kB"
    for number in range(sizes.rounds):
        found, _ = rates(ways, len(files), device, rounds=1, calls=sizes.calls)
        for name, (value,) in found.items():
            yield Figure(case, name, RATE, value, number, "CPU", more if name == "device" else {})
