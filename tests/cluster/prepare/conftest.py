from __future__ import annotations

from pathlib import Path

import pytest

from cluster.shards.index import ShardSet
from tests.support.preparing import plan_coco, write_here


@pytest.fixture(scope="session")
def finished(small_coco: Path, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """The training split of `small_coco`, prepared without disturbance in this process."""
    return write_here(plan_coco(str(small_coco), str(tmp_path_factory.mktemp("finished"))))
