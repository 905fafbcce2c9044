"""What the size of a group means for its workers: batches, learning rate, threads."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from cluster.runs.training_config import EXECUTION, TrainingConfig, compiles
from cluster.training import group_size
from cluster.training.group_size import learning_rate, shared_batch
from detector.training_config import OptimizerConfig


@pytest.mark.parametrize(
    ("batch", "workers", "accumulate", "ranks", "resized", "batches", "parts"),
    [
        (16, 4, 1, 4, "keep", [4, 4, 4, 4], 1),
        (16, 4, 2, 4, "keep", [4, 4, 4, 4], 2),
        # Parts of 4 images are what fits: 6 and 5 are two of them, 16 are four.
        (16, 4, 1, 3, "keep", [6, 5, 5], 2),
        (16, 4, 1, 1, "keep", [16], 4),
        (16, 4, 2, 3, "keep", [6, 5, 5], 3),
        (16, 4, 1, 3, "scale", [4, 4, 4], 1),
        (16, 4, 2, 1, "scale", [4], 2),
        # One image a part: two on one rank would be two parts, but a rank with one image cannot
        # make two.
        (3, 3, 1, 2, "keep", [2, 1], 1),
    ],
)
def test_fewer_workers_take_more_images_in_parts_of_the_usual_size(
    batch: int,
    workers: int,
    accumulate: int,
    ranks: int,
    resized: str,
    batches: list[int],
    parts: int,
) -> None:
    training = TrainingConfig(
        batch_size=batch, workers=workers, accumulate=accumulate, resized_batch=resized
    )
    assert shared_batch(training, ranks=ranks) == (batches, parts)


@pytest.mark.parametrize(
    ("choice", "device", "images", "compiled"),
    [
        ("auto", "cuda", 48_000, True),
        ("auto", "cuda", 47_984, False),
        ("auto", "cpu", 10**9, False),
        ("on", "cpu", 16, True),
        ("off", "cuda", 10**9, False),
    ],
)
def test_long_runs_on_a_gpu_are_compiled(
    choice: str, device: str, images: int, compiled: bool
) -> None:
    # 16 images a step: 3000 steps are 48,000 images.
    assert compiles(choice, batch_size=16, device=device, images=images) == compiled


@pytest.mark.parametrize(
    ("usable", "counted", "workers", "threads"),
    [(8, 8, 2, 4), (8, 4.0, 2, 2), (1, 8, 1, 1), (8, 96, 3, 2), (2, 1, 4, 1)],
)
def test_workers_share_the_cores_that_they_may_use(
    usable: int, counted: float, workers: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [
        {"NodeID": "other", "Resources": {"CPU": 64}},
        {"NodeID": "here", "Resources": {"CPU": counted}},
    ]
    monkeypatch.setattr(group_size.ray, "nodes", lambda: nodes)
    monkeypatch.setattr(
        group_size.ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "here")
    )
    monkeypatch.setattr(group_size, "usable_cpus", lambda: usable)
    assert group_size.threads_each(workers) == threads


def test_watching_a_run_does_not_change_what_it_is() -> None:
    assert "profile_steps" in EXECUTION
    with pytest.raises(ValidationError, match="profile_steps"):
        TrainingConfig(profile_steps=-1)


@pytest.mark.parametrize(("name", "rate"), [("sgd", 0.5), ("adamw", 0.5**0.5)])
def test_a_smaller_batch_lowers_the_learning_rate(name: str, rate: float) -> None:
    """Half the images a step, and the rate that belongs to them."""
    chosen = OptimizerConfig(name=name, learning_rate=1.0, schedule="constant", warmup=0.0)
    halved = learning_rate(chosen, batch=4, configured=8, images_total=16)
    assert halved(8) == pytest.approx(rate)


def test_the_learning_rate_follows_the_schedule() -> None:
    chosen = OptimizerConfig(learning_rate=1.0, schedule="steps", milestones=(0.5,), warmup=0.0)
    rate = learning_rate(chosen, batch=8, configured=8, images_total=16)
    assert [rate(images) for images in (0, 7, 8, 15)] == pytest.approx([1.0, 1.0, 0.1, 0.1])
