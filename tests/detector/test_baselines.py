"""The baselines learn from a Batch and answer with Detections as RetinaNet does, wherever the
picture lies on its canvas.
"""

from __future__ import annotations

import dataclasses
import inspect

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cluster.runs.config import TrainConfig
from detector.baseline import Baseline
from detector.baseline_step import baseline_step
from detector.baselines import NETWORKS, build_model
from detector.batch import Batch, Sample, collate
from detector.checkpoint import contiguous
from detector.choices import BASELINE_PARTS
from detector.loss import FIRST_AVERAGE
from detector.model import RetinaNet
from detector.model_config import AnchorConfig, ModelConfig
from detector.optimizer import build_optimizer
from detector.predict import Predictor, write_package
from detector.step import StepNumbers
from tests.detector.toy import toy_backbones

DECODE = dict(score_threshold=0.05, top_per_level=1000, nms_threshold=0.5, max_detections=20)
CANVAS = (96, 128)
both = pytest.mark.parametrize("architecture", ["faster_rcnn", "fcos"])
each = pytest.mark.parametrize("architecture", NETWORKS)


@pytest.fixture(scope="module", autouse=True)
def _toys():
    with toy_backbones():
        yield


def net(architecture: str, **changed) -> Baseline:
    torch.manual_seed(0)
    parts = dict(
        classes=2,
        backbone="toy",
        width=64,
        norm="batch",
        base_sizes=(8, 16, 32, 64, 128),
        p6_from="p5",
        head_norm="none",
    )
    return (
        build_model(architecture=architecture, **parts | changed)
        .to(memory_format=torch.channels_last)
        .train()
    )


def scene(
    image_id: int,
    *boxes: tuple[int, int, int, int],
    size: tuple[int, int] = CANVAS,
    labels: list[int] | None = None,
) -> Sample:
    """Grey noise with a bright rectangle for each box, of label 0 where wide and 1 where tall;
    outside `size` the canvas is padding.
    """
    pixels = np.full((*CANVAS, 3), (124, 116, 104), np.uint8)
    pixels[: size[0], : size[1]] = np.random.default_rng(abs(image_id)).integers(
        80, 120, (*size, 3), dtype=np.uint8
    )
    for x1, y1, x2, y2 in boxes:
        pixels[y1:y2, x1:x2] = 230
    found = [int(y2 - y1 > x2 - x1) for x1, y1, x2, y2 in boxes] if labels is None else labels
    return Sample(
        torch.from_numpy(pixels).permute(2, 0, 1),
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(found, np.int64),
        size,
        image_id,
    )


SCENES = [scene(11, (20, 16, 84, 48)), scene(12, (10, 20, 30, 70), size=(80, 100)), scene(13)]


def step(
    network: torch.nn.Module,
    batch: Batch,
    optimizer: torch.optim.Optimizer | None = None,
    **changed,
) -> StepNumbers:
    torch.manual_seed(1)  # Faster R-CNN samples its proposals
    optimizer = optimizer or torch.optim.SGD(network.parameters(), lr=0.0)
    return baseline_step(
        network,
        optimizer,
        batch,
        **dict(learning_rate=0.0, clip_norm=1e9, box_weight=1.0, amp_dtype=None) | changed,
    ).read()


# Faster R-CNN on C4 learns slower.
@pytest.mark.parametrize("architecture", [name for name in NETWORKS if name != "faster_rcnn_c4"])
def test_a_few_steps_learn(architecture):
    network, batch = net(architecture, norm="group"), collate(SCENES[:2])
    optimizer = build_optimizer(
        network, name="adamw", learning_rate=3e-4, weight_decay=0.0, momentum=0.9
    )
    reports = [
        step(network, batch, optimizer, learning_rate=3e-4, clip_norm=10.0) for _ in range(4)
    ]
    first, last = (report.classification + report.box for report in (reports[0], reports[-1]))
    assert last < 0.8 * first and all(report.positives == 2 for report in reports)


def class_biases(network: Baseline, architecture: str) -> list[torch.nn.Parameter]:
    """The biases of the layers that say the class."""
    detector = network.detector
    if architecture.startswith("faster_rcnn"):
        return [detector.roi_heads.box_predictor.cls_score.bias]
    if architecture in ("ssd", "dssd"):
        return [layer.bias for layer in detector.head.classification_head.module_list]
    if architecture == "fcos":
        return [detector.head.classification_head.cls_logits.bias]
    return [(detector.output if architecture == "yolov2" else detector.classes).bias]


