"""The loop of a worker without its cluster, its data and its network: what it tells, by a clock of its own."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from cluster import run_folder, timing
from cluster.timing import Timing
from cluster.worker import Worker, distribute
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

    monkeypatch.setattr(timing, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(run_folder, "write", lambda *_: None)
    told = []
    loop = Worker.__new__(Worker)
    training = {"evaluate_every": 1, "checkpoint_every": 1, "log_steps": 2}
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
        network=torch.nn.Identity(),
        timing=Timing(torch.device("cpu")),
        window=[],
        step=step,
        resume=lambda: None,
        checkpoints=SimpleNamespace(due=lambda before, now: False, close=lambda: None),
        save=lambda scored: takes(10),
        evaluate=lambda uri: takes(100),
        tell=lambda kind, **values: told.append((kind, values)),
        put=lambda kind, **values: told.append((kind, values)),
        node=dict,
    )
    loop.train()
    # 8 images: from the first batch on in 3 s (a step, a batch, a step), and after the evaluation in 4 s (a batch, a step, twice).
    assert [values["images_per_second"] for kind, values in told if kind == "step"] == [pytest.approx(8 / 3), 2.0]
    # Of the 3 s one was spent in waiting, of the 4 s two; the wait for the very first batch is the start of the job.
    assert [values["data_share"] for kind, values in told if kind == "step"] == [pytest.approx(1 / 3), 0.5]
    assert [values["rest_share"] for kind, values in told if kind == "step"] == [pytest.approx(0, abs=1e-9)] * 2
    assert [(values["images_seen"], values["step_seconds"]) for kind, values in told if kind == "timing"] == [(8, 2.0), (16, 2.0)]


def test_gradients_are_views_of_what_is_sent_and_running_statistics_stay_local() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        network = distribute(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)))
        for _ in range(2):
            network.zero_grad(set_to_none=True)
            network(torch.ones(2, 3, 8, 8)).sum().backward()
        assert not network.will_sync_module_buffers()
    finally:
        dist.destroy_process_group()
    # Four parameters, one bucket: no second copy of the gradients.
    assert len({parameter.grad.untyped_storage().data_ptr() for parameter in network.parameters()}) == 1
