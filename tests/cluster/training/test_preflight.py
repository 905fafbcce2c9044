"""What is refused of the two sets before a machine is used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.errors import DataError, UsageError
from cluster.runs.config import TrainConfig
from cluster.shards.index import Counts
from cluster.training.preflight import _check_objects, _check_sets, _too_short
from tests.support.shard_sets import row, write_set

CONFIG = TrainConfig.model_validate({"name": "a", "data": {"train": "/train", "val": "/val"}})


def shard_set(**counts: int) -> Any:
    stored = Counts(**counts)
    return SimpleNamespace(
        uri="/val", num_rows=stored.images, counts=stored, source_names=("cells",)
    )


@pytest.mark.parametrize("without", ["train", "val"])
@pytest.mark.parametrize("boxes", [0, 3], ids=["no box", "crowds alone"])
def test_a_set_without_objects_is_refused(tmp_path: Path, without: str, boxes: int) -> None:
    sets = {name: write_set(f"{tmp_path}/{name}", [[row(1, 3)]]) for name in ("train", "val")}
    crowds = replace(row(1, boxes), crowd_N=[True] * boxes)
    sets[without] = write_set(f"{tmp_path}/empty", [[crowds, row(2, 0)]])
    with pytest.raises(
        DataError, match=rf"^data.{without} .*/empty: none of its 2 images has an o"
    ):
        _check_objects(CONFIG, sets["train"], sets["val"])


def test_a_set_with_objects_is_taken(tmp_path: Path) -> None:
    shards = write_set(str(tmp_path), [[row(1, 3), row(2, 0)]])
    assert _check_objects(CONFIG, shards, shards) == ()


def test_a_set_without_images_is_refused() -> None:
    with pytest.raises(UsageError, match="^data.train: has no images"):
        _check_sets(CONFIG, shard_set(), shard_set(images=4, boxes=3))


@pytest.mark.parametrize(("epochs", "said"), [(12, True), (19, True), (20, False)])
def test_a_training_of_few_updates_is_told_so(epochs: int, said: bool) -> None:
    # 16 of 16 images are one update an epoch.
    fields = {**CONFIG.model_dump(), "training": {"epochs": epochs, "batch_size": 16}}
    warnings = _too_short(TrainConfig.model_validate(fields), shard_set(images=16))
    assert [f"has {epochs} updates of the weights" in line for line in warnings] == [True] * said
