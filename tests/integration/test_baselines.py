"""A baseline through the verbs, as RetinaNet in test_train: two workers -> checkpoint -> evaluation
-> registry -> predictions. The other one differs in its network alone, which
tests/detector/test_baselines.py looks at.
"""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cluster.compute.session import RayConfig
from cluster.runs.config import TrainConfig
from cluster.tracking.config import TrackingConfig

pytestmark = pytest.mark.integration


def test_train_evaluate_register_predict(
    small_sets: dict[str, str], small_coco: Path, tmp_path: Path
) -> None:
    from pipelines import evaluate, predict, register
    from pipelines.training_run import train

    tracking, resources = (
        TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db"),
        {"workers": 1, "cpus_per_worker": 1.0},
    )
    chosen = TrainConfig.model_validate(
        {
            "name": "faster_rcnn",
            "storage": str(tmp_path / "store"),
            "data": small_sets,
            "model": {"architecture": "faster_rcnn", "backbone": "resnet18", "width": 64},
            "canvas": {"height": 96, "width": 128},
            # Untrained detectors are sure of nothing; without a threshold they find something.
            "decode": {"score_threshold": 0.0},
            "optimizer": {"name": "adamw", "learning_rate": 0.001},
            "training": {"epochs": 1, "batch_size": 4, "workers": 2, "cpus_per_worker": 0.5},
        }
    )
    best = train(chosen, ray=RayConfig(), tracking=tracking).best
    assert best.images_seen == 24 and best.weights == "model"

    evaluate.main(
        evaluate.EvaluateConfig(
            run=chosen.run_uri,
            data=small_sets["val"],
            output=str(tmp_path / "evaluation"),
            overlays=1,
            **resources,
        )
    )
    table = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    assert table["images"] == 8 and table["AP"] == pytest.approx(best.ap, abs=1e-3)

    register.main(register.RegisterConfig(run=chosen.run_uri, name="faster_rcnn"))
    annotations = f"{small_coco}/annotations/instances_val.json"
    pictures = {
        "images": f"{small_coco}/images/val",
        "annotations": annotations,
        "output": str(tmp_path / "predictions"),
    }
    predict.main(
        predict.PredictConfig(
            model="models:/faster_rcnn@champion",
            **pictures,
            overlays=1,
            tracking=tracking,
            **resources,
        )
    )
    rows = pq.read_table(tmp_path / "predictions" / "predictions.parquet").to_pylist()
    assert (
        len(rows) == 8
        and {row["status"] for row in rows} == {"ok"}
        and any(row["boxes"] for row in rows)
    )
    truth = COCO(annotations)
    scored = COCOeval(
        truth,
        truth.loadRes(json.loads((tmp_path / "predictions" / "coco_results.json").read_text())),
        "bbox",
    )
    scored.evaluate()
    scored.accumulate()
    scored.summarize()
    assert scored.stats[0] == pytest.approx(table["AP"], abs=1e-6)
