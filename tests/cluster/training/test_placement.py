"""What a training books, and where it decodes and evaluates."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.runs.config import TrainConfig
from cluster.training import placement

TRAINING: dict[str, Any] = {"batch_size": 4, "workers": 2, "cpus_per_worker": 0.5}

CPU_NODE, GPU_NODE = (
    {"Alive": True, "Resources": {"CPU": 16.0}},
    {"Alive": True, "Resources": {"CPU": 16.0, "GPU": 8.0}},
)


@pytest.mark.parametrize(
    ("choice", "gpus", "nodes", "place"),
    [
        ("auto", 0, [CPU_NODE, CPU_NODE], "threads"),
        ("auto", 1, [GPU_NODE], "threads"),
        ("auto", 1, [GPU_NODE, CPU_NODE], "tasks"),
        ("auto", 1, [GPU_NODE, {**CPU_NODE, "Alive": False}], "threads"),
        (
            "auto",
            1,
            [GPU_NODE, {"Alive": True, "Resources": {"memory": 1.0}}],
            "threads",
        ),  # a head without CPUs
        ("threads", 1, [GPU_NODE, CPU_NODE], "threads"),
        ("tasks", 0, [CPU_NODE], "tasks"),
    ],
)
def test_images_are_decoded_where_cpus_are_idle(
    monkeypatch: pytest.MonkeyPatch, choice: str, gpus: int, nodes: list[dict], place: str
) -> None:
    import ray

    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    assert placement.decode_place(choice, gpus_per_worker=gpus) == place


@pytest.mark.parametrize(
    ("training", "free", "place"),
    [
        # Two workers book 2 x (0.5 + 0.25), the task that evaluates 0.75 + 0.25 more.
        ({"evaluation": "auto"}, {"CPU": 2.5}, "beside"),
        ({"evaluation": "auto"}, {"CPU": 2.25}, "between"),
        ({"evaluation": "beside"}, {"CPU": 1.0}, "beside"),
        ({"evaluation": "between"}, {"CPU": 64.0}, "between"),
        ({"evaluation": "auto", "gpus_per_worker": 1}, {"CPU": 64.0, "GPU": 2.0}, "between"),
        ({"evaluation": "auto", "gpus_per_worker": 1}, {"CPU": 64.0, "GPU": 3.0}, "beside"),
        (
            {"evaluation": "auto", "gpus_per_worker": 1, "evaluation_gpus": 0},
            {"CPU": 64.0, "GPU": 2.0},
            "beside",
        ),
        ({"evaluation": "auto", "evaluation_workers": 3}, {"CPU": 4.0}, "between"),
        # One worker would do and 0.75 CPUs are free beside the evaluation; the second may come any
        # time, and books those.
        ({"evaluation": "auto", "min_workers": 1}, {"CPU": 2.25}, "between"),
        ({"evaluation": "auto", "min_workers": 1}, {"CPU": 2.5}, "beside"),
        # Enough in all, and on no node.
        (
            {"evaluation": "auto"},
            [{"CPU": 0.75}, {"CPU": 0.75}, {"CPU": 0.5}, {"CPU": 0.5}],
            "between",
        ),
        ({"evaluation": "auto"}, [{"CPU": 0.75}, {"CPU": 0.75}, {"CPU": 1.0}], "beside"),
    ],
)
def test_checkpoints_are_evaluated_beside_training_where_there_is_room(
    monkeypatch: pytest.MonkeyPatch,
    training: dict[str, Any],
    free: dict[str, float] | list[dict[str, float]],
    place: str,
) -> None:
    monkeypatch.setattr(
        "cluster.training.ray_internals.free_resources_of_nodes",
        lambda: free if isinstance(free, list) else [free],
    )
    chosen = TrainConfig.model_validate(
        {"data": {"train": "/t", "val": "/v"}, "training": {**TRAINING, **training}}
    )
    assert placement.evaluation_place(chosen) == place


def test_a_training_needs_its_fewest_workers_by_default() -> None:
    chosen = TrainConfig.model_validate(
        {"data": {"train": "/t", "val": "/v"}, "training": {**TRAINING, "min_workers": 1}}
    )
    assert placement.needs(chosen) == [{"CPU": 0.75}]
    assert placement.needs(chosen, workers=2) == [{"CPU": 0.75}] * 2
    assert placement.needs(chosen, workers=2, evaluation="beside") == [
        {"CPU": 0.75},
        {"CPU": 0.75},
        {"CPU": 1.0},
    ]
    chosen = TrainConfig.model_validate(
        {
            **chosen.model_dump(),
            "training": {**TRAINING, "decode": "tasks", "gpus_per_worker": 1},
        }
    )
    assert placement.needs(chosen) == [{"CPU": 0.75, "GPU": 1}] * 2 + [
        {"CPU": 0.25},
        {"CPU": 1},
    ]
