"""The model behind docs/scaling.md, each formula worked by hand with round numbers."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from tests.benchmarks.scaling_model import (
    BUCKET,
    Job,
    batch_efficiency,
    best_interval,
    exchange_seconds,
    exposed_seconds,
    failure_table,
    lost_to_evaluation,
    lost_to_failures,
    row,
    slowest,
    speed_table,
)

# Four buckets; 100 MiB of gradient; 0.1 s a step.
ROUND = Job(
    rate=320.0,
    batch=32,
    parameters=BUCKET,
    gradient_bytes=4,
    gpus_a_node=4,
    nvlink=4 * BUCKET,
    network=2 * BUCKET,
    network_latency=0.0,
    nvlink_latency=0.0,
    backward=0.5,
    spread=0.0,
)


def test_a_ring_moves_every_byte_almost_twice() -> None:
    assert ROUND.buckets == 4
    assert exchange_seconds(ROUND, 1) == 0
    # 2 x 3/4 of 4 buckets over a link of 4 buckets a second.
    assert exchange_seconds(ROUND, 4) == pytest.approx(1.5)
    # The same in each of two nodes, and 2 x 1/2 of 4 buckets over a network of 2 buckets a second.
    assert exchange_seconds(ROUND, 8) == pytest.approx(1.5 + 2.0)
    assert exchange_seconds(replace(ROUND, gradient_bytes=2), 8) == pytest.approx((1.5 + 2.0) / 2)


def test_every_bucket_waits_for_every_hop() -> None:
    slow = replace(
        ROUND, nvlink=math.inf, network=math.inf, nvlink_latency=0.001, network_latency=0.01
    )
    # 4 buckets x (2 x 3 hops in the node + 2 x 1 between the two).
    assert exchange_seconds(slow, 8) == pytest.approx(4 * (6 * 0.001 + 2 * 0.01))


def test_the_backward_pass_hides_all_but_the_last_bucket() -> None:
    fast = replace(ROUND, nvlink=400 * BUCKET)
    # 0.015 s of exchange beside 0.05 s of backward: a quarter of it is left.
    assert exposed_seconds(fast, 4, step=0.1) == pytest.approx(0.015 / 4)
    # 1.5 s of exchange: three quarters of the 0.05 s hide something of it.
    assert exposed_seconds(ROUND, 4, step=0.1) == pytest.approx(1.5 - 0.0375)
    # 0.1 s alone, 0.10375 s in company.
    assert row(fast, 4).weak == pytest.approx(0.1 / 0.10375)
    assert row(fast, 4).rate == pytest.approx(4 * 320 * 0.1 / 0.10375)
    assert row(ROUND, 1).weak == 1


def test_a_step_is_as_slow_as_its_slowest_rank() -> None:
    # Expected greatest of 2 standard normals: 1 / sqrt(pi) = 0.564; of 8: 1.424 (tables of order
    # statistics).
    assert slowest(2) == pytest.approx(0.564, abs=0.03)
    assert slowest(8) == pytest.approx(1.424, abs=0.02)
    spread = replace(ROUND, nvlink=math.inf, spread=0.01)
    assert row(spread, 4).weak == pytest.approx(1 / (1 + 0.01 * slowest(4)))


def test_small_batches_pay_the_fixed_cost_more_often() -> None:
    job = replace(ROUND, batch=8, fixed_images=2.0)
    # 8 images in the time of 10; 2 in the time of 4: half a rate of 0.8.
    assert batch_efficiency(job, 8) == 1
    assert batch_efficiency(job, 2) == pytest.approx(0.5 / 0.8)


def test_the_best_interval_by_young() -> None:
    # A stall of 2 s, a failure every 10,000 s.
    assert best_interval(2.0, 10_000.0) == 200
    job = replace(ROUND, checkpoint_stall=2.0, restart=50.0)
    # 2 of 200 s in checkpoints; 100 s done again and 50 s of restart in 10,000.
    assert lost_to_failures(job, failure_every=10_000.0) == pytest.approx(0.01 + 0.015)


def test_an_evaluation_stops_the_training_for_its_seconds() -> None:
    job = replace(ROUND, epoch_images=8_000, val_images=800, eval_rate=100.0)
    # 8,000 images at 800 a second: 10 s; 800 at 4 x 100: 2 s.
    assert lost_to_evaluation(job, 4, rate=800.0) == pytest.approx(2 / 12)


def test_the_document_shows_what_the_model_says() -> None:
    text = (Path(__file__).parents[1] / "docs" / "scaling.md").read_text()
    for line in (*speed_table(Job()).splitlines(), *failure_table(Job()).splitlines()):
        assert line in text, line
