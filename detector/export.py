"""The dense network as a program without this code: torch.export, and ONNX for other runtimes. One
file serves any batch size and canvas.
"""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from detector.backbone import DEEPEST_STRIDE
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


def export_onnx(model: RetinaNet, path: str | Path) -> None:
    """Write the network as one ONNX file: input `images`, outputs `logits` and `offsets`, as in
    `export_program`. `ValueError` where the packages that write ONNX are missing.
    """
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"export to {path}: package {' and '.join(missing)} missing; torch writes ONNX with"
            " them: pip install onnx onnxscript"
        )
    network, images, shapes = _export_arguments(model)
    with torch.no_grad():
        torch.onnx.export(
            network,
            (images,),
            str(path),
            input_names=["images"],
            output_names=["logits", "offsets"],
            dynamic_shapes=shapes,
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def _export_arguments(model: RetinaNet) -> tuple[nn.Module, Tensor, tuple[dict[int, Any], ...]]:
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
