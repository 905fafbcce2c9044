"""Weight files of others under their real names and shapes: what is loaded, what is turned, what is
said, what is refused.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from detector.model import PIXEL_MEAN, PIXEL_STD, RetinaNet
from detector.weights import load_pretrained
from tests.support.saved_checkpoint import save_checkpoint


def net(**changed) -> RetinaNet:
    torch.manual_seed(7)
    return RetinaNet(
        **{"classes": 5, "backbone": "resnet18", "width": 256, "norm": "frozen"} | changed
    ).eval()


def moved(network: nn.Module) -> nn.Module:
    """Vectors away from their starts, so that none can be lost or exchanged unseen."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if value.ndim == 1:
                start = 0.5 if name.endswith(("running_var", "weight")) else 0.0
                value.copy_(start + 0.5 * torch.rand(value.shape, generator=generator))
    return network.eval()


def pixels() -> Tensor:
    return torch.randint(
        0, 256, (1, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )


@pytest.fixture(scope="module")
def detector_file(tmp_path_factory) -> str:
    """torchvision's RetinaNet with 5 classes on a ResNet-18, P6 from P5."""
    trunk = torchvision.models.resnet18(weights=None)
    pyramid = _resnet_fpn_extractor(
        trunk, 5, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256)
    )
    path = str(tmp_path_factory.mktemp("detector") / "retinanet.pth")
    torch.save(moved(TorchvisionRetinaNet(pyramid, num_classes=5)).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def classifier_file(tmp_path_factory) -> str:
    path = str(tmp_path_factory.mktemp("classifier") / "resnet18.pth")
    torch.save(moved(torchvision.models.resnet18(weights=None)).state_dict(), path)
    return path


def refusal(model: RetinaNet, path: str) -> str:
    """The message, and nothing of the model is changed."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="^pretrained ") as caught:
        load_pretrained(model, path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert "\n" not in str(caught.value)
    return str(caught.value)


@torch.no_grad()
@pytest.mark.parametrize("norm", ["frozen", "batch", "sync"])
def test_a_classifier_fills_the_backbone(classifier_file, norm):
    model = net(norm=norm)
    heads = {
        name: value.clone()
        for name, value in model.state_dict().items()
        if not name.startswith("backbone.")
    }
    report = load_pretrained(model, classifier_file)
    assert (
        report.source == "torchvision classifier"
        and report.reinitialised == ()
        and report.notes == ()
    )
    # The heads and the pyramid were not in it, its own last layer is of no use.
    assert set(report.missing) == set(heads) and report.unused == ("fc.weight", "fc.bias")
    assert report.loaded + len(report.missing) == len(model.state_dict())
    assert all(torch.equal(model.state_dict()[name], value) for name, value in heads.items())

    network = torchvision.models.resnet18(weights=None).eval()
    network.load_state_dict(torch.load(classifier_file, weights_only=True))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
    x = (pixels() - mean) / std
    out = network.maxpool(network.relu(network.bn1(network.conv1(x))))
    expected = network.layer4(network.layer3(network.layer2(network.layer1(out))))
    found = model.backbone(x)[-1]
    assert expected.std() > 0.1 and torch.allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_folding_by_hand(classifier_file):
    state = torch.load(classifier_file, weights_only=True)
    model = net()
    load_pretrained(model, classifier_file)
    weight, bias, mean, variance = (
        float(state[f"layer2.0.bn1.{part}"][3])
        for part in ("weight", "bias", "running_mean", "running_var")
    )
    scale = weight / (variance + 1e-5) ** 0.5
    assert float(model.backbone.layer2[0].bn1.scale[3]) == pytest.approx(scale, rel=1e-6)
    assert float(model.backbone.layer2[0].bn1.bias[3]) == pytest.approx(
        bias - mean * scale, rel=1e-5, abs=1e-6
    )


def test_other_classes_renew_the_class_layer_alone(detector_file):
    model = net(classes=3, p6_from="p5")
    start = model.class_head.output.weight.clone()
    report = load_pretrained(model, detector_file)
    assert report.source == "torchvision RetinaNet"
    assert (
        report.reinitialised == ("class_head.output.weight", "class_head.output.bias")
        and report.missing == report.unused == ()
    )
    assert report.loaded == len(model.state_dict()) - 2
    assert torch.equal(model.class_head.output.weight, start)
    state = torch.load(detector_file, weights_only=True)
    assert torch.equal(model.box_head.output.weight, state["head.regression_head.bbox_reg.weight"])
    assert torch.equal(
        model.class_head.tower[6].bias, state["head.classification_head.conv.3.0.bias"]
    )


def test_a_finer_level_is_new_and_the_others_keep_their_strides(detector_file):
    model = net(p6_from="p5", strides=(4, 8, 16, 32), base_sizes=(16, 32, 64, 128))
    report = load_pretrained(model, detector_file)
    assert report.missing == tuple(
        f"pyramid.{part}.0.{kind}" for part in ("lateral", "output") for kind in ("weight", "bias")
    )
    assert [name.split(".")[3] for name in report.unused] == ["p6", "p6", "p7", "p7"]
    state = torch.load(detector_file, weights_only=True)
    assert torch.equal(
        model.pyramid.lateral[1].weight, state["backbone.fpn.inner_blocks.0.0.weight"]
    )


def test_our_own_file_with_and_without_statistics(tmp_path):
    first = moved(net(norm="batch", head_norm="group", width=64))
    path = str(tmp_path / "model.safetensors")
    save_file({name: value.contiguous() for name, value in first.state_dict().items()}, path)
    same, frozen = (
        net(norm="batch", head_norm="group", width=64),
        net(norm="frozen", head_norm="group", width=64),
    )
    for model in (same, frozen):
        report = load_pretrained(model, path)
        assert (report.source, report.missing, report.unused, report.loaded) == (
            "RetinaRay",
            (),
            (),
            len(model.state_dict()),
        )
        with torch.no_grad():
            assert torch.allclose(model(pixels())[0], first(pixels())[0], atol=1e-4)
    again = str(tmp_path / "frozen.safetensors")
    save_file({name: value.contiguous() for name, value in frozen.state_dict().items()}, again)
    assert "model.norm is batch here, frozen in the file" in refusal(
        net(norm="batch", head_norm="group", width=64), again
    )


def test_our_own_file_knows_its_anchors(tmp_path):
    first = net(width=64, base_sizes=(16, 32, 64, 128, 256), convention="torchvision")
    save_checkpoint(
        str(tmp_path),
        model=first,
        optimizer=torch.optim.SGD(first.parameters()),
        average=None,
        state={},
    )
    path = str(tmp_path / "model.safetensors")
    assert (
        load_pretrained(
            net(width=64, base_sizes=(16, 32, 64, 128, 256), convention="torchvision"), path
        ).notes
        == ()
    )
    # Other sizes are a choice, said in the report; the tensors fit.
    assert load_pretrained(net(width=64), path).notes == (
        (
            "model.anchors.base_sizes 16,32,64,128,256 makes the anchors that this file was trained"
            " with"
        ),
        "model.anchors.convention torchvision makes the anchors that this file was trained with",
    )
    # Other levels are another network.
    finer = net(width=64, strides=(4, 8, 16, 32, 64), base_sizes=(8, 16, 32, 64, 128))
    assert "model.anchors.strides is 4,8,16,32,64 here, 8,16,32,64,128 in the file" in refusal(
        finer, path
    )
    # A file that does not say is taken as it is.
    silent = str(tmp_path / "silent.safetensors")
    save_file({name: value.contiguous() for name, value in first.state_dict().items()}, silent)
    assert load_pretrained(net(width=64), silent).notes == ()


def detectron2_state(model: RetinaNet) -> dict[str, np.ndarray]:
    """A ResNet-50 of ours (batch normalisation) under detectron2's names, made for BGR pixels less
    their mean, anchors by scale, then ratio.
    """
    ours, theirs = model.state_dict(), {}

    def put(name: str, own: str) -> None:
        theirs[name] = ours[own].clone()

    def put_convolution(name: str, own: str, norm: str) -> None:
        put(name + ".weight", own + ".weight")
        for part in ("weight", "bias", "running_mean", "running_var"):
            put(f"{name}.norm.{part}", f"{norm}.{part}")

    bottom = "backbone.bottom_up"
    put_convolution(f"{bottom}.stem.conv1", "backbone.stem.0", "backbone.stem.1")
    # w of BGR: the colours turned round, each divided by our spread of it.
    theirs[f"{bottom}.stem.conv1.weight"] = (
        ours["backbone.stem.0.weight"] / torch.tensor(PIXEL_STD).view(1, 3, 1, 1)
    ).flip(1)
    for stage, blocks in ((2, 3), (3, 4), (4, 6), (5, 3)):
        for block in range(blocks):
            here, own = f"{bottom}.res{stage}.{block}", f"backbone.layer{stage - 1}.{block}"
            for i in (1, 2, 3):
                put_convolution(f"{here}.conv{i}", f"{own}.conv{i}", f"{own}.bn{i}")
            if block == 0:
                put_convolution(f"{here}.shortcut", f"{own}.downsample.0", f"{own}.downsample.1")
    for part in ("weight", "bias"):
        for level in (3, 4, 5):
            put(f"backbone.fpn_lateral{level}.{part}", f"pyramid.lateral.{level - 3}.{part}")
            put(f"backbone.fpn_output{level}.{part}", f"pyramid.output.{level - 3}.{part}")
        for level in ("p6", "p7"):
            put(f"backbone.top_block.{level}.{part}", f"pyramid.{level}.{part}")
        for subnet, last, own in (
            ("cls_subnet", "cls_score", "class_head"),
            ("bbox_subnet", "bbox_pred", "box_head"),
        ):
            for i in (0, 2, 4, 6):
                put(f"head.{subnet}.{i}.{part}", f"{own}.tower.{i}.{part}")
            value = ours[f"{own}.output.{part}"]
            outputs = len(value) // 9
            # Theirs: scale s, ratio r at place 3 s + r; ours at 3 r + s.
            order = [
                (3 * r + s) * outputs + o
                for s in range(3)
                for r in range(3)
                for o in range(outputs)
            ]
            theirs[f"head.{last}.{part}"] = value[order].clone()
    return {name: value.numpy() for name, value in theirs.items()} | {
        "anchor_generator.cell_anchors.0": np.zeros((9, 4), np.float32)
    }


@pytest.fixture(scope="module")
def detectron2(tmp_path_factory) -> tuple[RetinaNet, str]:
    torch.manual_seed(11)
    model = moved(RetinaNet(classes=4, backbone="resnet50", norm="batch", stride_in="1x1"))
    path = str(tmp_path_factory.mktemp("detectron2") / "model_final.pkl")
    with open(path, "wb") as file:
        pickle.dump(
            {"model": detectron2_state(model), "__author__": "Detectron2 Model Zoo"},
            file,
            protocol=2,
        )
    return model, path


@torch.no_grad()
def test_detectron2s_file_is_turned_into_ours(detectron2):
    original, path = detectron2
    model = RetinaNet(classes=4, backbone="resnet50", norm="frozen", stride_in="1x1").eval()
    report = load_pretrained(model, path)
    assert (report.source, report.reinitialised, report.missing, report.notes) == (
        "detectron2 RetinaNet",
        (),
        (),
        (),
    )
    assert report.unused == ("anchor_generator.cell_anchors.0",) and report.loaded == len(
        model.state_dict()
    )
    for found, expected in zip(model(pixels()), original(pixels()), strict=True):
        assert expected.std() > 0.1 and torch.allclose(
            found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())
        )


@torch.no_grad()
def test_detectron2s_stem_sees_the_same_picture(detectron2):
    _, path = detectron2
    with open(path, "rb") as file:
        weight = torch.from_numpy(
            pickle.load(file)["model"]["backbone.bottom_up.stem.conv1.weight"]
        )
    # What detectron2 computes: BGR less its mean, through the file's own weights.
    bgr = pixels().float().flip(1) - torch.tensor([103.53, 116.28, 123.675]).view(1, 3, 1, 1)
    theirs = nn.functional.conv2d(bgr, weight, stride=2, padding=3)
    model = RetinaNet(
        classes=4, backbone="resnet50", norm="frozen", stride_in="1x1", convention="torchvision"
    )
    assert load_pretrained(model, path).notes == (
        "model.anchors.convention exact makes the anchors that this file was trained with",
    )
    ours = model.backbone.stem[0]((pixels() - model.pixel_mean) / model.pixel_std)
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-3)


def test_a_detector_of_another_architecture_is_refused_with_what_fits(
    detectron2, detector_file, classifier_file
):
    with torch.device("meta"):
        other = RetinaNet(
            classes=4,
            backbone="resnet101",
            norm="group",
            head_norm="group",
            width=128,
            p6_from="p5",
        )
    with pytest.raises(ValueError) as caught:
        load_pretrained(other, detectron2[1])
    message = str(caught.value)
    assert (
        "a detectron2 RetinaNet file of another architecture" in message
        and "model.backbone is resnet101 here, resnet50 in the file" in message
    )
    fits = (
        "set model.backbone resnet50, model.norm frozen, model.stride_in 1x1, model.width 256,"
        " model.head_norm none, model.p6_from c5"
    )
    assert fits in message
    assert "set model.p6_from p5, or" in refusal(net(), detector_file)
    assert "model.head_norm is group here, none in the file" in refusal(
        net(p6_from="p5", head_norm="group"), detector_file
    )
    assert "model.anchors with scales x ratios is 6 here, 9 in the file" in refusal(
        net(p6_from="p5", scales=(1, 1.4)), detector_file
    )
    assert "set model.backbone resnet18, or" in refusal(net(backbone="resnet34"), classifier_file)
    assert "set model.norm frozen, or" in refusal(net(norm="group"), classifier_file)


@pytest.mark.parametrize(
    ("change", "excerpt"),
    [
        (
            lambda s: s.pop("backbone.fpn.inner_blocks.1.0.weight"),
            "pyramid.lateral.1.weight is missing; 1 differences",
        ),
        (
            lambda s: s.pop("backbone.body.layer3.1.bn2.running_mean"),
            "backbone.layer3.1.bn2.scale is missing",
        ),
        (
            lambda s: s.pop("head.regression_head.bbox_reg.weight"),
            "box_head.output.weight is missing",
        ),
        (
            lambda s: s.update({"backbone.body.layer4.1.conv3.weight": torch.zeros(1)}),
            "backbone.layer4.1.conv3.weight is unknown",
        ),
        (
            lambda s: s.update({"backbone.body.conv1.weight": torch.zeros(64, 4, 7, 7)}),
            r"(64, 4, 7, 7) where the model has (64, 3, 7, 7)",
        ),
        # 46 rows are no whole number of classes at 9 anchors.
        (
            lambda s: s.update(
                {"head.classification_head.cls_logits.weight": torch.zeros(46, 256, 3, 3)}
            ),
            "output.weight is (46, 256, 3, 3)",
        ),
    ],
)
def test_a_file_that_differs_in_one_tensor_is_refused(detector_file, tmp_path, change, excerpt):
    state = torch.load(detector_file, weights_only=True)
    change(state)
    path = str(tmp_path / "changed.pth")
    torch.save(state, path)
    assert excerpt in refusal(net(p6_from="p5"), path)


class Hostile:
    def __reduce__(self):
        return (Path.touch, (Path("was-here"),))


@pytest.mark.parametrize("name", ["weights.pkl", "weights.pth"])
def test_a_file_that_would_run_code_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    content = {"model": {"layer1.0.conv1.weight": Hostile()}}
    if name.endswith(".pkl"):
        Path(name).write_bytes(pickle.dumps(content))
    else:
        torch.save(content, name)
    assert "it must hold tensors alone" in refusal(net(), name)
    assert not Path("was-here").exists()


def test_files_that_are_no_weights_are_refused(tmp_path):
    assert "there is no such file" in refusal(net(), str(tmp_path / "none.pth"))
    for name in ("a.pth", "a.pkl", "a.safetensors"):
        (tmp_path / name).write_bytes(b"not weights at all")
        assert "cannot be read" in refusal(net(), str(tmp_path / name))
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    assert "holds a list" in refusal(net(), str(tmp_path / "list.pth"))
    torch.save({"state_dict": {"encoder.weight": torch.zeros(1)}}, tmp_path / "other.pth")
    assert "the names in it (encoder.weight, ...) are not known" in refusal(
        net(), str(tmp_path / "other.pth")
    )
