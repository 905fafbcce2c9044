from __future__ import annotations

import json
from types import SimpleNamespace

from cluster.runs.config import TrainConfig
from cluster.runs.package import Package, package_of
from cluster.shards.format import Category

CATEGORIES = (Category(0, 1, "cell"), Category(1, 7, "platelet"))
# As the version before wrote them into state.json, model.json and classes.json.
VERSION_1 = """{"description": {"model": {"classes": 2, "architecture": "retinanet",
  "backbone": "resnet18", "norm": "frozen", "frozen_stages": 2, "stride_in": "3x3", "width": 64,
  "towers": 4, "head_norm": "none", "p6_from": "c5", "prior": 0.01, "strides": [8, 16]},
  "canvases": [[96, 128]], "decode": {"score_threshold": 0.05}, "amp": true},
  "classes": [{"label": 0, "id": 1, "name": "cell"}, {"label": 1, "id": 7, "name": "platelet"}]}"""


def test_the_description_of_a_run_builds_its_network() -> None:
    config = TrainConfig.model_validate(
        {
            "data": {"train": "/t", "val": "/v"},
            "model": {"backbone": "resnet18", "width": 64},
            "canvas": {"height": 96, "width": 128},
        }
    )
    package = package_of(config, SimpleNamespace(categories=CATEGORIES))
    stored = package.to_json()
    description = stored["description"]
    assert list(description) == ["model", "canvases", "long_side", "decode", "amp"]
    assert next(iter(description["model"].items())) == ("classes", 2)
    # The anchors are keywords of the network, not a section of it.
    assert description["model"]["strides"] == [8, 16, 32, 64, 128]
    assert "anchors" not in description["model"]
    assert description["canvases"] == [[96, 128]]
    assert stored["classes"][1] == {"label": 1, "id": 7, "name": "platelet"}
    assert Package.from_json(json.loads(json.dumps(stored))) == package


def test_a_package_from_before_the_long_side_has_none() -> None:
    package = Package.from_json(json.loads(VERSION_1))
    assert package.description.long_side is None
    assert package.description.canvases == ((96, 128),)
    assert package.class_names == ["cell", "platelet"]
    assert package.to_json()["classes"] == json.loads(VERSION_1)["classes"]
