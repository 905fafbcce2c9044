from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import ray

from cluster.compute import resources
from cluster.runs.package_files import load_predictor, read_package
from cluster.scoring import detect
from cluster.shards.index import open_shard_set
from detector.choices import ViewSettings


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


def test_tasks_detect_in_the_views_that_are_asked_for(
    small_sets: dict[str, str], package: str
) -> None:
    """What tiles and mirror images show, and so the AP, is the same in tasks and in one process."""
    given, val = read_package(package), small_sets["val"]
    settings = ViewSettings(tile=200, flip=True)
    found = detect.detect_set(given, val, workers=2, cpus_per_worker=0.75, settings=settings)
    expected = detect.detect_share(
        load_predictor(given, "cpu"), open_shard_set(val), settings=settings
    )
    plain = detect.detect_share(load_predictor(given, "cpu"), open_shard_set(val))
    assert found.keys() == expected.keys() == plain.keys() and len(found) == 8
    for image_id, each in found.items():
        for mine, other in zip(vars(each).values(), vars(expected[image_id]).values(), strict=True):
            np.testing.assert_array_equal(mine, other)
    assert any(
        not np.array_equal(each.boxes_N4, plain[image_id].boxes_N4)
        for image_id, each in found.items()
    )
