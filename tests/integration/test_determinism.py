"""The same seed gives one worker the same bits, in one go or resumed: the seed covers weights,
order and augmentation. That two workers, killed or not, come to the same bits is held by
tests/integration/test_faults.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.runs import run_folder
from cluster.runs.config import TrainConfig
from cluster.storage import files
from cluster.training import launch

pytestmark = pytest.mark.integration

TINY: dict[str, Any] = {
    "model": {
        "backbone": "resnet18",
        "width": 64,
        "norm": "batch",
        "anchors": {"base_sizes": [12, 24, 48, 96, 192]},
    },
    "canvas": {"height": 64, "width": 96},
    "optimizer": {"name": "adamw", "learning_rate": 0.001, "ema_images": 20},
    "augmentation": {"scale_min": 0.5, "photometric": 0.5},
}
TRAINING = {
    "epochs": 2,
    "batch_size": 4,
    "cpus_per_worker": 0.5,
    "decode_threads": 2,
    "evaluate_every": 2,
    "checkpoint_images": 8,
}


@pytest.fixture(scope="module")
def data(
    ray_cluster: str, small_coco: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    from pipelines.prepare import PrepareConfig, main

    folder = tmp_path_factory.mktemp("determinism")
    for split in ("train", "val"):
        annotations = f"{small_coco}/annotations/instances_{split}.json"
        main(
            PrepareConfig(
                annotations=annotations,
                images=f"{small_coco}/images/{split}",
                output=f"{folder}/{split}",
                row_group_rows=4,
            )
        )
    return {"folder": str(folder), "train": f"{folder}/train", "val": f"{folder}/val"}


def config(data: dict[str, str], name: str) -> TrainConfig:
    training = {**TRAINING, "keep_checkpoints": 100, "workers": 1}
    places = {"data": {"train": data["train"], "val": data["val"]}, "storage": data["folder"]}
    return TrainConfig.model_validate({**TINY, **places, "training": training, "name": name})


def trained(run: TrainConfig) -> dict[str, bytes]:
    """The weights and their average in the last checkpoint."""
    launch.launch(run)
    last = run_folder.checkpoints(run.run_uri)[-1]
    assert last.endswith(f"images-{48:012d}")
    return {
        name: files.read_bytes(f"{last}/{name}")
        for name in ("model.safetensors", "ema.safetensors")
    }


def test_the_same_run_again_and_the_same_run_resumed_have_the_same_bits(
    data: dict[str, str],
) -> None:
    whole = config(data, "whole")
    first = trained(whole)
    assert trained(config(data, "again")) == first

    # A checkpoint in the middle of the first epoch of 24 images, under another run's name, is what
    # an interrupted run leaves behind.
    resumed = config(data, "resumed")
    middle = run_folder.checkpoint_uri(whole.run_uri, 16)
    assert middle in run_folder.checkpoints(whole.run_uri)
    files.upload_folder(middle, run_folder.checkpoint_uri(resumed.run_uri, 16))
    run_folder.write(
        resumed.run_uri, run_folder.CONFIG, run_folder.read(whole.run_uri, run_folder.CONFIG)
    )
    assert trained(resumed) == first
    assert run_folder.checkpoint_uri(resumed.run_uri, 8) not in run_folder.checkpoints(
        resumed.run_uri
    )
