"""One training step: it learns, it divides by what all ranks and parts saw, and it refuses to
update on what is not finite.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
import re
import threading
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.distributed as dist
from pydantic import ValidationError
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from cluster.runs.config import TrainConfig
from cluster.runs.training_config import EXECUTION
from detector.anchors import match
from detector.batch import Batch, Sample, collate
from detector.choices import LossSettings
from detector.loss import LossSums
from detector.model import RetinaNet
from detector.optimizer import build_optimizer
from detector.step import StepNumbers, StepReport, forward_loss, nonfinite_loss, split, train_step
from detector.training_config import LossConfig
from tests.detector.toy import toy_retinanet


def scene(image_id: int, *boxes: tuple[int, int, int, int]) -> Sample:
    """Grey noise with a bright rectangle for each box; the label is 0 for a wide one and 1 for a
    tall one.
    """
    random = np.random.default_rng(abs(image_id))
    pixels = random.integers(80, 120, (64, 96, 3), dtype=np.uint8)
    for x1, y1, x2, y2 in boxes:
        pixels[y1:y2, x1:x2] = 230
    labels = [int(y2 - y1 > x2 - x1) for x1, y1, x2, y2 in boxes]
    return Sample(
        torch.from_numpy(pixels).permute(2, 0, 1),
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(labels, np.int64),
        (64, 96),
        image_id,
    )


SCENES = [
    scene(11, (4, 6, 36, 20)),
    scene(12, (30, 10, 44, 50), (2, 40, 26, 52)),
    scene(13),
    scene(14, (20, 20, 44, 44)),
]


def step(
    network: torch.nn.Module,
    batch: Batch,
    optimizer: torch.optim.Optimizer | None = None,
    **changed,
) -> StepNumbers:
    return report_of(network, batch, optimizer, **changed).read()


def report_of(
    network: torch.nn.Module,
    batch: Batch,
    optimizer: torch.optim.Optimizer | None = None,
    **changed,
) -> StepReport:
    optimizer = optimizer or torch.optim.SGD(network.parameters(), lr=0.0)
    settings = dict(loss=LossSettings(), learning_rate=0.0, clip_norm=1e9, amp_dtype=None)
    model = network.module if isinstance(network, DistributedDataParallel) else network
    return train_step(
        network, optimizer, batch, torch.cat(model.anchors(64, 96)), **(settings | changed)
    )


def plain_sums(network: RetinaNet, batch: Batch) -> tuple[LossSums, torch.Tensor]:
    """The loss sums of each image, and its positives."""
    anchors = torch.cat(network.anchors(64, 96))
    slot_BA = match(anchors, batch.boxes_BG4, batch.labels_BG)
    with torch.no_grad():
        sums = forward_loss(network, batch, anchors, slot_BA, loss=LossSettings(), amp_dtype=None)
    return sums, (slot_BA >= 0).sum(dim=1)


class Ranks:
    """Threads that sum tensors as ranks do: each waits for all, in every call."""

    def __init__(self, ranks: int):
        self.tensors: list[torch.Tensor] = [torch.empty(0)] * ranks
        self.barrier = threading.Barrier(ranks, timeout=60)

    def sum_of(self, rank: int) -> Callable[[torch.Tensor], torch.Tensor]:
        def total(tensor: torch.Tensor) -> torch.Tensor:
            self.tensors[rank] = tensor
            self.barrier.wait()
            result = torch.stack(self.tensors).sum(dim=0)
            self.barrier.wait()
            return result

        return total

    def steps(
        self,
        networks: list[RetinaNet],
        shares: list[Batch],
        optimizers: list | None = None,
        **changed,
    ) -> list[StepReport]:
        reports: dict[int, StepReport] = {}
        optimizers = optimizers or [None] * len(shares)

        def work(rank: int) -> None:
            reports[rank] = report_of(
                networks[rank],
                shares[rank],
                optimizers[rank],
                ranks=len(shares),
                sum_over_ranks=self.sum_of(rank),
                **changed,
            )

        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(shares))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [reports[rank] for rank in range(len(shares))]


def gradients(network: RetinaNet) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in network.named_parameters()}


def test_a_few_steps_learn_two_pictures():
    network = toy_retinanet(norm="batch").train()
    optimizer = build_optimizer(
        network, name="adamw", learning_rate=1e-3, weight_decay=0.0, momentum=0.9
    )
    batch = collate(SCENES[:2])
    reports = [
        step(network, batch, optimizer, learning_rate=1e-3, clip_norm=10.0) for _ in range(15)
    ]
    assert reports[-1].classification < 0.5 * reports[0].classification
    assert reports[-1].box < 0.7 * reports[0].box
    assert all(report.positives == reports[0].positives > 0 for report in reports)


def test_the_report_is_the_sum_over_the_positives():
    network, batch = toy_retinanet(), collate(SCENES)
    sums, positives_B = plain_sums(network, batch)
    report = step(network, batch)
    assert report.positives == int(positives_B.sum()) > 4
    assert report.classification == pytest.approx(
        float(sums.classification_B.sum() / positives_B.sum())
    )
    assert report.box == pytest.approx(float(sums.box_B.sum() / positives_B.sum()))
    # 0.9 times the 100 it starts with, and a tenth of these.
    assert report.loss_normalizer == pytest.approx(90 + 0.1 * report.positives)
    squares = sum(float(gradient.square().sum()) for gradient in gradients(network).values())
    assert report.gradient_norm == pytest.approx(math.sqrt(squares), rel=1e-4)


def test_divisors_of_the_normalizers_image_and_moving_average():
    network, batch = toy_retinanet(), collate([*SCENES, scene(-1)])
    sums, positives_B = plain_sums(network, batch)
    for name in ("classification", "box"):
        sum_B = getattr(sums, name + "_B")
        by_image, average = (
            step(network, batch, loss=LossSettings(normalizer=kind), loss_normalizer=40.0)
            for kind in ("image", "moving_average")
        )
        # Four images and a filler; the third has no objects and is divided by one.
        expected = (
            sum(float(one) / max(int(own), 1) for one, own in zip(sum_B, positives_B, strict=True))
            / 4
        )
        assert getattr(by_image, name) == pytest.approx(expected, rel=1e-5)
        assert average.loss_normalizer == pytest.approx(36 + 0.1 * int(positives_B.sum()))
        assert getattr(average, name) == pytest.approx(
            float(sum_B.sum()) / average.loss_normalizer, rel=1e-5
        )


def test_the_loss_is_classification_plus_weighted_box():
    batch = collate(SCENES)
    found = []
    for box_weight in (1e-9, 1.0, 3.0):
        network = toy_retinanet()
        step(network, batch, loss=LossSettings(box_weight=box_weight))
        found.append(gradients(network))
    name = "box_head.output.weight"
    # The classes do not see the box weight; three times the weight is three times the gradient.
    assert torch.allclose(
        found[0]["class_head.output.weight"], found[2]["class_head.output.weight"]
    )
    assert torch.allclose(found[2][name], 3 * found[1][name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("cut", "normalizer"),
    [
        ([[0, 1], [2, 3]], "batch"),
        ([[1], [0, 2, 3]], "batch"),
        ([[1], [0, 2, 3]], "image"),
        ([[0, 1, 3], [2]], "moving_average"),
    ],
)
def test_the_mean_over_ranks_is_the_gradient_of_the_whole_batch(cut, normalizer):
    # DDP takes the mean over ranks. A rank with few or no objects must not weigh more than its
    # images, so all divide by the numbers of all.
    whole = toy_retinanet()
    loss = LossSettings(normalizer=normalizer)
    report = step(whole, collate(SCENES), loss=loss)
    shares = [collate([SCENES[i] for i in rank]) for rank in cut]
    networks = [toy_retinanet() for _ in shares]
    for its in (report.read() for report in Ranks(len(shares)).steps(networks, shares, loss=loss)):
        assert its.positives == report.positives and its.loss_normalizer == report.loss_normalizer
        assert its.classification == pytest.approx(
            report.classification, rel=1e-5
        ) and its.box == pytest.approx(report.box, rel=1e-5)
    parts = [gradients(network) for network in networks]
    for name, gradient in gradients(whole).items():
        assert torch.allclose(
            sum(part[name] for part in parts) / len(parts), gradient, rtol=1e-3, atol=1e-6
        ), name


@pytest.mark.parametrize(
    ("normalizer", "accumulate"), [("batch", 4), ("batch", 2), ("image", 2), ("moving_average", 2)]
)
def test_parts_of_a_batch_have_the_gradient_and_the_update_of_the_whole(normalizer, accumulate):
    """In float64, so that only the order of sums differs. Images hold 1, 2, 0 and 1 objects: no
    part may divide by its own.
    """
    networks, reports = [], []
    for parts in (1, accumulate):
        networks.append(toy_retinanet().double())
        optimizer = build_optimizer(
            networks[-1], name="sgd", learning_rate=0.1, weight_decay=1e-4, momentum=0.9
        )
        reports.append(
            step(
                networks[-1],
                collate(SCENES),
                optimizer,
                learning_rate=0.1,
                clip_norm=1.0,
                loss=LossSettings(normalizer=normalizer),
                accumulate=parts,
            )
        )
    whole = dict(networks[0].named_parameters())
    for name, parameter in networks[1].named_parameters():
        assert torch.allclose(parameter.grad, whole[name].grad, rtol=1e-6, atol=1e-12), name
        assert torch.allclose(parameter.detach(), whole[name].detach(), rtol=1e-6, atol=1e-12), name
    assert vars(reports[1]) == pytest.approx(vars(reports[0]), rel=1e-6)


def test_a_batch_is_split_in_order():
    batch = collate(SCENES)
    parts = split(batch, 2)
    assert [part.image_ids.tolist() for part in parts] == [[11, 12], [13, 14]]
    for name in batch.__dataclass_fields__:
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name))


def test_ranks_exchange_gradients_once_per_step():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        sent, found = [], []
        for accumulate in (1, 4):
            network = toy_retinanet().to(memory_format=torch.channels_last)
            with warnings.catch_warnings():
                warnings.filterwarnings(
                    "ignore", message=".*broadcast_buffers.*", category=FutureWarning
                )
                wrapped = DistributedDataParallel(
                    network, broadcast_buffers=False, gradient_as_bucket_view=True
                )
            buckets: list[int] = []

            # Without annotations: DDP compares them to types, and in this file they are strings.
            def count(_, bucket, buckets=buckets):
                buckets.append(bucket.buffer().numel())
                done = torch.futures.Future()
                done.set_result(bucket.buffer())
                return done

            wrapped.register_comm_hook(None, count)
            step(wrapped, collate(SCENES), accumulate=accumulate)
            sent.append(sum(buckets))
            found.append(gradients(network))
    finally:
        dist.destroy_process_group()
    assert sent == [sum(p.numel() for p in network.parameters())] * 2
    for name, gradient in found[0].items():
        assert torch.allclose(found[1][name], gradient, rtol=1e-3, atol=1e-6), name


def test_accumulate_must_divide_the_batch_and_is_not_part_of_the_identity():
    fields = {"data": {"train": "a", "val": "b"}, "training": {"batch_size": 12, "workers": 2}}
    with pytest.raises(
        ValidationError,
        match="training.accumulate 4: must divide the 6 images of a worker .*take a divisor of 6",
    ):
        TrainConfig.model_validate(fields | {"training": fields["training"] | {"accumulate": 4}})
    assert (
        TrainConfig.model_validate(
            fields | {"training": fields["training"] | {"accumulate": 3}}
        ).training.accumulate
        == 3
    )
    assert "accumulate" in EXECUTION


def test_fillers_change_nothing():
    plain, padded = toy_retinanet(), toy_retinanet()
    fillers = [scene(-1, (4, 6, 36, 20)), scene(-1)]
    one, two = step(plain, collate(SCENES)), step(padded, collate(SCENES + fillers))
    assert (one.positives, pytest.approx(one.classification, rel=1e-5)) == (
        two.positives,
        two.classification,
    )
    theirs = gradients(padded)
    for name, gradient in gradients(plain).items():
        assert torch.allclose(gradient, theirs[name], rtol=1e-3, atol=1e-6), name


def test_a_batch_without_objects_divides_by_one():
    network, batch = toy_retinanet(), collate([SCENES[2]])
    sums, positives_B = plain_sums(network, batch)
    report = step(network, batch)
    assert int(positives_B.sum()) == report.positives == 0 and report.box == 0
    assert report.classification == pytest.approx(float(sums.classification_B.sum()))


def test_gradients_do_not_pile_up():
    network, batch = toy_retinanet(), collate(SCENES)
    one, two = step(network, batch), step(network, batch)
    assert two.gradient_norm == pytest.approx(one.gradient_norm, rel=1e-4)


def test_clipping_limits_the_update():
    network = toy_retinanet()
    before = copy.deepcopy(dict(network.named_parameters()))
    report = step(
        network,
        collate(SCENES),
        torch.optim.SGD(network.parameters(), lr=9.0),
        learning_rate=0.5,
        clip_norm=0.01,
    )
    moved = math.sqrt(
        sum(
            float((p.detach() - before[name].detach()).square().sum())
            for name, p in network.named_parameters()
        )
    )
    # The gradient is cut to 0.01 and multiplied by the rate that the call gives, not the
    # optimiser's.
    assert report.gradient_norm > 0.01
    assert moved == pytest.approx(0.5 * 0.01, rel=1e-2)


def poison_weights(network: RetinaNet) -> None:
    network.class_head.output.bias.data[0] = float("inf")


def poison_gradient(network: RetinaNet) -> None:
    network.pyramid.p7.weight.register_hook(lambda gradient: gradient * float("nan"))


def nothing(network: RetinaNet) -> None:
    pass


def everything(network: RetinaNet, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Weights, running statistics and optimiser state, by name."""
    moments = {
        f"{i}.{name}": value
        for i, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }
    return copy.deepcopy({**network.state_dict(), **moments})


