"""Evaluation beside training, by an evaluator whose results are made up."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import DataError, PlainError
from cluster.runs import evaluations, run_folder
from cluster.runs.evaluations import Evaluation, Request
from cluster.runs.events import EvaluationDone, EvaluationFailed, EvaluationStarted, Event
from cluster.training import background_evaluation
from cluster.training.background_evaluation import ActorEvaluator, BackgroundEvaluation

SHARE = {"workers": 1, "cpus_per_worker": 0.75, "gpus_per_worker": 0}


def evaluation_of(request: Request, ap: float) -> Evaluation:
    return Evaluation(
        request.checkpoint,
        request.images_seen,
        request.epoch,
        weights="ema",
        metrics={"AP": ap},
        per_class={"cat": ap},
        images_evaluated=8,
    )


class Scripted:
    """Its results are laid down for the images seen: APs and errors, one after the other."""

    def __init__(self, **laid_down: list[Any]):
        self.laid_down = {
            int(seen.removeprefix("at")): list(values) for seen, values in laid_down.items()
        }

    def evaluate(self, request: Request) -> Evaluation:
        value = self.laid_down[request.images_seen].pop(0)
        if isinstance(value, Exception):
            raise value
        return evaluation_of(request, value)

    def grow(self, share: dict[str, Any]) -> None:
        pass

    def kill(self) -> None:
        pass


def evaluation(run: str, evaluator: Any) -> tuple[BackgroundEvaluation, list[Event]]:
    told: list[Event] = []
    return BackgroundEvaluation(run, evaluator, tell=told.append), told


def request(run: str, *images_seen: int) -> list[str]:
    checkpoints = [run_folder.checkpoint_uri(run, seen) for seen in images_seen]
    for uri, seen in zip(checkpoints, images_seen, strict=True):
        evaluations.store_request(run, Request(uri, seen, seen // 100))
    return checkpoints


def results(run: str) -> list[tuple[int, float | None, str | None]]:
    return [
        (each.images_seen, each.metrics.get("AP"), each.error) for each in evaluations.read(run)
    ]


def test_all_that_wait_are_evaluated_in_order(tmp_path: Path) -> None:
    run = str(tmp_path)
    request(run, 300, 100, 200)
    background, told = evaluation(run, Scripted(at100=[0.5], at200=[0.75], at300=[0.25]))
    background.finish(SHARE)
    assert [event for event in told if isinstance(event, EvaluationStarted)] == [
        EvaluationStarted(100, 1, 2),
        EvaluationStarted(200, 2, 1),
        EvaluationStarted(300, 3, 0),
    ]
    assert results(run) == [(100, 0.5, None), (200, 0.75, None), (300, 0.25, None)]
    assert evaluations.best_checkpoint(run).images_seen == 200
    assert evaluations.waiting(run) == []


def test_a_failing_evaluation_is_retried_once_and_then_missing(tmp_path: Path) -> None:
    run = str(tmp_path)
    request(run, 100, 200, 300)
    gone = RuntimeError("Traceback\n  somewhere\nOSError: the node is gone\n")
    evaluator = Scripted(at100=[gone, 0.5], at200=[gone, gone], at300=[0.25])
    background, told = evaluation(run, evaluator)
    background.finish(SHARE)
    reason = "OSError: the node is gone"
    assert results(run) == [(100, 0.5, None), (200, None, reason), (300, 0.25, None)]
    subject = "evaluation of the checkpoint at {} images"
    assert [event for event in told if isinstance(event, EvaluationFailed)] == [
        EvaluationFailed(subject.format(100), reason, "it is retried once"),
        EvaluationFailed(subject.format(200), reason, "it is retried once"),
        EvaluationFailed(subject.format(200), reason, "the checkpoint has no AP"),
    ]


def wait_until(run: str, evaluator: Any, monkeypatch: pytest.MonkeyPatch, kind: type) -> list[Any]:
    """Evaluate beside training until an event of this kind is told."""
    monkeypatch.setattr(background_evaluation, "LOOK_EVERY_S", 0.01)
    told: list[Event] = []
    done = threading.Event()

    def tell(event: Event) -> None:
        told.append(event)
        if isinstance(event, kind):
            done.set()

    with BackgroundEvaluation(run, evaluator, tell=tell):
        assert done.wait(60)
    return told


def test_the_last_evaluation_must_succeed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it failed beside training, just before that ended. It waits for the same command
    again.
    """
    run = str(tmp_path)
    (last,) = request(run, 300)
    damaged = DataError("shard-00000: sha256 mismatch")
    evaluator = Scripted(at300=[damaged, damaged, damaged, damaged])

    def store(run: str, row: Any, original: Callable[..., None] = evaluations.store) -> None:
        original(run, row)
        stored.set()

    stored = threading.Event()
    monkeypatch.setattr(evaluations, "store", store)
    monkeypatch.setattr(background_evaluation, "LOOK_EVERY_S", 0.01)
    background, _ = evaluation(run, evaluator)
    with background:
        assert stored.wait(60)
    assert results(run) == [(300, None, str(damaged))]
    with pytest.raises(
        DataError,
        match="^the evaluation of .*images-000000000300 failed: shard-00000: sha256 mismatch;"
        " training is finished",
    ):
        background.finish(SHARE)
    assert evaluations.waiting(run) == [last]
    evaluation(run, Scripted(at300=[0.5]))[0].finish(SHARE)
    assert evaluations.best_checkpoint(run).ap == 0.5 and evaluations.waiting(run) == []


def test_the_thread_beside_training_outlives_its_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = str(tmp_path)
    request(run, 100)
    listings = iter([PlainError("s3://runs: does not answer")])

    def waiting(run: str, original: Any = evaluations.waiting) -> list[str]:
        for error in listings:
            raise error
        return original(run)

    monkeypatch.setattr(evaluations, "waiting", waiting)
    told = wait_until(run, Scripted(at100=[0.5]), monkeypatch, EvaluationDone)
    assert told[0] == EvaluationFailed(
        "evaluating beside training", "s3://runs: does not answer", "it is retried"
    )
    assert results(run) == [(100, 0.5, None)]


def test_if_training_failed_its_evaluation_waits_for_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = str(tmp_path)
    waiting = request(run, 100, 200)
    monkeypatch.setattr(background_evaluation, "LOOK_EVERY_S", 0.01)
    begun, killed = threading.Event(), threading.Event()

    class Killed(Scripted):
        def evaluate(self, request: Request) -> Evaluation:
            begun.set()
            assert killed.wait(60)
            raise RuntimeError("the actor was killed")

        def kill(self) -> None:
            killed.set()

    background, told = evaluation(run, Killed())
    with pytest.raises(KeyboardInterrupt), background:
        assert begun.wait(60)
        raise KeyboardInterrupt
    assert not background.is_alive()
    assert [type(event) for event in told] == [EvaluationStarted]
    assert evaluations.waiting(run) == waiting and evaluations.read(run) == []


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"workers": 2, "cpus_per_worker": 0.5}, 2),
        ({"workers": 1, "cpus_per_worker": 0.5}, 1),
        ({"workers": 4, "cpus_per_worker": 0.1}, 1),
    ],
)
def test_the_resources_of_the_workers_are_used_if_they_are_more(
    more: dict[str, Any], expected: int
) -> None:
    evaluator = ActorEvaluator("/val", weights="ema", share=SHARE)
    evaluator.grow({**SHARE, **more})
    assert evaluator.share["workers"] == expected
