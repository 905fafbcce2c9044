"""A network as a program without this code: ONNX with anchors, decoding and NMS for other runtimes,
and the dense network by torch.export. One file serves any batch size and canvas.
"""

from __future__ import annotations

import copy
import importlib.util
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from detector.backbone import DEEPEST_STRIDE
from detector.decode import DecodeSettings
from detector.detecting_graph import INPUTS, OUTPUTS, DetectingGraph, suppress_in_onnx
from detector.model import RetinaNet

SMALLEST_SIDE = 160
"""px. From this size on P7 has two cells a side; torch.export treats an extent of one as a special
case and keeps it fixed.
"""


def export_program(model: RetinaNet) -> ExportedProgram:
    """The network in evaluation mode as a graph: uint8 (B, 3, H, W) RGB pixels -> logits (B, A, K),
    offsets (B, A, 4), both float32.

    Any B, and any H and W that are multiples of 32 from `SMALLEST_SIDE` to 8192 px. The graph
    normalises the pixels. Anchors and decoding are not in it: the A outputs belong to
    `model.anchors(H, W)`, and `decode_detections` turns them into detections. The model is not
    changed. `ValueError` for a baseline.
    """
    network, images, shapes = _export_arguments(model)
    with torch.no_grad():
        return torch.export.export(network, (images,), dynamic_shapes=shapes)


def missing_packages() -> list[str]:
    """The packages that `export_onnx` needs and that are not installed."""
    return [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]


def export_onnx(model: RetinaNet, path: str | Path, *, decode: DecodeSettings) -> None:
    """Write the network with anchors, decoding and NMS as one ONNX file of standard operators;
    inputs and outputs are those of `DetectingGraph`. Any batch size, and any canvas whose sides are
    multiples of 32. The file computes in float32. The model is not changed.

    `ValueError` for a baseline, and where the packages that write ONNX are missing.
    """
    if missing := missing_packages():
        raise ValueError(
            f"export to {path}: package {' and '.join(missing)} missing; torch writes ONNX with"
            " them: pip install onnx onnxscript"
        )
    network, images, shapes = _export_arguments(model)
    sizes = torch.full((len(images), 2), SMALLEST_SIDE)
    with torch.no_grad(), warnings.catch_warnings():
        # It names both inputs' first extent, which is the same.
        warnings.filterwarnings("ignore", message=".*axis name: batch will not be used.*")
        torch.onnx.export(
            DetectingGraph(network, decode).eval(),
            (images, sizes),
            str(path),
            input_names=list(INPUTS),
            output_names=list(OUTPUTS),
            dynamic_shapes=(*shapes, {0: shapes[0][0]}),
            custom_translation_table={torch.ops.retinaray.suppress.default: suppress_in_onnx},
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def _export_arguments(model: RetinaNet) -> tuple[RetinaNet, Tensor, tuple[dict[int, Any], ...]]:
    """A copy of the network in evaluation mode, example images on its device, and the extents of
    the images that may vary. `ValueError` for a baseline.
    """
    if not isinstance(model, RetinaNet):
        raise ValueError(
            f"export of a {type(model).__name__}: only retinanet has outputs of one size; export a"
            " model of that architecture"
        )
    network = copy.deepcopy(model).eval().to(memory_format=torch.contiguous_format)
    # Two images and two different sides: torch.export could take equal extents, or an extent of
    # one, for a rule.
    images = torch.zeros(
        (2, 3, 6 * DEEPEST_STRIDE, 8 * DEEPEST_STRIDE),
        dtype=torch.uint8,
        device=next(network.parameters()).device,
    )
    rows, columns = (
        Dim(name, min=SMALLEST_SIDE // DEEPEST_STRIDE, max=8192 // DEEPEST_STRIDE)
        for name in ("rows", "columns")
    )
    return (
        network,
        images,
        ({0: Dim("batch", min=1), 2: DEEPEST_STRIDE * rows, 3: DEEPEST_STRIDE * columns},),
    )
