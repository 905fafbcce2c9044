from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

CLUSTER = Path(__file__).parents[1] / "ray_cluster.yaml"


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return yaml.safe_load(CLUSTER.read_text())


def test_ray_accepts_the_file(cluster: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(cluster))


def test_the_head_trains_nothing_and_every_node_type_states_its_resources(
    cluster: dict[str, Any],
) -> None:
    types = cluster["available_node_types"]
    assert types[cluster["head_node_type"]]["resources"] == {"CPU": 0}
    assert all(kind["resources"] for kind in types.values())
    assert types["gpu_worker"]["resources"]["GPU"] == 1


def test_the_image_is_of_the_locked_ray(cluster: dict[str, Any]) -> None:
    lock = (CLUSTER.parent / "requirements.lock").read_text()
    version = (
        next(line for line in lock.splitlines() if line.startswith("ray=="))
        .split("==")[1]
        .split()[0]
    )
    assert cluster["docker"]["image"].startswith(f"rayproject/ray:{version}-py311")


def test_access_is_by_token_and_profile_only(cluster: dict[str, Any]) -> None:
    starts = [*cluster["head_start_ray_commands"], *cluster["worker_start_ray_commands"]]
    assert all("RAY_AUTH_MODE=token" in line for line in starts if "ray start" in line)
    assert "--dashboard-host=127.0.0.1" in " ".join(starts)
    assert "AWS_SECRET" not in CLUSTER.read_text()