@pytest.mark.parametrize("optimiser", ["adamw", "sgd", "not fused"])
@pytest.mark.parametrize(
    ("poison", "sum_over_ranks", "blame"),
    [
        (poison_weights, lambda totals: totals, r"the loss of images \[77, 4321\] is not finite"),
        (
            poison_gradient,
            lambda totals: totals,
            r"the gradient .* is not finite, the loss of images \[77, 4321\] is",
        ),
        (
            nothing,
            lambda totals: totals * torch.tensor([float("nan"), 1.0]),
            r"another rank is not finite, the loss of images \[77, 4321\] is",
        ),
    ],
    ids=["loss", "gradient", "other rank"],
)
def test_a_non_finite_step_is_skipped(poison, sum_over_ranks, blame, optimiser):
    network = toy_retinanet(norm="batch").train()
    build = dict(learning_rate=0.1, weight_decay=0.1, momentum=0.9)
    if optimiser == "not fused":
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, fused=False)
    else:
        optimizer = build_optimizer(network, name=optimiser, **build)
    step(network, collate(SCENES), optimizer, learning_rate=1e-4)
    poison(network)
    before = everything(network, optimizer)
    assert (
        any("exp_avg" in name or "momentum_buffer" in name for name in before)
        and "backbone.stem.1.running_mean" in before
    )
    batch = collate([scene(77, (4, 6, 36, 20)), scene(4321)])
    report = report_of(
        network,
        batch,
        optimizer,
        learning_rate=0.1,
        sum_over_ranks=sum_over_ranks,
        loss_normalizer=40.0,
    )
    assert (
        not report.read().finite
        and float(report.loss_normalizer) == report.read().loss_normalizer == 40.0
    )
    error = nonfinite_loss(report, step=12, rank=3)
    assert re.match(f"step 12, rank 3: .*{blame}", str(error)) and str(
        pickle.loads(pickle.dumps(error))
    ) == str(error)
    after = everything(network, optimizer)
    assert before.keys() == after.keys() and all(
        torch.equal(value, after[name]) for name, value in before.items()
    )


