"""The dense network: shapes, start, normalisation choices, and torchvision's RetinaNet as the
oracle of its arithmetic.
"""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
import torch.distributed as dist
import torchvision
from torch.nn.parallel import DistributedDataParallel
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from cluster.runs.config import TrainConfig
from detector.anchors import level_shapes
from detector.backbone import BACKBONES, NORMS, Backbone, FrozenBatchNorm
from detector.model import PIXEL_MEAN, PIXEL_STD, Head, RetinaNet
from detector.model_config import ModelConfig
from tests.detector.toy import toy_backbones


def pictures(batch: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(
        0,
        256,
        (batch, 3, height, width),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(seed),
    )


@pytest.fixture(scope="module", autouse=True)
def _toys():
    with toy_backbones():
        yield


def small_net(**changed) -> RetinaNet:
    torch.manual_seed(0)
    return RetinaNet(**{"classes": 5, "backbone": "toy", "width": 64} | changed)


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 96)])
def test_one_output_for_each_anchor(height, width):
    net = small_net().eval()
    logits, deltas = net(pictures(2, height, width))
    # 64 x 64: 9 x (64 + 16 + 4 + 1 + 1) = 774; 64 x 96: 9 x (8 * 12 + 4 * 6 + 2 * 3 + 1 * 2 + 1 *
    # 1) = 9 x 129 = 1161.
    expected = {64: 774, 96: 1161}[width]
    assert logits.shape == (2, expected, 5) and deltas.shape == (2, expected, 4)
    levels = net.anchors(height, width)
    assert [len(level) for level in levels] == [
        9 * rows * columns for rows, columns in level_shapes(height, width)
    ]
    assert sum(len(level) for level in levels) == expected


@torch.no_grad()
@pytest.mark.parametrize(
    "strides", [(4, 8, 16, 32, 64, 128), (4, 8, 16), (8, 16, 32), (8, 16, 32, 64)]
)
@pytest.mark.parametrize("p6_from", ["c5", "p5"])
def test_strides_choose_the_levels(strides, p6_from):
    net = small_net(
        strides=strides, base_sizes=[4 * stride for stride in strides], p6_from=p6_from
    ).eval()
    logits, deltas = net(pictures(1, 64, 96))
    levels = net.anchors(64, 96)
    # Side 4 strides: on P2 16 px, on P3 32 px; the first anchor of a level has its centre at 0, 0.
    assert [float(level[3, 2] - level[3, 0]) for level in levels] == [
        4.0 * stride for stride in strides
    ]
    assert logits.shape[1] == deltas.shape[1] == sum(len(level) for level in levels)
    assert logits.shape[1] == 9 * sum(
        math.ceil(64 / stride) * math.ceil(96 / stride) for stride in strides
    )


@pytest.mark.parametrize("strides", [(4, 8, 16), (8,), (4, 8, 16, 32, 64, 128)])
def test_every_weight_learns_at_any_choice_of_levels(strides):
    net = small_net(strides=strides, base_sizes=[4 * stride for stride in strides])
    logits, deltas = net(pictures(2, 64, 64))
    (logits.square().sum() + deltas.square().sum()).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_level_without_anchors_is_refused():
    with pytest.raises(ValueError, match="5 levels have strides.*one size a stride"):
        RetinaNet(classes=1, backbone="resnet18", base_sizes=(32, 64))


@torch.no_grad()
def test_starts_at_the_prior():
    # Section 4.1: every anchor starts as an object with probability about pi, so that the first
    # losses are not swamped by background.
    for prior in (0.01, 0.3):
        logits, deltas = small_net(prior=prior).eval()(pictures(2, 64, 64))
        assert float(logits.sigmoid().mean()) == pytest.approx(prior, rel=0.1)
        assert float(deltas.abs().mean()) < 0.1


@torch.no_grad()
def test_images_of_a_batch_do_not_mix():
    net = small_net(head_norm="group").eval()
    images = pictures(3, 64, 64)
    together, alone = net(images)[0], net(images[1:2])[0]
    assert torch.allclose(together[1:2], alone, atol=1e-4)


@torch.no_grad()
def test_pixels_may_be_bytes_or_floats():
    net = small_net().eval()
    images = pictures(1, 64, 64)
    assert torch.equal(net(images)[0], net(images.float())[0])


