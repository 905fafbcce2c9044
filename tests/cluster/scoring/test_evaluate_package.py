from __future__ import annotations

from pathlib import Path

from cluster.scoring.evaluate_package import set_max_detections
from detector.predict import MODEL_FILE, read_json, write_package


def test_an_evaluation_may_raise_the_limit_of_the_package(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"")
    description = {"decode": {"max_detections": 100, "nms_threshold": 0.5}, "amp": False}
    write_package(
        str(tmp_path / "package"),
        weights=str(tmp_path / "weights"),
        description=description,
        classes=[],
    )
    set_max_detections(str(tmp_path / "package"), 300)
    expected = {"decode": {"max_detections": 300, "nms_threshold": 0.5}, "amp": False}
    assert read_json(str(tmp_path / "package"), MODEL_FILE) == expected