@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
def test_a_skipped_step_leaves_no_trace(optimiser):
    """Also the very first one, before there are moments."""
    bad, networks = collate([dataclasses.replace(SCENES[0], image_id=9), SCENES[1]]), []
    for skipped in (False, True):
        network = toy_retinanet(norm="batch").train()
        optimizer = build_optimizer(
            network, name=optimiser, learning_rate=1e-2, weight_decay=1e-4, momentum=0.9
        )
        for batch in (
            ([bad] if skipped else [])
            + [collate(SCENES)] * 2
            + ([bad] if skipped else [])
            + [collate(SCENES)]
        ):
            # One image's logits become NaN, and with them the gradient of every weight.
            spoil = batch is bad
            hook = network.class_head.register_forward_hook(spoiled) if spoil else None
            report = report_of(network, batch, optimizer, learning_rate=1e-2)
            assert report.read().finite != spoil and report.blamed() == ([9] if spoil else [])
            if hook:
                hook.remove()
        networks.append(everything(network, optimizer))
    assert all(torch.equal(value, networks[1][name]) for name, value in networks[0].items())


def spoiled(_: object, __: object, logits_BaK: torch.Tensor) -> torch.Tensor:
    """Of two images the first's become NaN."""
    return logits_BaK * torch.tensor([float("nan"), 1.0]).view(2, 1, 1)


