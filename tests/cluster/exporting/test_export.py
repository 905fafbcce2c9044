"""What cannot be exported."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import save_file

from cluster.errors import UsageError
from cluster.exporting.export import export_package
from detector.baselines import build_model
from detector.predict import write_package
from tests.support.packages import CLASSES


def test_a_baseline_is_one_line(tmp_path: Path):
    keywords = {"architecture": "fcos", "backbone": "resnet18", "classes": len(CLASSES)}
    weights = {
        name: each.contiguous() for name, each in build_model(**keywords).state_dict().items()
    }
    save_file(weights, str(tmp_path / "weights"))
    decode = {"score_threshold": 0.05, "top_per_level": 9, "nms_threshold": 0.5}
    description = {"model": keywords, "canvases": [[64, 96]], "decode": decode, "amp": False}
    package = str(tmp_path / "package")
    write_package(
        package, weights=str(tmp_path / "weights"), description=description, classes=CLASSES
    )
    output = tmp_path / "new" / "cells.onnx"
    with pytest.raises(UsageError, match="models:/cells/1: is a Baseline; only a retinanet can be"):
        export_package(package, str(output), model="models:/cells/1", pictures=[])
    assert not output.parent.exists()
