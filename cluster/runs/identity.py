"""What makes two runs the same run."""

from __future__ import annotations

from typing import Any

from cluster.runs.config import EXECUTION, TrainConfig
from cluster.shards.index import ShardSet


def identity(
    config: TrainConfig, train_set: ShardSet, val_set: ShardSet, *, weights: str | None
) -> dict[str, Any]:
    """What makes two runs the same run: hyper-parameters and the digests of the data and of the
    weight file or checkpoint that it starts from (`weights`); not worker counts and URIs.
    """
    fields = config.model_dump(
        mode="json", exclude={"name": True, "storage": True, "data": True, "training": EXECUTION}
    )
    start = {
        name: weights if getattr(config, name) is not None else None
        for name in ("pretrained", "from_checkpoint")
    }
    return {**fields, **start, "data": {"train": train_set.digest, "val": val_set.digest}}