def test_every_weight_learns():
    net = small_net(head_norm="group", p6_from="c5")
    logits, deltas = net(pictures(2, 64, 64))
    (logits.square().sum() + deltas.square().sum()).backward()
    without = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_frozen_norm_has_nothing_to_learn_and_does_not_drift():
    net = small_net(norm="frozen").train()
    names = [name for name, _ in net.named_parameters()]
    assert not [name for name in names if "bn" in name]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net(pictures(2, 64, 64))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_folded_norm_by_hand():
    norm = FrozenBatchNorm(2)
    norm.scale.copy_(torch.tensor([2.0, -1.0]))
    norm.bias.copy_(torch.tensor([0.5, 0.0]))
    x = torch.tensor([1.0, 3.0]).view(1, 2, 1, 1).to(torch.bfloat16)
    # 1 * 2 + 0.5 and 3 * -1 + 0.
    assert norm(x).flatten().tolist() == [2.5, -3.0]
    assert norm(x).dtype == torch.bfloat16


@pytest.mark.parametrize("frozen", range(6))
def test_frozen_stages_neither_learn_nor_drift(frozen):
    net = small_net(frozen_stages=frozen).train()
    stages = ["backbone." + name for name in ("stem", "layer1", "layer2", "layer3", "layer4")][
        :frozen
    ]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    levels = net.backbone(pictures(2, 64, 64).float())
    assert [level.requires_grad for level in levels] == [frozen < 3, frozen < 4, frozen < 5]
    (net(pictures(2, 64, 64))[0].square().sum()).backward()
    for name, p in net.backbone.named_parameters(prefix="backbone"):
        assert (
            (p.grad is None) == name.startswith(tuple(stages)) if stages else p.grad is not None
        ), name
    drifted = {
        name for name, value in net.state_dict().items() if not torch.equal(value, before[name])
    }
    # Running statistics of what is trained move, those of fixed stages do not.
    assert not [name for name in drifted if stages and name.startswith(tuple(stages))]
    assert bool(drifted) == (frozen < 5)


def test_a_bottleneck_halves_in_the_convolution_that_was_asked_for():
    with torch.device("meta"):
        torchvisions, detectron2s = (
            Backbone("resnet50", norm="frozen"),
            Backbone("resnet50", norm="frozen", stride_in="1x1"),
        )
    assert [c.stride for c in (torchvisions.layer3[0].conv1, torchvisions.layer3[0].conv2)] == [
        (1, 1),
        (2, 2),
    ]
    assert [c.stride for c in (detectron2s.layer3[0].conv1, detectron2s.layer3[0].conv2)] == [
        (2, 2),
        (1, 1),
    ]
    # The first block of layer1 does not halve at all.
    assert detectron2s.layer1[0].conv1.stride == detectron2s.layer1[0].conv2.stride == (1, 1)
    images = torch.empty(1, 3, 64, 96, device="meta")
    assert [level.shape for level in detectron2s(images)] == [
        level.shape for level in torchvisions(images)
    ]


def test_group_norm_gives_the_same_for_a_batch_of_one():
    net = small_net(norm="group", head_norm="group").train()
    together, alone = net(pictures(2, 64, 64))[0], net(pictures(2, 64, 64)[:1])[0]
    assert torch.allclose(together[:1], alone, atol=1e-4)


def test_towers_with_normalisation_have_no_bias():
    tower = small_net(head_norm="group").class_head.tower
    assert [name for name, _ in tower.named_parameters()][:3] == ["0.weight", "1.weight", "1.bias"]


def test_frozen_stages_train_in_parallel(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        net = small_net(norm="frozen", frozen_stages=3).to(memory_format=torch.channels_last)
        network = DistributedDataParallel(
            net, broadcast_buffers=False, gradient_as_bucket_view=True
        )
        network.train()
        for _ in range(2):
            # A parameter that the reducer waits for in vain would raise in the second step.
            logits, offsets = network(pictures(2, 64, 64))
            (logits.square().sum() + offsets.square().sum()).backward()
        assert (
            net.backbone.layer2[0].conv1.weight.grad is None
            and net.backbone.layer3[0].conv1.weight.grad.any()
        )
    finally:
        dist.destroy_process_group()


def test_synchronised_statistics_need_gpus():
    with pytest.raises(ValueError, match="model.norm sync.*gpus_per_worker 1"):
        TrainConfig(data={"train": "t", "val": "v"}, model={"norm": "sync"})
    assert (
        TrainConfig(
            data={"train": "t", "val": "v"}, model={"norm": "sync"}, training={"gpus_per_worker": 1}
        ).model.norm
        == "sync"
    )


def test_a_backbone_without_bottlenecks_has_no_stride_to_move():
    with pytest.raises(ValueError, match="model.stride_in 1x1.*resnet34"):
        ModelConfig(backbone="resnet34", stride_in="1x1")


def test_the_code_builds_what_the_configuration_takes():
    assert tuple(name for name in BACKBONES if "toy" not in name) == get_args(
        ModelConfig.model_fields["backbone"].annotation
    )
    assert set(NORMS) == set(get_args(ModelConfig.model_fields["norm"].annotation))


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("backbone", "resnet19"),
        ("backbone", "vit_b_16"),
        ("norm", "layer"),
        ("stride_in", "2x2"),
        ("head_norm", "batch"),
        ("p6_from", "c6"),
    ],
)
def test_an_unknown_part_is_refused(part, value):
    # As from the description of a package that another version wrote; the configuration refuses it
    # by itself.
    with pytest.raises(ValueError, match=f"^{part} '{value}': must be one of "):
        small_net(**{part: value})