def classes_of(biases: torch.Tensor, architecture: str) -> list[torch.Tensor]:
    """Which of the biases belong to label 0, and which to label 1."""
    outputs = {"fcos": 2, "yolov2": 7}.get(architecture, 3)
    # Before the classes: YOLOv2's box and objectness, the background of others; behind them: DETR's
    # class of no object.
    first = {"fcos": 0, "yolov2": 5, "detr": 0, "detr_dc5": 0}.get(architecture, 1)
    places = torch.arange(len(biases))
    return [places[places % outputs == first + label] for label in (0, 1)]


@each
def test_labels_mean_the_same_on_the_way_in_and_out(architecture):
    gradients, batch = [], collate(SCENES[:1])
    for label in (0, 1):
        network = net(architecture)
        biases = class_biases(network, architecture)
        step(network, collate([scene(11, (20, 16, 84, 48), labels=[label])]))
        of_classes = [classes_of(layer, architecture) for layer in biases]
        gradients.append(
            [
                sum(
                    layer.grad[places[i]].sum()
                    for layer, places in zip(biases, of_classes, strict=True)
                )
                for i in (0, 1)
            ]
        )
        with torch.no_grad():
            for layer, places in zip(biases, of_classes, strict=True):
                layer[places[label]] += 8.0
        (found,) = network.eval().detect(
            batch.images, batch.sizes_B2, **DECODE | {"score_threshold": 0.5}
        )
        assert set(found.labels_N.tolist()) == {label}
    # The class that is there is pulled up: the same picture under the other label pulls less.
    assert gradients[0][0] < gradients[1][0] and gradients[1][1] < gradients[0][1]


@each
def test_detections_are_those_of_decode(architecture):
    network = net(architecture).eval()
    batch = collate([scene(21, size=(50, 40)), *SCENES[:2]])
    found = network.detect(batch.images, batch.sizes_B2, **DECODE | {"score_threshold": 0.0})
    for detections, (height, width) in zip(found, batch.sizes_B2.tolist(), strict=True):
        boxes, scores, labels = detections.boxes_N4, detections.scores_N, detections.labels_N
        assert (boxes.dtype, scores.dtype, labels.dtype) == (np.float32, np.float32, np.int64)
        # An untrained network finds everything everywhere: as many as asked for, of both classes,
        # none outside its picture.
        assert boxes.shape == (20, 4) and set(labels.tolist()) <= {0, 1}
        assert (np.diff(scores) <= 0).all() and 0 < scores.min() and scores.max() < 1
        assert (
            boxes.min() >= 0
            and boxes[:, [0, 2]].max() <= width
            and boxes[:, [1, 3]].max() <= height
        )
    assert (
        len(
            network.detect(batch.images, batch.sizes_B2, **DECODE | {"score_threshold": 1.0})[
                0
            ].scores_N
        )
        == 0
    )


@each
def test_an_image_has_the_same_detections_in_any_order(architecture):
    # torchvision would infer the regions' scales from the first pictures it sees: here one that
    # fills a quarter of its canvas.
    small, large = (collate([sample]) for sample in (scene(21, size=(48, 64)), SCENES[0]))
    results = []
    for order in ((small, large), (large, small)):
        network = net(architecture).eval()
        results.append(
            {
                batch.image_ids.item(): network.detect(
                    batch.images, batch.sizes_B2, **DECODE | {"score_threshold": 0.0}
                )
                for batch in order
            }
        )
    for image_id in (21, 11):
        (one,), (two,) = results[0][image_id], results[1][image_id]
        np.testing.assert_array_equal(one.boxes_N4, two.boxes_N4)
        np.testing.assert_array_equal(one.scores_N, two.scores_N)


@each
def test_weights_go_through_a_state_dict(architecture):
    one, two = net(architecture), net(architecture)
    for p in two.parameters():
        torch.nn.init.normal_(p.data, std=0.01)
    two.load_state_dict(one.state_dict())
    batch = collate(SCENES[:1])
    assert not [name for name in one.state_dict() if "pixel" in name]
    for mine, other in zip(
        *(n.eval().detect(batch.images, batch.sizes_B2, **DECODE) for n in (one, two)), strict=True
    ):
        np.testing.assert_array_equal(mine.boxes_N4, other.boxes_N4)


