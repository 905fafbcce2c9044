"""A small model package for the tests of several rooms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from cluster.runs.package_files import build_package
from detector.checkpoint import seal
from detector.model import RetinaNet

CLASSES = [{"label": 0, "id": 7, "name": "cell"}, {"label": 1, "id": 9, "name": "platelet"}]


def make_package(
    checkpoint: Path,
    folder: Path,
    classes: Sequence[dict[str, Any]] = CLASSES,
    *,
    seed: int = 0,
) -> None:
    """A package whose network, untrained with a prior of 0.5, detects something everywhere."""
    torch.manual_seed(seed)
    keywords = {"backbone": "resnet18", "classes": len(classes), "width": 64, "prior": 0.5}
    save_file(
        {k: v.contiguous() for k, v in RetinaNet(**keywords).state_dict().items()},
        str(checkpoint / "model.safetensors"),
    )
    decode = {
        "score_threshold": 0.05,
        "top_per_level": 10,
        "nms_threshold": 0.5,
        "max_detections": 5,
    }
    description = {"model": keywords, "canvases": [[64, 96]], "decode": decode, "amp": False}
    seal(str(checkpoint), {"package": {"description": description, "classes": list(classes)}})
    build_package(str(checkpoint), str(folder))
