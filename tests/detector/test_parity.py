"""The same weights in torchvision's RetinaNet and in ours give the same logits, offsets, anchors,
losses and detections. torchvision is the oracle, loaded through `load_pretrained` from a file of
each of its versions and generations of names.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import retinanet_resnet50_fpn, retinanet_resnet50_fpn_v2
from torchvision.models.detection.image_list import ImageList

from detector.anchors import IGNORED, match
from detector.choices import LossSettings
from detector.decode import Detections, decode_detections
from detector.loss import detection_loss, image_weights
from detector.model import PIXEL_MEAN, PIXEL_STD, RetinaNet
from detector.weights import load_pretrained

CLASSES = 3
FITTING = {1: {"p6_from": "p5"}, 2: {"p6_from": "c5", "head_norm": "group"}}


@torch.no_grad()
def away_from_start(network: nn.Module) -> nn.Module:
    """Every vector and head moved, so that no two weights can be exchanged unseen, and the outputs
    brought to a trained network's range.
    """
    generator = torch.Generator().manual_seed(3)
    for name, value in network.state_dict().items():
        if name.endswith("running_var") or (name.endswith("weight") and value.ndim == 1):
            value.copy_(0.5 + torch.rand(value.shape, generator=generator))
        elif name.endswith(("running_mean", "bias")):
            value.add_(0.1 * torch.randn(value.shape, generator=generator))
        elif name.startswith("head"):
            value.copy_(torch.randn(value.shape, generator=generator) * 0.02)
    outputs, _, _ = run_torchvision(network.eval(), pixels(128, 128, seed=1))
    network.head.classification_head.cls_logits.weight.mul_(2.0 / outputs["cls_logits"].std())
    network.head.regression_head.bbox_reg.weight.mul_(0.5 / outputs["bbox_regression"].std())
    return network


def first_generation(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's names -> those of its published COCO file: bare laterals and towers, frozen
    normalisation without a count of batches.
    """
    renamed = {}
    for name, value in state.items():
        if ".fpn.inner_blocks." in name or ".fpn.layer_blocks." in name:
            name = name.replace(".0.weight", ".weight").replace(".0.bias", ".bias")
        for i in range(4):
            if f"_head.conv.{i}.0." in name:
                # Each convolution was followed by a ReLU, which had a number too.
                name = name.replace(f"conv.{i}.0.", f"conv.{2 * i}.")
                break
        if not name.endswith("num_batches_tracked"):
            renamed[name] = value
    return renamed


@pytest.fixture(scope="module", params=[1, 2], ids=["v1", "v2"])
def pair(request, tmp_path_factory) -> tuple[nn.Module, RetinaNet]:
    """torchvision's network and ours with its weights."""
    torch.manual_seed(0)
    build = {1: retinanet_resnet50_fpn, 2: retinanet_resnet50_fpn_v2}[request.param]
    theirs = away_from_start(build(weights=None, weights_backbone=None, num_classes=CLASSES))
    path = str(tmp_path_factory.mktemp("weights") / "retinanet.pth")
    torch.save(theirs.state_dict(), path)
    ours = RetinaNet(
        classes=CLASSES, norm="frozen", convention="torchvision", **FITTING[request.param]
    ).eval()
    report = load_pretrained(ours, path)
    assert report.source == "torchvision RetinaNet" and report.loaded == len(ours.state_dict())
    assert (report.reinitialised, report.missing, report.unused, report.notes) == ((), (), (), ())
    return theirs, ours


def pixels(height: int, width: int, seed: int, batch: int = 2) -> Tensor:
    return torch.randint(
        0,
        256,
        (batch, 3, height, width),
        generator=torch.Generator().manual_seed(seed),
        dtype=torch.uint8,
    )


@torch.no_grad()
def run_torchvision(
    network: nn.Module, images: Tensor
) -> tuple[dict[str, Tensor], list[Tensor], list[int]]:
    """Head outputs, anchors of each image and the anchors of each level, from the canvas that we
    see, so that its resizing stays out.
    """
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) / 255 for values in (PIXEL_MEAN, PIXEL_STD))
    canvas = (images / 255 - mean) / std
    features = list(network.backbone(canvas).values())
    anchors = network.anchor_generator(
        ImageList(canvas, [tuple(images.shape[2:])] * len(images)), features
    )
    return network.head(features), anchors, [9 * f.shape[2] * f.shape[3] for f in features]


def their_detections(
    network: nn.Module,
    outputs: dict[str, Tensor],
    anchors: list[Tensor],
    levels: list[int],
    sizes: list[tuple[int, int]],
):
    split = {name: list(value.split(levels, dim=1)) for name, value in outputs.items()}
    return network.postprocess_detections(split, [list(a.split(levels)) for a in anchors], sizes)