@pytest.mark.parametrize("architecture", ["faster_rcnn", "fcos", "ssd", "yolov2", "detr"])
def test_a_package_answers_for_pictures_of_any_size(architecture, tmp_path):
    small = {"backbone": "resnet18", "width": 64}
    used = {name: small[name] for name in small if name in BASELINE_PARTS[architecture]}
    config = TrainConfig(
        data={"train": "t", "val": "v"}, model={"architecture": architecture, **used}
    )
    parts = {
        **config.model.model_dump(mode="json", exclude={"anchors"}),
        **config.model.anchors.model_dump(mode="json"),
        "classes": 2,
    }
    save_file(contiguous(build_model(**parts).state_dict()), str(tmp_path / "weights"))
    description = {
        "model": parts,
        "canvases": [[96, 128]],
        "decode": DECODE | {"score_threshold": 0.0},
        "amp": True,
    }
    write_package(
        str(tmp_path / "package"),
        weights=str(tmp_path / "weights"),
        description=description,
        classes=[],
    )
    predictor = Predictor.load(str(tmp_path / "package"))
    pictures = [np.full((*size, 3), 90, np.uint8) for size in ((192, 256), (30, 30))]
    for found, picture in zip(predictor(pictures), pictures, strict=True):
        assert len(found.scores_N) > 0 and found.boxes_N4.min() >= 0
        assert (found.boxes_N4[:, 2:] <= picture.shape[1::-1]).all()
    assert (
        predictor(pictures[:1])[0].boxes_N4.max() > 128
    )  # in the frame of the picture, not of the canvas


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        (
            {"loss": {"gamma": 3.0}},
            (
                "loss.gamma 3: does nothing in the baseline fcos, which has losses of its own;"
                " leave it at 2"
            ),
        ),
        ({"pretrained": "/w.pth"}, "pretrained /w.pth: fcos trains from scratch"),
    ],
)
def test_what_is_for_retinanet_alone_is_refused(changed, complaint):
    data = {"train": "t", "val": "v"}
    assert TrainConfig(data=data, **changed).model.architecture == "retinanet"
    with pytest.raises(ValueError, match=complaint):
        TrainConfig(data=data, model={"architecture": "fcos"}, **changed)
    assert (
        TrainConfig(
            data=data, model={"architecture": "fcos"}, loss={"box_weight": 2.0}
        ).loss.box_weight
        == 2.0
    )
    few = {"top_per_level": 50}
    with pytest.raises(
        ValueError,
        match=(
            "decode.top_per_level 50: does nothing in the baseline faster_rcnn, .* leave it at 1000"
        ),
    ):
        TrainConfig(data=data, model={"architecture": "faster_rcnn"}, decode=few)
    assert (
        TrainConfig(data=data, model={"architecture": "fcos"}, decode=few).decode.top_per_level
        == 50
    )


@each
def test_ignore_regions_and_fillers_change_nothing(architecture):
    plain, region = SCENES[:1], np.array([[20, 16, 84, 48], [90, 60, 120, 90]], np.float32)
    marked = [dataclasses.replace(SCENES[0], boxes_N4=region, labels_N=np.array([0, -1]))]
    reports = [
        step(net(architecture), collate(samples))
        for samples in (plain, marked, [*plain, scene(-1), scene(-1, (4, 4, 60, 60))])
    ]
    for report in reports[1:]:
        assert (report.classification, report.box, report.gradient_norm) == pytest.approx(
            (reports[0].classification, reports[0].box, reports[0].gradient_norm), rel=1e-4
        )
        assert report.positives == 1


@each
def test_images_without_objects_and_batches_of_fillers_have_a_finite_loss(architecture):
    network = net(architecture)
    report = step(network, collate([SCENES[2]]))
    assert report.loss_normalizer == FIRST_AVERAGE
    # SSD trains three background boxes for each positive one, here none.
    mined = architecture in ("ssd", "dssd")
    assert report.positives == 0 and (report.classification > 0) != mined and report.box == 0
    assert all(
        p.grad is not None for p in network.parameters()
    )  # what DistributedDataParallel waits for
    filler = step(network, collate([scene(-1)]))
    assert (filler.classification, filler.box, filler.gradient_norm) == (0, 0, 0)


def test_ranks_and_parts_weigh_by_their_images():
    # FCOS, whose loss draws nothing, with fixed statistics: rank 0 has two images, rank 1 one and a
    # filler. The means are of 3 images.
    def totals(*ranks):
        return lambda own: own + sum(ranks)

    one, two = collate(SCENES[:2]), collate([SCENES[2], scene(-1)])
    alone = [step(net("fcos", norm="group"), batch) for batch in (one, two)]
    other = torch.tensor([1.0, 0.0])
    shared = step(
        net("fcos", norm="group"),
        one,
        ranks=2,
        sum_over_ranks=lambda own: own + other if float(own[0]) == 2 else own,
    )
    assert shared.classification == pytest.approx(alone[0].classification * 2 / 3, rel=1e-4)
    # DDP halves the sum of both ranks' gradients: twice two thirds of its own.
    assert shared.gradient_norm == pytest.approx(alone[0].gradient_norm * 4 / 3, rel=1e-4)
    parts = step(net("fcos", norm="group"), collate([SCENES[0], SCENES[2]]), accumulate=2)
    single = [
        step(net("fcos", norm="group"), collate([sample])) for sample in (SCENES[0], SCENES[2])
    ]
    assert parts.classification == pytest.approx(
        sum(report.classification for report in single) / 2, rel=1e-4
    )


