"""The files of a package, built from a checkpoint."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cluster.errors import DataError, UsageError
from cluster.runs.package_files import (
    build_package,
    package_digest,
    read_thresholds,
    read_validation,
    stored_classes,
    write_thresholds,
    write_validation,
)
from cluster.shards.format import Category
from detector.checkpoint import seal
from detector.detection_counts import count_detections
from detector.operating_points import OperatingPoint, Thresholds
from detector.predict import Predictor

CLASSES = [{"label": 0, "id": 7, "name": "cell"}, {"label": 1, "id": 9, "name": "platelet"}]


def test_a_package_has_the_weights_and_description_of_the_checkpoint(package):
    assert sorted(os.listdir(package)) == ["classes.json", "model.json", "model.safetensors"]
    content = Path(package, "classes.json").read_bytes()
    assert json.loads(content) == CLASSES
    assert stored_classes(content) == [Category(0, 7, "cell"), Category(1, 9, "platelet")]


def test_a_package_says_what_the_model_detected_in_validation(package, tmp_path):
    assert read_validation(package) is None
    folder = tmp_path / "package"
    shutil.copytree(package, folder)
    nothing, sides = np.empty(0), np.full(5, 9)
    empty = {"image_N": nothing, "labels_N": nothing, "scores_N": nothing}
    detected, others = (
        count_detections(names, **empty, heights_I=sides, widths_I=sides)
        for names in (["cell", "platelet"], ["platelet", "cell"])
    )
    write_validation(str(folder), detected)
    assert read_validation(str(folder)).to_json() == detected.to_json()
    # It changes no prediction.
    assert package_digest(str(folder)) == package_digest(package)
    write_validation(str(folder), others)
    assert read_validation(str(folder)) is None
    for damaged in ("{", "[]", '{"version": 99}'):
        (folder / "validation.json").write_text(damaged)
        assert read_validation(str(folder)) is None


def test_a_package_has_the_threshold_of_each_class(package, tmp_path):
    assert read_thresholds(package) is None
    folder = tmp_path / "package"
    shutil.copytree(package, folder)
    point = OperatingPoint(0.25, 0.5, 0.75, 0.6)
    chosen = Thresholds(None, 0.5, {"cell": point, "platelet": None})
    write_thresholds(str(folder), chosen)
    assert read_thresholds(str(folder)) == chosen
    assert package_digest(str(folder)) == package_digest(package)
    write_thresholds(str(folder), Thresholds(None, 0.5, {"platelet": None, "cell": point}))
    assert read_thresholds(str(folder)) is None
    for damaged in ("{", "[]", '{"version": 99}'):
        (folder / "thresholds.json").write_text(damaged)
        assert read_thresholds(str(folder)) is None


def test_a_package_has_the_chosen_weights(tmp_path):
    for name, value in (("model", 1.0), ("ema", 2.0)):
        save_file({"x": torch.full((1,), value)}, str(tmp_path / f"{name}.safetensors"))
    description = {"model": {"classes": 1}, "canvases": [], "decode": {}, "amp": False}
    seal(str(tmp_path), {"package": {"description": description, "classes": []}})
    digests = []
    for weights in ("model", "ema"):
        build_package(str(tmp_path), str(tmp_path / f"from-{weights}"), weights=weights)
        assert (tmp_path / f"from-{weights}" / "model.safetensors").read_bytes() == (
            tmp_path / f"{weights}.safetensors"
        ).read_bytes()
        digests.append(package_digest(str(tmp_path / f"from-{weights}")))
    assert digests[0] != digests[1] == package_digest(str(tmp_path / "from-ema"))
    save_file({"x": torch.full((1,), 3.0)}, str(tmp_path / "ema.safetensors"))
    with pytest.raises(DataError, match="ema.safetensors: is damaged"):
        build_package(str(tmp_path), str(tmp_path / "x"), weights="ema")
    (tmp_path / "ema.safetensors").unlink()
    with pytest.raises(UsageError, match="not complete"):
        build_package(str(tmp_path), str(tmp_path / "x"), weights="ema")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d["model"].update(depth=18), "model.depth is unknown"),
        (lambda d: d["model"].pop("classes"), "model.classes is missing"),
        (
            lambda d: d["model"].update(norm="layer"),
            "model.norm 'layer': must be one of batch, sync, frozen, group",
        ),
        (lambda d: d["decode"].update(nms=0.5), "decode.nms is unknown"),
        (lambda d: d.pop("canvases"), "canvases is missing"),
        (lambda d: d.update(canvas=[64, 96]), "canvas is unknown"),
    ],
)
def test_a_package_of_another_version_is_refused_by_the_name_of_the_field(
    package, tmp_path, change, said
):
    description = json.loads(Path(package, "model.json").read_text())
    shutil.copytree(package, tmp_path, dirs_exist_ok=True)
    change(description)
    (tmp_path / "model.json").write_text(json.dumps(description))
    with pytest.raises(
        ValueError,
        match=(
            f"model.json: {said}; it was written by another version of this code: use that"
            " version, or"
        ),
    ):
        Predictor.load(str(tmp_path))
    # From a run's checkpoint, before anything is scored or registered.
    seal(str(tmp_path), {"package": {"description": description, "classes": CLASSES}})
    with pytest.raises(UsageError, match=f"state.json: model.json: {said}"):
        build_package(str(tmp_path), str(tmp_path / "package"))


def test_a_package_from_before_the_long_side_has_none(package):
    assert (
        "long_side" not in json.loads(Path(package, "model.json").read_text())
        and Predictor.load(package).long_side is None
    )
