from __future__ import annotations

from pathlib import Path

import pytest

from cluster.shards.index import ShardSet
from tests.support.preparing import prepare_coco


@pytest.fixture(scope="session")
def shard_set(small_coco: Path, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """24 images in row groups of 5: 5 groups, the last one of 4."""
    output = str(tmp_path_factory.mktemp("shards") / "train")
    places = {
        "annotations": f"{small_coco}/annotations/instances_train.json",
        "images": f"{small_coco}/images/train",
    }
    return prepare_coco(**places, output=output, row_group_rows=5, max_quarantined=0.0)