def test_a_non_finite_image_skips_the_step_on_all_ranks_and_its_own_rank_names_it():
    networks = [toy_retinanet(norm="batch").train() for _ in range(2)]
    optimizers = [
        build_optimizer(network, name="adamw", learning_rate=0.1, weight_decay=0.1, momentum=0.9)
        for network in networks
    ]
    before = [everything(*pair) for pair in zip(networks, optimizers, strict=True)]
    hook = networks[1].class_head.register_forward_hook(spoiled)
    shares = [collate(SCENES[:2]), collate(SCENES[2:])]
    reports = Ranks(2).steps(networks, shares, optimizers, learning_rate=0.1)
    assert [report.read().finite for report in reports] == [False, False]
    assert [report.blamed() for report in reports] == [[], [13]]
    for pair, state in zip(zip(networks, optimizers, strict=True), before, strict=True):
        after = everything(*pair)
        assert all(torch.equal(value, after[name]) for name, value in state.items())
    hook.remove()
    assert all(
        report.read().finite
        for report in Ranks(2).steps(networks, shares, optimizers, learning_rate=0.1)
    )


class NoAnswers(TorchDispatchMode):
    """Fails where the host would wait for a number, or for how many there are."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        by_mask = name in ("index", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        assert (
            name
            not in (
                "_local_scalar_dense",
                "nonzero",
                "is_nonzero",
                "masked_select",
                "unique",
                "_unique2",
                "equal",
            )
            and not by_mask
        ), name
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "loss",
    [
        LossSettings(),
        LossSettings(normalizer="moving_average", box="ciou"),
        LossSettings(normalizer="image", classification="cross_entropy"),
    ],
    ids=lambda loss: loss.normalizer,
)
def test_a_step_does_not_wait_for_the_device(loss):
    network, batch = toy_retinanet(norm="batch").train(), collate(SCENES)
    optimizer = build_optimizer(
        network, name="adamw", learning_rate=0.1, weight_decay=0.1, momentum=0.9
    )
    report = report_of(network, batch, optimizer, accumulate=2, loss=loss)
    with NoAnswers():
        again = report_of(
            network,
            batch,
            optimizer,
            accumulate=2,
            loss_normalizer=report.loss_normalizer,
            loss=loss,
        )
        with pytest.raises(AssertionError, match="_local_scalar_dense"):
            float(again.loss_normalizer)
    assert again.read().finite


def test_bfloat16_is_close_to_float32():
    full, half = (
        step(toy_retinanet(), collate(SCENES)),
        step(toy_retinanet(), collate(SCENES), amp_dtype=torch.bfloat16),
    )
    # 8 bits of mantissa: 0.4 % a rounding.
    assert half.classification == pytest.approx(full.classification, rel=0.05)
    assert half.box == pytest.approx(full.box, rel=0.05)
    assert half.positives == full.positives


def test_the_thresholds_of_the_loss_are_those_of_matching() -> None:
    network, batch = toy_retinanet(), collate(SCENES)
    anchors = torch.cat(network.anchors(64, 96))
    for positive, negative in ((0.5, 0.4), (0.3, 0.2), (0.7, 0.7)):
        slots = match(anchors, batch.boxes_BG4, batch.labels_BG, high=positive, low=negative)
        loss = LossSettings(positive_iou=positive, negative_iou=negative)
        assert step(network, batch, loss=loss).positives == int((slots >= 0).sum())


def test_the_threshold_of_background_is_not_above_that_of_an_object() -> None:
    with pytest.raises(ValidationError, match=r"loss.negative_iou 0.6: must be at most loss.posit"):
        LossConfig(negative_iou=0.6)
    assert LossConfig(negative_iou=0.5).positive_iou == 0.5