def assert_same(ours: Detections, theirs: dict[str, Tensor], *, tolerance: float = 1e-4) -> None:
    """As many, and each has its like: equal scores may stand in any order. Boxes to `tolerance` of
    the canvas' 256 px, scores to `tolerance`.
    """
    assert len(ours.scores_N) == len(theirs["scores"])
    assert (ours.scores_N[1:] <= ours.scores_N[:-1]).all()
    mine = torch.cat(
        [
            torch.from_numpy(ours.boxes_N4) / 256,
            torch.from_numpy(ours.scores_N)[:, None],
            torch.from_numpy(ours.labels_N)[:, None],
        ],
        1,
    )
    other = torch.cat(
        [theirs["boxes"] / 256, theirs["scores"][:, None], theirs["labels"][:, None]], 1
    )
    alike = (mine[:, None] - other[None]).abs().amax(dim=2) < tolerance
    assert alike.any(dim=1).all() and alike.any(dim=0).all()


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(128, 256), (64, 96), (160, 128)])
def test_logits_and_offsets(pair, height, width):
    theirs, ours = pair
    images = pixels(height, width, seed=height)
    expected, _, _ = run_torchvision(theirs, images)
    logits, offsets = ours(images)
    # Both far from constant, so that 1e-4 says something.
    assert logits.std() > 0.2 and offsets.std() > 0.2
    assert (logits - expected["cls_logits"]).abs().max() < 1e-4
    assert (offsets - expected["bbox_regression"]).abs().max() < 1e-4


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(128, 128), (256, 128), (96, 160), (224, 64)])
def test_anchors_and_detections(pair, height, width):
    theirs, ours = pair
    images = pixels(height, width, seed=width)
    outputs, their_anchors, levels = run_torchvision(theirs, images)
    anchors = ours.anchors(height, width)
    assert all(torch.equal(torch.cat(anchors), each) for each in their_anchors)
    sizes = [(height, width), (height - 40, width - 25)]
    expected = their_detections(theirs, outputs, their_anchors, levels, sizes)
    found = decode_detections(
        *ours(images), anchors, torch.tensor(sizes).float(), max_detections=300
    )
    for one, other in zip(found, expected, strict=True):
        assert len(one.scores_N) > 20
        assert_same(one, other)


SIDE = 128
LEVELS = [9 * n * n for n in (16, 8, 4, 2, 1)]


def outputs_of(seed: int, *, spread: float, batch: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, sum(LEVELS), CLASSES, generator=generator) * spread - 3
    return {
        "cls_logits": logits,
        "bbox_regression": torch.randn(batch, sum(LEVELS), 4, generator=generator),
    }


@torch.no_grad()
@pytest.mark.parametrize("seed", range(4))
def test_losses(pair, seed):
    theirs, ours = pair
    generator = torch.Generator().manual_seed(seed)
    corners, sides = (
        120 * torch.rand(9, 2, generator=generator),
        1 + 127 * torch.rand(9, 2, generator=generator),
    )
    anywhere = torch.cat([corners, (corners + sides).clamp(max=128)], dim=1).tolist()
    pixel = [[x, y, x + 1, y + 1] for x, y in ((0, 0), (127, 127), (40 + seed, 61))]
    # Nothing; single pixels; objects anywhere; two in one place, of which each anchor takes the
    # same one, over one that fills the canvas.
    boxes = [[], pixel, anywhere, [[20, 30, 70, 60], [20, 30, 70, 60], [0, 0, 128, 128]]]
    targets = [
        {
            "boxes": torch.tensor(its).reshape(-1, 4).float(),
            "labels": torch.arange(len(its)) % CLASSES,
        }
        for its in boxes
    ]
    boxes_BG4, labels_BG = torch.zeros(4, 16, 4), torch.full((4, 16), -1)
    for i, target in enumerate(targets):
        boxes_BG4[i, : len(target["boxes"])], labels_BG[i, : len(target["boxes"])] = (
            target["boxes"],
            target["labels"],
        )

    anchors_A4 = torch.cat(ours.anchors(SIDE, SIDE))
    theirs_of = ours_of = outputs_of(seed, spread=2.0, batch=4)
    if seed == 0:  # of the networks themselves
        images = pixels(SIDE, SIDE, seed=0, batch=4)
        theirs_of, ours_of = (
            run_torchvision(theirs, images)[0],
            dict(zip(theirs_of, ours(images), strict=True)),
        )
    expected = theirs.compute_loss(targets, theirs_of, [anchors_A4] * 4)

    slot_BA = match(anchors_A4, boxes_BG4, labels_BG)
    kind = theirs.head.regression_head._loss_type  # l1 in the first version, giou in the second
    levels = [[value] for value in ours_of.values()]
    sums = detection_loss(
        *levels,
        anchors_A4,
        boxes_BG4,
        labels_BG,
        slot_BA,
        settings=LossSettings(box=kind, beta=1.0),
    )
    positives_B = (slot_BA >= 0).sum(dim=1).float()
    assert positives_B[0] == 0 and (positives_B[1:] > 0).all() and (slot_BA == IGNORED).any()
    totals = dict(positives=positives_B.sum(), images=torch.tensor(4.0), average=torch.tensor(1.0))
    weights_B = image_weights(positives_B, **totals, normalizer="image")
    for found_B, name in (
        (sums.classification_B, "classification"),
        (sums.box_B, "bbox_regression"),
    ):
        assert float(expected[name]) > 0.1
        assert float((weights_B * found_B).sum()) == pytest.approx(float(expected[name]), rel=1e-4)


