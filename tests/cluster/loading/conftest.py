from __future__ import annotations

from pathlib import Path

import pytest

from cluster.prepare.plan import prepare
from cluster.shards.index import ShardSet, open_shard_set


@pytest.fixture(scope="session")
def shard_set(
    ray_cluster: str, small_coco: Path, tmp_path_factory: pytest.TempPathFactory
) -> ShardSet:
    """24 images in row groups of 5: 5 groups, the last one of 4."""
    output = str(tmp_path_factory.mktemp("shards") / "train")
    places = {
        "annotations": f"{small_coco}/annotations/instances_train.json",
        "images": f"{small_coco}/images/train",
    }
    prepare(**places, output=output, row_group_rows=5, max_quarantined=0.0, say=lambda line: None)
    return open_shard_set(output)
