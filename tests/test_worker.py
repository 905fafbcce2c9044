"""The loop of a worker without its cluster, its data and its network: what it tells, by a clock of its own."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from cluster import run_folder, worker
from cluster.worker import Worker
from detector.step import StepReport


def test_the_time_of_an_evaluation_is_no_throughput(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)

    def takes(seconds: float) -> None:
        clock.now += seconds

    def batches(epoch: int, left: object) -> Iterator[SimpleNamespace]:
        for _ in range(2):
            takes(1)
            yield SimpleNamespace(to=lambda device: None)

    def step(batch: object, *, learning_rate: float) -> StepReport:
        takes(1)
        return StepReport(classification=0.5, box=0.5, positives=1, gradient_norm=1)

    monkeypatch.setattr(worker, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(run_folder, "write", lambda *_: None)
    told = []
    loop = Worker.__new__(Worker)
    training = {"evaluate_every": 1, "checkpoint_every": 1, "checkpoint_images": 0, "log_steps": 2, "patience": 0, "min_improvement": 0}
    optimizer = {"learning_rate": 1.0, "schedule": "constant", "warmup": 0.0, "milestones": ()}
    vars(loop).update(
        job={"training": training, "optimizer": optimizer},
        stream=SimpleNamespace(epoch=batches, places=8),
        model=SimpleNamespace(train=lambda: None),
        average=None,
        device=SimpleNamespace(type="cpu"),
        run="",
        rank=0,
        ranks=1,
        batch=4,
        epochs=2,
        epoch=0,
        images_seen=0,
        left=[(0, 8)],
        resumed_from=None,
        last_report=None,
        window=[],
        step=step,
        resume=lambda: None,
        save=lambda: takes(10),
        evaluate=lambda uri, again: takes(100),
        tell=lambda kind, **values: told.append((kind, values)),
    )
    loop.train()
    # 8 images: from the first batch on in 3 s (a step, a batch, a step), and after the evaluation in 4 s (a batch, a step, twice).
    assert [values["images_per_second"] for kind, values in told if kind == "step"] == [pytest.approx(8 / 3), 2.0]