def compare(pair, outputs: dict[str, Tensor], sizes: list[tuple[int, int]]) -> list[Detections]:
    theirs, ours = pair
    anchors = ours.anchors(SIDE, SIDE)
    expected = their_detections(theirs, outputs, [torch.cat(anchors)] * len(sizes), LEVELS, sizes)
    found = decode_detections(
        outputs["cls_logits"],
        outputs["bbox_regression"],
        anchors,
        torch.tensor(sizes).float(),
        max_detections=300,
    )
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)
    return found


@pytest.mark.parametrize("seed", range(4))
def test_detections_of_random_outputs(pair, seed):
    # More candidates than 1,000 on P3, and pictures that end inside the canvas, one after a single
    # pixel.
    found = compare(pair, outputs_of(seed, spread=2.0), [(128, 128), (77, 101), (1, 1)])
    assert len(found[0].scores_N) > 100


def test_detections_where_there_are_none(pair):
    outputs = outputs_of(0, spread=0.0)
    # sigmoid(-3) = 0.047 everywhere is below the threshold of 0.05.
    assert [len(found.scores_N) for found in compare(pair, outputs, [(128, 128)] * 3)] == [0, 0, 0]
    outputs["cls_logits"][1, 7, 2] = 5.0
    assert [len(found.scores_N) for found in compare(pair, outputs, [(128, 128)] * 3)] == [0, 1, 0]


def test_detections_of_tiny_and_huge_boxes(pair):
    outputs = outputs_of(5, spread=2.0)
    # exp(-4) makes 32 px 0.6 px; exp(9) is cut at 62.5 times the anchor.
    outputs["bbox_regression"][0, :, 2:] = -4.0
    outputs["bbox_regression"][1, :, 2:] = 9.0
    outputs["bbox_regression"][2] *= 30
    compare(pair, outputs, [(128, 128)] * 3)


def test_detections_with_equal_scores(pair):
    outputs = outputs_of(6, spread=2.0)
    # The classes of an anchor tie, in the second image with no other detection beside.
    outputs["cls_logits"][:, :, 1] = outputs["cls_logits"][:, :, 0]
    outputs["cls_logits"][1] = -9.0
    # P3's squares of 32 px at rows and columns 4 apart lie side by side: equal scores that do not
    # overlap. Anchor 3 of 9 is ratio 1, scale 1.
    for row in (2, 6, 10):
        for column in (2, 6, 10):
            outputs["cls_logits"][1, 9 * (16 * row + column) + 3] = 1.0
    outputs["bbox_regression"][1] = 0.0
    found = compare(pair, outputs, [(128, 128)] * 3)
    assert len(found[1].scores_N) == 27 and len(set(found[1].scores_N.tolist())) == 1


@torch.no_grad()
def test_the_published_names_and_epsilon(tmp_path):
    """torchvision's COCO file of its first version: older names, and frozen normalisation that adds
    nothing to the variance.
    """
    torch.manual_seed(1)
    theirs = away_from_start(
        retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=CLASSES)
    )
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            # Small variances, beside which 1e-5 would show, and outputs that stay as they were.
            module.eps = 0.0
            module.running_var.mul_(1e-3)
            module.weight.mul_(1e-3**0.5)
    path = str(tmp_path / "coco.pth")
    torch.save(first_generation(theirs.state_dict()), path)
    ours = RetinaNet(classes=CLASSES, norm="frozen", p6_from="p5", convention="torchvision").eval()
    report = load_pretrained(ours, path)
    assert (report.loaded, report.missing, report.unused, report.notes) == (
        len(ours.state_dict()),
        (),
        (),
        (),
    )
    images = pixels(64, 64, seed=9, batch=1)
    expected, _, _ = run_torchvision(theirs, images)
    logits, offsets = ours(images)
    assert (logits - expected["cls_logits"]).abs().max() < 1e-4
    assert (offsets - expected["bbox_regression"]).abs().max() < 1e-4
