"""The evaluator beside training with results that are made up: order, retries, failures."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import DataError, PlainError
from cluster.runs import evaluations, run_folder
from cluster.runs.evaluations import Evaluation, Request
from cluster.training import background_evaluation
from cluster.training.background_evaluation import Evaluator

SHARE = {"workers": 1, "cpus_per_worker": 0.75, "gpus_per_worker": 0}


def evaluation(run: str, images_seen: int, ap: float) -> Evaluation:
    return Evaluation(
        run_folder.checkpoint_uri(run, images_seen),
        images_seen,
        images_seen // 100,
        weights="ema",
        metrics={"AP": ap, "AP50": ap, "AP75": ap},
        per_class={"cat": ap},
        images_evaluated=8,
    )


def ask(run: str, *images_seen: int) -> list[str]:
    checkpoints = [run_folder.checkpoint_uri(run, seen) for seen in images_seen]
    for uri, seen in zip(checkpoints, images_seen, strict=True):
        evaluations.store_request(run, Request(uri, seen, seen // 100))
    return checkpoints


class Scores(Evaluator):
    """An evaluator whose tasks give what was laid down for the images seen: APs and errors, one
    after the other.
    """

    def __init__(self, run: str, **laid_down: list[Any]):
        self.events: list[tuple] = []
        self.laid_down = {
            int(seen.removeprefix("at")): list(values) for seen, values in laid_down.items()
        }
        super().__init__(
            run,
            "/val",
            weights="ema",
            share=SHARE,
            tell=lambda kind, **values: self.events.append((kind, *values.values())),
        )

    def start(self, request: Request) -> Evaluation:
        value = self.laid_down[request.images_seen].pop(0)
        if isinstance(value, Exception):
            raise value
        return evaluation(self.run, request.images_seen, value)


def test_all_that_wait_are_evaluated_in_order(tmp_path: Path) -> None:
    run = str(tmp_path)
    ask(run, 300, 100, 200)
    judge = Scores(run, at100=[0.5], at200=[0.75], at300=[0.25])
    judge.finish(SHARE)
    assert [event[:4] for event in judge.events if event[0] == "evaluating"] == [
        ("evaluating", 100, 1, 2), ("evaluating", 200, 2, 1), ("evaluating", 300, 3, 0)
    ]  # fmt: skip
    assert evaluations.read(run) == [
        evaluation(run, 100, 0.5),
        evaluation(run, 200, 0.75),
        evaluation(run, 300, 0.25),
    ]
    assert (
        evaluations.best_checkpoint(run) == evaluation(run, 200, 0.75)
        and evaluations.waiting(run) == []
    )


def test_a_failing_evaluation_is_tried_once_more_and_then_missing(tmp_path: Path) -> None:
    run = str(tmp_path)
    ask(run, 100, 200, 300)
    gone = RuntimeError("Traceback\n  somewhere\nOSError: the node is gone\n")
    judge = Scores(run, at100=[gone, 0.5], at200=[gone, gone], at300=[0.25])
    judge.finish(SHARE)
    assert [(each.images_seen, each.metrics.get("AP"), each.error) for each in evaluations.read(run)] == [
        (100, 0.5, None), (200, None, "OSError: the node is gone"), (300, 0.25, None)
    ]  # fmt: skip
    what = "evaluation of the checkpoint at {} images"
    assert [event[1:] for event in judge.events if event[0] == "evaluation_failed"] == [
        (what.format(100), "OSError: the node is gone", "tried once more"),
        (what.format(200), "OSError: the node is gone", "tried once more"),
        (what.format(200), "OSError: the node is gone", "it stays without AP"),
    ]


def test_the_last_evaluation_must_come_to_numbers(tmp_path: Path) -> None:
    """Also where it failed beside training, just before that ended. It waits for the same command
    again.
    """
    run = str(tmp_path)
    (last,) = ask(run, 300)
    damaged = DataError("shard-00000: its sha256 is another one")
    beside = Scores(run, at300=[damaged, damaged, damaged, damaged])
    beside.evaluate([last], must=False)
    assert evaluations.read(run)[0].error == str(damaged)
    with pytest.raises(
        DataError,
        match=(
            "^the evaluation of .*images-000000000300 failed: shard-00000: its sha256 is another"
            " one; training is"
        ),
    ):
        beside.finish(SHARE)
    assert evaluations.waiting(run) == [last]
    Scores(run, at300=[0.5]).finish(SHARE)
    assert (
        evaluations.best_checkpoint(run) == evaluation(run, 300, 0.5)
        and evaluations.waiting(run) == []
    )


def test_the_thread_beside_training_outlives_its_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, done = str(tmp_path), threading.Event()
    ask(run, 100)
    monkeypatch.setattr(background_evaluation, "LOOK_EVERY_S", 0.01)
    listings = iter([PlainError("s3://runs: does not answer")])

    def waiting(run: str, original: Any = evaluations.waiting) -> list[str]:
        for error in listings:
            raise error
        return original(run)

    monkeypatch.setattr(evaluations, "waiting", waiting)
    judge = Scores(run, at100=[0.5])
    tell = judge.tell
    judge.tell = lambda kind, **values: (
        tell(kind, **values),
        done.set() if kind == "evaluation" else None,
    )
    with judge:
        assert done.wait(10)
    assert judge.events[0] == (
        "evaluation_failed",
        "evaluating beside training",
        "s3://runs: does not answer",
        "tried again",
    )
    assert evaluations.read(run) == [evaluation(run, 100, 0.5)]


def test_where_training_failed_its_evaluation_waits_for_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = str(tmp_path)
    ask(run, 100, 200)
    monkeypatch.setattr(background_evaluation, "LOOK_EVERY_S", 0.01)
    begun, ended = threading.Event(), threading.Event()

    class Cancelled(Scores):
        def start(self, request: Request) -> Evaluation:
            begun.set()
            assert ended.wait(10)
            raise RuntimeError("the task was cancelled")

    judge = Cancelled(run)
    with pytest.raises(KeyboardInterrupt), judge:
        assert begun.wait(10)
        # The thread meets the cancellation while this block is left.
        threading.Timer(0.1, ended.set).start()
        raise KeyboardInterrupt
    assert not judge.thread.is_alive()
    assert [event[0] for event in judge.events] == ["evaluating"]
    assert len(evaluations.waiting(run)) == 2 and evaluations.read(run) == []