@each
def test_bfloat16_keeps_anchors_and_boxes_exact(architecture):
    half, full = (
        step(net(architecture, norm="group"), collate(SCENES[:1]), amp_dtype=dtype)
        for dtype in (torch.bfloat16, None)
    )
    assert half.classification == pytest.approx(full.classification, rel=0.05)
    assert half.box == pytest.approx(full.box, rel=0.05)


@both
def test_levels_of_the_pyramid_are_float32(architecture):
    network, seen = net(architecture).eval(), []
    network.detector.backbone.register_forward_hook(
        lambda _, __, levels: seen.extend(levels.values())
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        network.detect(collate(SCENES).images, collate(SCENES).sizes_B2, **DECODE)
    assert seen and all(level.dtype == torch.float32 for level in seen)


def test_a_non_finite_step_is_skipped():
    network = net("fcos")
    network.detector.head.classification_head.cls_logits.bias.data[0] = float("inf")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    report = baseline_step(
        network,
        optimizer,
        collate(SCENES),
        learning_rate=1.0,
        clip_norm=1e9,
        box_weight=1.0,
        amp_dtype=None,
    )
    assert not report.read().finite and report.blamed() == [11, 12, 13]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


CHANGED = {
    "backbone": "resnet18",
    "norm": "group",
    "frozen_stages": 1,
    "stride_in": "1x1",
    "head_norm": "group",
    "width": 64,
    "p6_from": "p5",
    "prior": 0.1,
    "strides": (4, 8, 16, 32, 64),
    "base_sizes": (8, 16, 32, 64, 128),
    "scales": (1.0,),
    "ratios": (1.0,),
    "convention": "torchvision",
}


@pytest.mark.parametrize("name", CHANGED)
@each
def test_a_baseline_takes_its_parts_and_refuses_the_others(architecture, name):
    keywords = inspect.signature(RetinaNet).parameters.keys() - {"classes"}
    assert keywords == CHANGED.keys()
    backbone = {"backbone": "resnet50"} if name != "backbone" else {}
    settings = (
        {"anchors": {name: CHANGED[name]}}
        if name in AnchorConfig.model_fields
        else {name: CHANGED[name]}
    )
    if name in BASELINE_PARTS[architecture]:
        ModelConfig(architecture=architecture, **backbone | settings)
    else:
        with pytest.raises(
            ValueError, match=rf"{name} .*: does nothing in the baseline {architecture}"
        ):
            ModelConfig(architecture=architecture, **backbone | settings)


def test_retinanet_is_the_default_and_others_are_named():
    parts = dict(classes=2, backbone="resnet18", width=64)
    assert isinstance(build_model(**parts), RetinaNet) and ModelConfig().architecture == "retinanet"
    with pytest.raises(
        ValueError, match="architecture 'ssd7': must be one of retinanet, faster_rcnn, "
    ):
        build_model(architecture="ssd7", **parts)
    with pytest.raises(ValueError, match="classes 0"):
        build_model(architecture="fcos", **parts | {"classes": 0})


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"architecture": "faster_rcnn", "p6_from": "p5"}, "model.p6_from p5"),
        ({"architecture": "fcos", "head_norm": "group"}, "model.head_norm group"),
        (
            {"architecture": "fcos", "anchors": {"base_sizes": (8, 16, 32, 64, 128)}},
            "model.anchors.base_sizes",
        ),
        ({"architecture": "faster_rcnn", "anchors": {"scales": (1.0,)}}, "model.anchors.scales"),
    ],
)
def test_a_setting_that_a_baseline_ignores_is_refused(settings, name):
    with pytest.raises(
        ValueError,
        match=f"{name}.*: does nothing in the baseline {settings['architecture']}; leave it at",
    ):
        ModelConfig(**settings)
    assert (
        ModelConfig(
            architecture="faster_rcnn", anchors={"base_sizes": (8, 16, 32, 64, 128)}, norm="frozen"
        ).width
        == 256
    )
