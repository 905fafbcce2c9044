"""What is exported computes what the network computes, at sizes it was not exported with."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from detector.baselines import build_model
from detector.decode import DecodeSettings
from detector.detecting_graph import OUTPUTS
from detector.export import SMALLEST_SIDE, export_onnx, export_program
from detector.model import RetinaNet
from tests.detector.toy import toy_backbones

# (images, height, width): one image, the smallest canvas, a tall one; none is the example that is
# traced.
SIZES = [(1, 160, 160), (3, 160, 224), (2, 352, 192)]
DECODE: DecodeSettings = {
    "score_threshold": 0.3,
    "top_per_level": 20,
    "nms_threshold": 0.7,
    "max_detections": 100,
}


@pytest.fixture(scope="module", autouse=True)
def _toys():
    with toy_backbones():
        yield


def network(**changed) -> RetinaNet:
    """A network whose every weight and statistic is away from its start, so that what is lost on
    the way shows.
    """
    torch.manual_seed(5)
    model = RetinaNet(**{"classes": 3, "backbone": "toy", "width": 64} | changed).eval()
    for name, value in model.state_dict().items():
        if name.endswith("running_mean") or (name.startswith("backbone") and name.endswith("bias")):
            value.normal_(std=0.3)
        elif name.endswith(("running_var", "scale")):
            value.uniform_(0.7, 1.4)
    for head in (model.class_head, model.box_head):
        for p in head.parameters():
            torch.nn.init.normal_(p, std=0.05)
    return model


@torch.no_grad()
def largest_difference(
    model: RetinaNet,
    exported: Callable[[torch.Tensor], list[torch.Tensor]],
    size: tuple[int, int, int],
) -> float:
    batch, height, width = size
    images = torch.randint(
        0,
        256,
        (batch, 3, height, width),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(batch),
    )
    expected, found = model(images), exported(images)
    assert len(found) == 2
    for mine, other in zip(expected, found, strict=True):
        assert (
            mine.shape == other.shape and other.dtype == torch.float32 and float(mine.std()) > 0.01
        )
    return max(
        float((mine - other).abs().max()) for mine, other in zip(expected, found, strict=True)
    )


def test_a_program_is_the_network_at_every_size(tmp_path: Path):
    # As it leaves a training: normalised heads, channels-last, in training mode, of which the
    # caller's model keeps the last two.
    model = network(head_norm="group").to(memory_format=torch.channels_last).train()
    path = tmp_path / "network.pt2"
    torch.export.save(export_program(model), path)
    assert model.training and model.box_head.output.weight.is_contiguous(
        memory_format=torch.channels_last
    )
    module = torch.export.load(path).module()
    for size in SIZES:
        assert largest_difference(model.eval(), module, size) < 1e-3
    with pytest.raises(AssertionError, match="Guard failed"):
        module(torch.zeros(1, 3, SMALLEST_SIDE - 32, SMALLEST_SIDE, dtype=torch.uint8))


@pytest.mark.integration
@pytest.mark.parametrize(
    ("norms", "nms_threshold"),
    [
        # No IoU is above 1: the best of every level are compared.
        ({"norm": "frozen"}, 1.0),
        ({"norm": "group", "head_norm": "group"}, 0.7),
    ],
)
def test_onnxruntime_detects_what_the_network_detects(
    tmp_path: Path, norms: dict[str, str], nms_threshold: float
):
    model = network(**norms)
    path = tmp_path / "network.onnx"
    decode: DecodeSettings = {**DECODE, "nms_threshold": nms_threshold}
    export_onnx(model, path, decode=decode)
    assert [file.name for file in tmp_path.iterdir()] == ["network.onnx"]  # weights inside
    assert {opset.domain for opset in onnx.load(path).opset_import} == {""}  # standard operators
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [(each.name, each.type, each.shape) for each in session.get_inputs()] == [
        ("images", "tensor(uint8)", ["batch", 3, "32*rows", "32*columns"]),
        ("sizes", "tensor(int64)", ["batch", 2]),
    ]
    assert tuple(each.name for each in session.get_outputs()) == OUTPUTS
    for batch, height, width in [*SIZES, (2, 64, 96)]:
        images = torch.randint(
            0, 256, (batch, 3, height, width), generator=torch.Generator().manual_seed(batch)
        ).to(torch.uint8)
        sizes = torch.tensor([[height - 9, width - 5]] * batch)
        expected = model.detect(images, sizes.float(), **decode)
        found = session.run(None, {"images": images.numpy(), "sizes": sizes.numpy()})
        counts = [len(detections.scores_N) for detections in expected]
        assert np.bincount(found[3]).tolist() == counts
        assert counts == [100] * batch if nms_threshold == 1 else 20 < min(counts) < 100
        for column, name in zip(found, ("boxes_N4", "scores_N", "labels_N"), strict=False):
            wanted = np.concatenate([getattr(detections, name) for detections in expected])
            np.testing.assert_allclose(column, wanted, atol=1e-3, rtol=0)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxscript" else object()
    )
    with pytest.raises(ValueError, match="network.onnx: package onnxscript missing; .*pip install"):
        export_onnx(network(), tmp_path / "network.onnx", decode=DECODE)
    assert not list(tmp_path.iterdir())


def test_a_baseline_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="export of a Baseline: only retinanet"):
        export_onnx(
            build_model(architecture="fcos", classes=2, backbone="resnet18", width=64),
            tmp_path / "network.onnx",
            decode=DECODE,
        )
