"""The loop of a worker without its cluster, its data and its network: what it tells, by a clock of
its own, what it evaluates and when it stops.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from cluster.errors import PlainError
from cluster.runs import evaluations, run_folder
from cluster.runs.training_config import compiles
from cluster.training import timing, worker
from cluster.training.step_reports import StepReports
from cluster.training.timing import Timing
from cluster.training.worker import Worker, distribute, shared_batch
from detector.step import NonFiniteLoss, StepReport


def report(*, classification: float = 0.5, own: tuple[bool, bool] = (True, True)) -> StepReport:
    values = torch.tensor([classification, 0.5, 1.0, 1.0, 90.0])
    return StepReport(values, torch.tensor(own), torch.tensor([7, 8]))


TRAINING = {
    "evaluate_every": 1,
    "checkpoint_every": 1,
    "checkpoint_images": 0,
    "patience": 0,
    "min_improvement": 0.0,
}
TRAINING |= {"batch_size": 4, "workers": 1, "amp": False, "log_steps": 2}


@pytest.fixture(autouse=True)
def nothing_to_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "resume", lambda loop: None)


class Clock:
    now = 0.0

    def takes(self, seconds: float) -> None:
        self.now += seconds


def loop_of(
    clock: Clock, run: str, *, training: dict[str, Any], **parts: Any
) -> tuple[Worker, list[tuple[str, dict[str, Any]]]]:
    """A worker alone with two batches of 4 images an epoch, and the list of what it tells."""

    def batches(epoch: int, left: list) -> Iterator[SimpleNamespace]:
        for _ in range(2 if left else 0):
            clock.takes(1)
            yield SimpleNamespace(to=lambda device: None)

    def step(batch: object, *, learning_rate: float) -> StepReport:
        clock.takes(1)
        return report()

    told: list[tuple[str, dict[str, Any]]] = []
    loop = Worker.__new__(Worker)
    given = dict(
        job={
            "training": TRAINING | training,
            "optimizer": {
                "name": "sgd",
                "learning_rate": 1.0,
                "schedule": "constant",
                "warmup": 0.0,
                "milestones": (),
            },
        },
        stream=SimpleNamespace(epoch=batches, places=8),
        model=SimpleNamespace(train=lambda: None),
        average=None,
        device=SimpleNamespace(type="cpu"),
        run=run,
        rank=0,
        ranks=1,
        local_rank=0,
        batches=[4],
        parts=1,
        amp_dtype=None,
        epochs=2,
        epoch=0,
        images_seen=0,
        left=[(0, 8)],
        network=torch.nn.Identity(),
        timing=Timing(torch.device("cpu")),
        resumed_from=None,
        evaluations=evaluations.read(run),
        window=[],
        told=[],
        step=step,
        checkpoints=SimpleNamespace(
            due=lambda before, now: False,
            close=lambda: None,
            once_stored=lambda uri, action: action(),
        ),
        save=lambda scored: run_folder.checkpoint_uri(run, loop.images_seen),
        tell=lambda kind, **values: told.append((kind, values)),
        put=lambda kind, **values: told.append((kind, values)),
        place={},
        publishing=None,
        watchdog=SimpleNamespace(progressed=lambda: None, stop=lambda: None),
    )
    vars(loop).update(given | parts)
    loop.reports = StepReports(
        loop.device, 0, 1, allowed=loop.job["training"].get("skip_nonfinite", 0), tell=loop.tell
    )
    return loop, told


def test_the_time_of_an_evaluation_is_no_throughput(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(timing, "time", SimpleNamespace(monotonic=lambda: clock.now))
    loop, told = loop_of(
        clock,
        str(tmp_path),
        training={},
        save=lambda scored: clock.takes(10),
        evaluate=lambda uri, again: clock.takes(100),
    )
    loop.train()
    # 8 images: from the first batch on in 3 s (a step, a batch, a step), and after the evaluation
    # in 4 s (a batch, a step, twice).
    assert [values["images_per_second"] for kind, values in told if kind == "step"] == [
        pytest.approx(8 / 3),
        2.0,
    ]
    # Of the 3 s one was spent in waiting, of the 4 s two; the wait for the very first batch is the
    # start of the job.
    assert [values["data_share"] for kind, values in told if kind == "step"] == [
        pytest.approx(1 / 3),
        0.5,
    ]
    assert [values["rest_share"] for kind, values in told if kind == "step"] == [
        pytest.approx(0, abs=1e-9)
    ] * 2
    assert [
        (values["images_seen"], values["step_seconds"]) for kind, values in told if kind == "timing"
    ] == [(8, 2.0), (16, 2.0)]


@pytest.mark.parametrize("due", [4, 8])
def test_a_checkpoint_that_is_due_is_taken_also_where_an_epoch_ends(
    tmp_path: Path, due: int
) -> None:
    """The fourth image is in the middle of the first epoch, the eighth its last."""
    saved = []
    checkpoints = SimpleNamespace(due=lambda before, now: now == due, close=lambda: None)
    loop, _ = loop_of(
        Clock(),
        str(tmp_path),
        training={"evaluate_every": 9, "checkpoint_every": 9},
        checkpoints=checkpoints,
    )
    loop.save, loop.evaluate = (
        lambda scored=False: saved.append((loop.images_seen, scored)),
        lambda uri, again: None,
    )
    loop.train()
    # The last epoch is always evaluated.
    assert saved == [(due, False), (16, True)]


def test_a_checkpoint_of_one_rank_reads_no_report_before_the_others_do(tmp_path: Path) -> None:
    """On a GPU the newest step is still on its way; were it not finite, all ranks would speak about
    it, and only one would be there.
    """
    unread = []
    checkpoints = SimpleNamespace(due=lambda before, now: now == 4, close=lambda: None)
    loop, _ = loop_of(
        Clock(),
        str(tmp_path),
        training={},
        evaluate=lambda uri, again: None,
        checkpoints=checkpoints,
    )
    loop.reports.late = 1
    loop.save = lambda scored=False: unread.append(len(loop.reports.unread))
    loop.train()
    assert unread == [1, 0, 0]


def test_storage_that_is_away_at_an_epochs_end_does_not_stop_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(run: str) -> list[Any]:
        raise PlainError("the storage is away")

    loop, told = loop_of(
        Clock(), str(tmp_path), training={"patience": 1}, evaluate=lambda uri, again: None
    )
    loop.job["evaluation"] = "beside"
    monkeypatch.setattr(evaluations, "read", away)
    loop.train()
    (warning,) = [values["text"] for kind, values in told if kind == "warning"]
    assert (
        warning
        == "whether training should stop is judged by the evaluations known before: the storage is"
        " away"
    )
    assert run_folder.read_finished(str(tmp_path)) == run_folder.Finished(16, 2)


@pytest.mark.parametrize("allowed", [0, 1, 2])
def test_updates_are_left_out_up_to_the_number_allowed_and_each_is_told(
    tmp_path: Path, allowed: int
) -> None:
    """The second and the third of four steps are not finite; what the others saw is not mixed with
    them.
    """
    seen = iter(
        [
            report(),
            report(classification=float("nan"), own=(True, False)),
            report(classification=float("inf"), own=(False, True)),
            report(),
        ]
    )
    loop, told = loop_of(
        Clock(), str(tmp_path), training={"skip_nonfinite": allowed}, evaluate=lambda *_, **__: None
    )
    loop.step = lambda batch, learning_rate: next(seen)
    if allowed < 2:
        expected = [
            "step 2, rank 0: the loss of images [8]",
            "step 3, rank 0: the loss of images [7]",
        ][allowed]
        with pytest.raises(NonFiniteLoss, match=re.escape(expected)):
            loop.train()
    else:
        loop.train()
        assert [values["classification"] for kind, values in told if kind == "step"] == [0.5, 0.5]
        assert [values["images_seen"] for kind, values in told if kind == "timing"] == [8, 16]
    assert [values["text"][:14] for kind, values in told if kind == "warning"] == [
        "step 2, rank 0",
        "step 3, rank 0",
    ][:allowed]
    assert loop.reports.left_out == min(allowed + 1, 2)


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


def test_on_a_gpu_reports_are_read_one_step_late() -> None:
    reports = StepReports(
        SimpleNamespace(type="cuda"), 0, 1, allowed=0, tell=lambda kind, **values: None
    )
    read = []
    for step in range(1, 4):
        reports.add(report(classification=float(step)), step, {"step": step})
        read.append(
            [(numbers["classification"], values) for numbers, values in reports.read(all=False)]
        )
    assert read == [[], [(1.0, {"step": 1})], [(2.0, {"step": 2})]]
    assert [values for _, values in reports.read(all=True)] == [{"step": 3}]


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
    monkeypatch.setattr(worker.ray, "nodes", lambda: nodes)
    monkeypatch.setattr(
        worker.ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "here")
    )
    monkeypatch.setattr(worker.os, "sched_getaffinity", lambda process: set(range(usable)))
    assert worker.threads_each(workers) == threads


def test_the_rank_whose_own_loss_it_was_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 hears of it through the sum alone; rank 1 has the image."""
    gathered: dict[int, Any] = {}
    barrier = threading.Barrier(2, timeout=30)

    def gather(found: list[Any], own: Any) -> None:
        gathered[own[1]] = own
        barrier.wait()
        found[:] = [gathered[rank] for rank in range(2)]

    monkeypatch.setattr("cluster.training.step_reports.dist.all_gather_object", gather)
    texts: dict[int, str] = {}

    def work(rank: int) -> None:
        reports = StepReports(
            torch.device("cpu"), rank, 2, allowed=0, tell=lambda kind, **values: None
        )
        reports.add(report(classification=float("nan"), own=(rank == 0, True)), 5, {})
        try:
            list(reports.read(all=True))
        except NonFiniteLoss as error:
            texts[rank] = str(error)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts[0] == texts[1] and texts[0].startswith(
        "step 5, rank 1: the loss of images [7] is not finite"
    )


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
    assert (
        len({parameter.grad.untyped_storage().data_ptr() for parameter in network.parameters()})
        == 1
    )


