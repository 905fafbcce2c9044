from __future__ import annotations

from typing import Any

import pytest
import ray

from cluster.compute import resources
from cluster.scoring import detect


def test_each_task_books_the_share_that_the_check_asks_for(
    ray_cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    share = {"workers": 2, "cpus_per_worker": 1.5, "gpus_per_worker": 0}

    def booked_by_this_task(
        package, data, rank, ranks, threads, device, settings
    ) -> dict[int, Any]:
        return {rank: ray.get_runtime_context().get_assigned_resources()}

    monkeypatch.setattr(detect, "_detect_share", booked_by_this_task)
    booked = detect.detect_set({}, "", **share)
    assert [booked[rank] for rank in range(2)] == resources.detection_shares(**share)
