"""What the evaluations of a run add up to, without Ray: what waits, the best, the end of patience;
and an evaluator whose scores are made up.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import DataError, PlainError
from cluster.runs import evaluations, run_folder
from cluster.runs.config import TrainConfig
from cluster.training import background_evaluation
from cluster.training.background_evaluation import Evaluator

SHARE = {"workers": 1, "cpus_per_worker": 0.75, "gpus_per_worker": 0}
DATA = {"data": {"train": "/t", "val": "/v"}}


def scored(run: str, images_seen: int, ap: float) -> evaluations.Verdict:
    uri, numbers = (
        run_folder.checkpoint_uri(run, images_seen),
        {"AP": ap, "AP50": ap, "AP75": ap, "per_class": {"cat": ap}},
    )
    return {
        "checkpoint": uri,
        "images_seen": images_seen,
        "epoch": images_seen // 100,
        "weights": "ema",
        **numbers,
    }


def best(run: str, images_seen: int, ap: float) -> evaluations.Verdict:
    return {
        name: value for name, value in scored(run, images_seen, ap).items() if name != "per_class"
    }


def ask(run: str, *images_seen: int) -> list[str]:
    for seen in images_seen:
        evaluations.request(run, run_folder.checkpoint_uri(run, seen), seen, seen // 100)
    return [run_folder.checkpoint_uri(run, seen) for seen in images_seen]


def test_what_was_asked_for_waits_by_images_seen_until_it_is_settled(tmp_path: Path) -> None:
    run = str(tmp_path)
    assert evaluations.waiting(run) == [] and evaluations.evaluations(run) == []
    later, first = ask(run, 1000, 200)
    assert evaluations.waiting(run) == [first, later]
    assert evaluations.asked(run, later) == {"checkpoint": later, "images_seen": 1000, "epoch": 10}
    evaluations.settle(run, scored(run, 200, 0.25))
    assert (
        evaluations.waiting(run) == [later]
        and evaluations.known(evaluations.evaluations(run), 1000) is None
    )
    assert evaluations.known(evaluations.evaluations(run), 200) == scored(run, 200, 0.25)


def test_the_best_is_the_highest_ap_and_of_equals_the_newest(tmp_path: Path) -> None:
    run = str(tmp_path)
    # An evaluation that is made late finds its place; one that is made again replaces the first.
    for verdict in (
        scored(run, 100, 0.5),
        scored(run, 300, 0.5),
        scored(run, 200, 0.5),
        scored(run, 400, 0.75),
        scored(run, 400, 0.25),
    ):
        evaluations.settle(run, verdict)
    evaluations.settle(
        run, {"checkpoint": "lost", "images_seen": 500, "epoch": 5, "error": "the machine is gone"}
    )
    assert [one["images_seen"] for one in evaluations.evaluations(run)] == [100, 200, 300, 400, 500]
    assert run_folder.best_checkpoint(run) == best(run, 300, 0.5)
    assert evaluations.known(evaluations.evaluations(run), 500) is None


@pytest.mark.parametrize(
    ("aps", "patience", "rise", "stops"),
    [
        ([0.1, 0.2, 0.3], 1, 0.0, False),
        ([0.3, 0.3], 1, 0.0, True),  # equal is not better
        ([0.3, 0.2, 0.31], 2, 0.0, False),
        ([0.3, 0.2, 0.1], 2, 0.0, True),
        ([0.3, 0.2, 0.1], 3, 0.0, False),
        ([0.3, 0.2, 0.1], 0, 0.0, False),
        # Rises of 0.06 and 0.04 each fall short of 0.0625 and add up: 0.4 is 0.1 above the last
        # that counted, 0.3.
        ([0.3, 0.36, 0.4, 0.41], 2, 0.0625, False),
        ([0.3, 0.36, 0.35], 2, 0.0625, True),
        ([0.0, 0.0, 0.0], 2, 0.0, True),
        ([-1.0, -1.0], 1, 0.0, True),  # a set without objects
        ([], 1, 0.0, False),
    ],
)
def test_patience_counts_evaluations_since_the_last_that_was_better(
    aps: list[float], patience: int, rise: float, stops: bool
) -> None:
    over = [scored("", 100 * number, ap) for number, ap in enumerate(aps, start=1)]
    assert (
        evaluations.reason_to_stop(over, patience=patience, min_improvement=rise) is not None
    ) == stops


def test_a_missing_evaluation_neither_helps_nor_harms() -> None:
    lost = {"checkpoint": "lost", "images_seen": 250, "epoch": 2, "error": "the machine is gone"}
    over = [scored("", 100, 0.5), scored("", 200, 0.25), lost]
    assert evaluations.reason_to_stop(over, patience=2, min_improvement=0) is None
    over.append(scored("", 300, 0.5))
    reason = evaluations.reason_to_stop(over, patience=2, min_improvement=0.125)
    assert (
        reason == "AP has not risen by more than 0.125 in 2 evaluations, from 0.5000 after epoch 1"
    )


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

    def start(self, asked: evaluations.Verdict) -> dict[str, Any]:
        value = self.laid_down[asked["images_seen"]].pop(0)
        if isinstance(value, Exception):
            raise value
        return {
            "images": 8,
            "detections": 9,
            "AP": value,
            "AP50": value,
            "AP75": value,
            "per_class": {"cat": {"AP": value, "objects": 3.0}},
        }


def test_all_that_wait_are_evaluated_in_order(tmp_path: Path) -> None:
    run = str(tmp_path)
    ask(run, 300, 100, 200)
    judge = Scores(run, at100=[0.5], at200=[0.75], at300=[0.25])
    judge.finish(SHARE)
    assert [event[:4] for event in judge.events if event[0] == "evaluating"] == [
        ("evaluating", 100, 1, 2), ("evaluating", 200, 2, 1), ("evaluating", 300, 3, 0)
    ]  # fmt: skip
    assert evaluations.evaluations(run) == [
        scored(run, 100, 0.5),
        scored(run, 200, 0.75),
        scored(run, 300, 0.25),
    ]
    assert (
        run_folder.best_checkpoint(run) == best(run, 200, 0.75) and evaluations.waiting(run) == []
    )


def test_a_failing_evaluation_is_tried_once_more_and_then_missing(tmp_path: Path) -> None:
    run = str(tmp_path)
    ask(run, 100, 200, 300)
    gone = RuntimeError("Traceback\n  somewhere\nOSError: the node is gone\n")
    judge = Scores(run, at100=[gone, 0.5], at200=[gone, gone], at300=[0.25])
    judge.finish(SHARE)
    assert [(one["images_seen"], one.get("AP"), one.get("error")) for one in evaluations.evaluations(run)] == [
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
    assert evaluations.evaluations(run)[0]["error"] == str(damaged)
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
    assert run_folder.best_checkpoint(run) == best(run, 300, 0.5) and evaluations.waiting(run) == []


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
    assert evaluations.evaluations(run) == [scored(run, 100, 0.5)]


def test_where_training_failed_its_evaluation_waits_for_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = str(tmp_path)
    ask(run, 100, 200)
    monkeypatch.setattr(background_evaluation, "LOOK_EVERY_S", 0.01)
    begun, ended = threading.Event(), threading.Event()

    class Cancelled(Scores):
        def start(self, asked: evaluations.Verdict) -> dict[str, Any]:
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
    assert len(evaluations.waiting(run)) == 2 and evaluations.evaluations(run) == []


@pytest.mark.parametrize(
    ("training", "message"),
    [
        (
            {"min_improvement": 0.01},
            "training.min_improvement 0.01: does nothing without training.patience",
        ),
        (
            {"evaluation": "between", "evaluation_workers": 2},
            "training.evaluation_workers 2: does nothing with training.evaluation between",
        ),
    ],
)
def test_settings_that_do_nothing_are_refused(training: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig.model_validate({**DATA, "training": training})


def test_an_evaluation_takes_a_gpu_where_workers_have_one() -> None:
    shares = [
        TrainConfig.model_validate({**DATA, "training": training}).evaluation_share[
            "gpus_per_worker"
        ]
        for training in (
            {},
            {"gpus_per_worker": 1},
            {"gpus_per_worker": 1, "evaluation_gpus": 0},
            {"evaluation_gpus": 0.5},
        )
    ]
    assert shares == [0, 1, 0, 0.5]
