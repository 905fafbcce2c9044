"""What a worker is told comes out as it went in, typed."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from cluster.runs.config import TrainConfig
from cluster.runs.job import Job
from cluster.runs.package import Description, Package
from cluster.shards.format import Category

CONFIG = TrainConfig.model_validate(
    {
        "data": {"train": "/t", "val": "/v"},
        "pretrained": "/m.pth",
        "model": {"norm": "frozen", "width": 64, "anchors": {"scales": [1.0, 2 ** (1 / 3)]}},
        "optimizer": {"schedule": "steps", "milestones": [0.5, 2 / 3]},
        "sampling": {"source_weights": {"night": 2}},
    }
)
JOB = Job(
    config=CONFIG,
    run="/runs/a",
    run_uuid="1f",
    train_data="/t",
    val_data="/v",
    decode_in="threads",
    evaluate="beside",
    weight_file="/runs/a/pretrained/m.pth",
    parent_checkpoint=None,
    package=Package(
        Description({"classes": 1}, ((64, 96),), None, {}, True), (Category(0, 7, "a"),)
    ),
)


def test_a_job_travels_as_json() -> None:
    assert Job.from_json(json.loads(json.dumps(JOB.to_json()))) == JOB


def test_the_configuration_is_stored_in_checkpoints_as_it_was_dumped() -> None:
    dumped = CONFIG.model_dump(mode="json")
    assert Job.from_json(JOB.to_json()).config.model_dump(mode="json") == dumped


def test_a_job_of_another_version_is_refused() -> None:
    content = {**replace(JOB, run_uuid="").to_json(), "version": 0}
    with pytest.raises(ValueError, match="job of version 0: this code reads version 2"):
        Job.from_json(content)