@pytest.mark.parametrize("place", ["beside", "between"])
def test_training_stops_where_ap_no_longer_rises(tmp_path: Path, place: str) -> None:
    run, aps = str(tmp_path), iter([0.25, 0.5, 0.5, 0.25, 0.75])

    def evaluate(uri: str, *, again: bool) -> None:
        evaluation = evaluations.Evaluation(
            uri, loop.images_seen, loop.epoch + 1, metrics={"AP": next(aps)}
        )
        if place == "beside":
            return evaluations.store(run, evaluation)
        loop.evaluations = evaluations.insert(loop.evaluations, evaluation)

    loop, told = loop_of(Clock(), run, training={"patience": 2}, epochs=9, evaluate=evaluate)
    loop.job["evaluation"] = place
    loop.train()
    # The best was after the second epoch; the third and the fourth are two without a better one.
    reason = "AP has not risen in 2 evaluations, from 0.5000 after epoch 2"
    assert run_folder.read_finished(run) == run_folder.Finished(32, 4, stopped=reason)
    assert told[-1] == ("stopped", {"images_seen": 32, "epoch": 4, "reason": reason})


@pytest.mark.parametrize("known", [False, True])
def test_after_a_resume_at_an_epochs_end_only_what_is_missing_is_made(
    tmp_path: Path, known: bool
) -> None:
    """The checkpoint that was resumed from is sent to be evaluated only where that was not done
    before the restart.
    """
    run = str(tmp_path)
    first, second = (run_folder.checkpoint_uri(run, images_seen) for images_seen in (8, 16))
    if known:
        evaluations.store(run, evaluations.Evaluation(first, 8, 1, metrics={"AP": 0.5}))
    loop, _ = loop_of(Clock(), run, training={}, images_seen=8, left=[], resumed_from=first)
    loop.job["evaluation"] = "beside"
    loop.train()
    assert evaluations.waiting(run) == ([] if known else [first]) + [second]
    assert evaluations.read_request(run, second) == evaluations.Request(second, 16, 2)


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
    training = {
        "batch_size": batch,
        "workers": workers,
        "accumulate": accumulate,
        "resized_batch": resized,
    }
    assert shared_batch(training, ranks=ranks) == (batches, parts)


@pytest.mark.parametrize(("name", "rates"), [("sgd", [0.5, 0.5]), ("adamw", [0.5**0.5, 0.5**0.5])])
def test_a_scaled_batch_scales_the_learning_rate(
    tmp_path: Path, name: str, rates: list[float]
) -> None:
    """Half the workers, half the batch, and the rate that belongs to it."""
    loop, told = loop_of(
        Clock(),
        str(tmp_path),
        training={"batch_size": 8},
        epochs=1,
        evaluate=lambda uri, again: None,
    )
    loop.job["optimizer"]["name"] = name
    loop.job["training"]["log_steps"] = 1
    loop.train()
    assert [values["learning_rate"] for kind, values in told if kind == "step"] == pytest.approx(
        rates
    )
