"""On a GPU: the same numbers as on a CPU, no wait for the device, and the memory that was promised.
Deselected unless asked for:

    python -m pytest --noconftest -c /dev/null --rootdir . tests/gpu/test_detector.py

needs torch, torchvision, numpy, Pillow and pytest; `-m gpu` where the whole project is installed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from detector import decode
from detector.anchors import match
from detector.batch import Batch, Sample, collate, empty_canvases, on_device
from detector.choices import LossSettings
from detector.focal import focal_sums
from detector.folding import ConvolutionRelu, fold_batch_norm, for_detecting
from detector.model import RetinaNet
from detector.optimizer import build_optimizer
from detector.step import StepNumbers, StepReport, compiled_parts, train_step

pytestmark = pytest.mark.gpu

GPU = torch.device("cuda")
CANVAS, CLASSES = (256, 320), 7
STEP = dict(loss=LossSettings(), learning_rate=1e-3, clip_norm=10.0)


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """Without TF32, whose products have ten bits."""
    chosen = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = chosen
    torch._dynamo.reset()


def samples(seed: int, images: int = 4, *, most: int = 12) -> list[Sample]:
    random = np.random.default_rng(seed)
    found = []
    for image_id in range(images):
        count = int(random.integers(0, most + 1))
        corners = random.uniform(0, 200, (count, 2))
        boxes = (
            np.concatenate([corners, corners + random.uniform(4, 120, (count, 2))], axis=1)
            .clip(0, [320, 256, 320, 256])
            .astype(np.float32)
        )
        pixels = torch.from_numpy(random.integers(0, 256, (3, *CANVAS), dtype=np.uint8))
        found.append(
            Sample(
                pixels,
                boxes,
                random.integers(-1, CLASSES, count),
                CANVAS,
                image_id,
                mirrored=bool(image_id % 2),
            )
        )
    return found


def network(device: torch.device | str, **parts: Any) -> RetinaNet:
    torch.manual_seed(0)
    return (
        RetinaNet(**({"classes": CLASSES, "backbone": "resnet18", "width": 64} | parts))
        .to(device, memory_format=torch.channels_last)
        .train()
    )


def optimizer_of(model: torch.nn.Module) -> torch.optim.Optimizer:
    return build_optimizer(model, name="adamw", learning_rate=1e-3, weight_decay=1e-4, momentum=0.9)


def steps(
    model: RetinaNet, batches: list[Batch], *, run: torch.nn.Module | None = None, **changed: Any
) -> list[StepNumbers]:
    device = model.pixel_mean.device
    anchors, optimizer = torch.cat(model.anchors(*CANVAS)), optimizer_of(model)
    settings = {"amp_dtype": None} | STEP | changed
    return [
        train_step(
            model if run is None else run, optimizer, b.to(device), anchors, **settings
        ).read()
        for b in batches
    ]


def alike(one: list[StepNumbers], other: list[StepNumbers], *, within: float) -> None:
    for a, b in zip(one, other, strict=True):
        assert (a.classification, a.box, a.gradient_norm) == pytest.approx(
            (b.classification, b.box, b.gradient_norm), rel=within
        )
        assert a.positives == b.positives


def test_steps_are_those_of_a_cpu() -> None:
    batches = [collate(samples(seed)) for seed in range(3)]
    expected = steps(network("cpu"), batches)
    alike(steps(network(GPU), batches), expected, within=5e-3)
    alike(steps(network(GPU), batches, amp_dtype=torch.bfloat16), expected, within=0.1)


@pytest.mark.parametrize("distributed", [False, True])
def test_compiled_steps_are_the_steps(distributed: bool, tmp_path: Any) -> None:
    # The second has more slots than the first. No updates: AdamW's first ones are the signs of
    # gradients, those next to zero too, and after two of them gradient norms that agreed to 7e-6
    # were 1.3 % apart.
    batches = [collate(samples(0)), collate(samples(1, most=40)), collate(samples(2))]
    expected = steps(network(GPU), batches, learning_rate=0.0)
    model = network(GPU)
    if distributed:
        dist.init_process_group(
            "nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
        )
    try:
        run = (
            DistributedDataParallel(model, gradient_as_bucket_view=True, broadcast_buffers=False)
            if distributed
            else model
        )
        alike(
            steps(
                model,
                batches,
                run=torch.compile(run, dynamic=False),
                learning_rate=0.0,
                **compiled_parts(LossSettings()),
            ),
            expected,
            within=1e-3,
        )
    finally:
        if distributed:
            dist.destroy_process_group()


def test_compiled_matching_is_matching_to_the_last_anchor() -> None:
    """An object's best anchors are found by equal overlaps: computed twice, they must be the same
    numbers.
    """
    anchors, compiled = (
        torch.cat(network(GPU).anchors(*CANVAS)),
        compiled_parts(LossSettings())["assign"],
    )
    for seed in range(40):
        batch = collate(samples(seed, most=60)).to(GPU)
        assert torch.equal(
            compiled(anchors, batch.boxes_BG4, batch.labels_BG),
            match(anchors, batch.boxes_BG4, batch.labels_BG),
        ), seed


def test_a_step_does_not_wait_for_the_device() -> None:
    model = network(GPU)
    optimizer, anchors, batch = (
        optimizer_of(model),
        torch.cat(model.anchors(*CANVAS)),
        collate(samples(0)).to(GPU),
    )
    reports: list[StepReport] = []
    train_step(model, optimizer, batch, anchors, amp_dtype=torch.bfloat16, **STEP).read()
    torch.cuda.set_sync_debug_mode("error")
    try:
        reports.append(
            train_step(model, optimizer, batch, anchors, amp_dtype=torch.bfloat16, **STEP)
        )
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert reports[0].read().finite


def test_a_step_that_is_not_finite_changes_nothing() -> None:
    model = network(GPU)
    optimizer, anchors, batch = (
        optimizer_of(model),
        torch.cat(model.anchors(*CANVAS)),
        collate(samples(0)).to(GPU),
    )
    train_step(model, optimizer, batch, anchors, amp_dtype=torch.bfloat16, **STEP).read()
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"]))
    # The first image with an object gets a box of which one side is nowhere.
    first = int((batch.labels_BG >= 0).any(dim=1).nonzero()[0])
    batch.boxes_BG4[first, int((batch.labels_BG[first] >= 0).nonzero()[0]), 2] = float("nan")
    report = train_step(model, optimizer, batch, anchors, amp_dtype=torch.bfloat16, **STEP)
    assert not report.read().finite and report.blamed() == [first]
    after = (model.state_dict(), optimizer.state_dict()["state"])
    assert all(torch.equal(value, after[0][name]) for name, value in before[0].items())
    assert all(
        torch.equal(value, after[1][place][name])
        for place, values in before[1].items()
        for name, value in values.items()
    )


def test_batches_arrive_whole_and_turned() -> None:
    expected = [collate(samples(seed)) for seed in range(4)]
    arrived = list(on_device(iter(expected), GPU))
    for one, other in zip(expected, arrived, strict=True):
        turned = torch.where(one.mirrored_B[:, None, None, None], one.images.flip(3), one.images)
        assert torch.equal(other.images.cpu(), turned) and not other.mirrored_B.any()
        assert torch.equal(other.boxes_BG4.cpu(), one.boxes_BG4) and torch.equal(
            other.labels_BG.cpu(), one.labels_BG
        )


def test_pinned_memory_is_used_again_only_when_its_copy_is_done() -> None:
    places, arrived = set(), []
    for number in range(20):
        images = empty_canvases(8, (800, 800), pinned=True).fill_(number)
        places.add(images.data_ptr())
        assert images.pin_memory().data_ptr() == images.data_ptr()
        arrived.append(images.to(GPU, non_blocking=True))
        del images
    torch.cuda.synchronize()
    assert all(bool((images == number).all()) for number, images in enumerate(arrived))
    # Copies of 15 MB take a millisecond, filling takes longer: memory comes back.
    assert len(places) < 20


@pytest.mark.parametrize("seed", range(3))
def test_nms_keeps_what_a_cpu_keeps(seed: int) -> None:
    random = np.random.default_rng(seed)
    corners = random.uniform(0, 600, (9000, 2))
    boxes = torch.from_numpy(
        np.concatenate([corners, corners + random.uniform(10, 150, (9000, 2))], axis=1)
    ).float()
    scores, labels = (
        torch.from_numpy(random.random(9000)).float(),
        torch.from_numpy(random.integers(0, 5, 9000)),
    )
    images = torch.from_numpy(np.sort(random.integers(0, 6, 9000)))
    expected = decode._suppress(boxes, scores, labels, images, images=6, classes=5, threshold=0.5)
    found = decode._suppress(
        *(t.to(GPU) for t in (boxes, scores, labels, images)), images=6, classes=5, threshold=0.5
    )
    assert found.tolist() == sorted(expected.tolist()) and 500 < len(found) < 8500


@pytest.mark.parametrize(
    "parts", [{}, {"backbone": "resnet50", "norm": "frozen"}, {"head_norm": "group"}]
)
@torch.no_grad()
def test_the_fused_network_has_the_outputs_of_the_plain_one(parts: dict[str, Any]) -> None:
    images = collate(samples(0)).images.to(GPU)
    plain = fold_batch_norm(network(GPU, **parts).eval())
    # Outputs as a trained network has them, spread about zero: a bias would be rounded alike
    # everywhere.
    for head, outputs in zip((plain.class_head, plain.box_head), plain(images), strict=True):
        head.output.weight.div_(outputs.std())
        head.output.bias.zero_()
    fused = for_detecting(copy.deepcopy(plain), GPU, amp=True)
    assert any(isinstance(m, ConvolutionRelu) for m in fused.modules())
    with torch.autocast("cuda", dtype=torch.bfloat16):
        rounded, found = plain(images), fused(images)
    for exact, mine, theirs in zip(plain(images), found, rounded, strict=True):
        spread = float(exact.std())
        # Both are bfloat16; the fused one rounds less often.
        assert (
            float((mine - exact).abs().mean())
            < 1.2 * float((theirs - exact).abs().mean()) + 1e-3 * spread
        )
        assert float((mine - exact).abs().max()) < 0.1 * float(exact.abs().max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_of_eight_large_pictures_takes_a_third_of_a_gibibyte(dtype: torch.dtype) -> None:
    logits = torch.randn(8, 120_087, 91, device=GPU, dtype=dtype).requires_grad_()
    classes = torch.randint(-2, 91, (8, 120_087), device=GPU)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    focal_sums(logits, classes, gamma=2.0, alpha=0.25).sum().backward()
    torch.cuda.synchronize()
    assert (torch.cuda.max_memory_allocated() - before) / 2**30 <= 0.35 + 0.01
