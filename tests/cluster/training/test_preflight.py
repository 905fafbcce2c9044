"""What is refused of the two sets before a machine is used."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from cluster.errors import UsageError
from cluster.runs.config import TrainConfig
from cluster.shards.index import Counts
from cluster.training.preflight import _check_sets

CONFIG = TrainConfig.model_validate({"name": "a", "data": {"train": "/train", "val": "/val"}})


def shard_set(**counts: int) -> Any:
    stored = Counts(**counts)
    return SimpleNamespace(
        uri="/val", num_rows=stored.images, counts=stored, source_names=("cells",)
    )


@pytest.mark.parametrize("counts", [{"boxes": 0}, {"boxes": 3, "crowds": 3}])
def test_a_val_set_without_objects_is_refused(counts: dict[str, int]) -> None:
    train = shard_set(images=4, boxes=0)
    with pytest.raises(UsageError, match=r"^data.val /val: has no objects \(. boxes, of which ."):
        _check_sets(CONFIG, train, shard_set(images=4, **counts))
    _check_sets(CONFIG, train, shard_set(images=4, boxes=3, crowds=2))


def test_a_set_without_images_is_refused() -> None:
    with pytest.raises(UsageError, match="^data.train: has no images"):
        _check_sets(CONFIG, shard_set(), shard_set(images=4, boxes=3))