def test_a_net_without_classes_is_refused():
    with pytest.raises(ValueError, match="classes 0"):
        RetinaNet(classes=0)


@torch.no_grad()
@pytest.mark.parametrize("p6_from", ["p5", "c5"])
def test_same_outputs_as_torchvision(p6_from):
    torch.manual_seed(1)
    ours = RetinaNet(classes=4, backbone="resnet18", width=256, p6_from=p6_from).eval()
    trunk = torchvision.models.resnet18(weights=None)
    extra = LastLevelP6P7(256 if p6_from == "p5" else 512, 256)
    pyramid = _resnet_fpn_extractor(trunk, 5, returned_layers=[2, 3, 4], extra_blocks=extra).eval()
    head = RetinaNetHead(256, num_anchors=9, num_classes=4)
    if p6_from == "c5":
        # torchvision feeds P6 from C5 where the channels say so.
        assert not extra.use_P5
    copy_weights(ours, pyramid, head)
    images = pictures(2, 64, 96)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) / 255 for values in (PIXEL_MEAN, PIXEL_STD))
    expected = head(list(pyramid((images / 255 - mean) / std).values()))
    logits, deltas = ours(images)
    assert torch.allclose(logits, expected["cls_logits"], atol=1e-4)
    assert torch.allclose(deltas, expected["bbox_regression"], atol=1e-4)


def copy_weights(ours: RetinaNet, pyramid: torch.nn.Module, head: RetinaNetHead) -> None:
    """Our weights into torchvision's modules, by the names that torchvision gives them."""
    state = {
        f"body.{name.replace('stem.0', 'conv1').replace('stem.1', 'bn1')}": value
        for name, value in ours.backbone.state_dict().items()
    }
    for i in range(3):
        state |= {
            f"fpn.inner_blocks.{i}.0.{k}": v
            for k, v in ours.pyramid.lateral[i].state_dict().items()
        }
        state |= {
            f"fpn.layer_blocks.{i}.0.{k}": v for k, v in ours.pyramid.output[i].state_dict().items()
        }
    for name in ("p6", "p7"):
        state |= {
            f"fpn.extra_blocks.{name}.{k}": v
            for k, v in getattr(ours.pyramid, name).state_dict().items()
        }
    pyramid.load_state_dict(state)
    for theirs, our_head, output in (
        (head.classification_head, ours.class_head, "cls_logits"),
        (head.regression_head, ours.box_head, "bbox_reg"),
    ):
        # Every weight away from its start, so that a head read in the wrong order shows.
        for p in our_head.parameters():
            p.normal_(std=0.02)
        weights = {f"{output}.{k}": v for k, v in our_head.output.state_dict().items()}
        for i, convolution in enumerate(
            m for m in our_head.tower if isinstance(m, torch.nn.Conv2d)
        ):
            weights |= {f"conv.{i}.0.{k}": v for k, v in convolution.state_dict().items()}
        theirs.load_state_dict(weights)


@pytest.mark.parametrize("head_norm", ["none", "group"])
def test_outputs_by_level_joined_are_the_outputs(head_norm):
    model, images = (
        small_net(head_norm=head_norm),
        torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8),
    )
    sizes = [len(level) for level in model.anchors(64, 96)]
    for levels, whole in zip(model(images, by_level=True), model(images), strict=True):
        assert [level.shape[1] for level in levels] == sizes
        assert torch.equal(torch.cat(levels, dim=1), whole)


@pytest.mark.parametrize("outputs", [3, 8, 4])
def test_aligned_channels_change_neither_outputs_nor_gradients(outputs):
    torch.manual_seed(0)
    head, feature = (
        Head(outputs, 6, width=32, norm="none").double(),
        torch.randn(2, 32, 5, 7, dtype=torch.float64),
    )
    found = []
    for aligned in (False, True):
        head.zero_grad()
        rows = head(feature, aligned=aligned)
        (
            rows * torch.linspace(-1, 1, rows.numel(), dtype=torch.float64).view(rows.shape)
        ).sum().backward()
        found.append([rows, *(p.grad.clone() for p in head.parameters())])
    assert found[1][0].stride(1) == 8
    assert all(
        torch.allclose(one, other, rtol=1e-12, atol=1e-14)
        for one, other in zip(*found, strict=True)
    )
