"""What a person reads while a training runs."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import get_args

import pytest

from cluster.runs import events
from cluster.runs.evaluations import Evaluation
from cluster.training.console import Console

STARTED = events.Started(
    ranks=1,
    workers=2,
    batch_size=8,
    batch=8,
    parts=1,
    threads=1,
    precision="float32",
    images_seen=0,
    images_total=100,
    epoch=0,
)
STEPS = events.StepsDone(
    images_seen=50,
    epoch=0.5,
    images_per_second=10.0,
    data_share=0.124,
    step_share=0.8,
    rest_share=0.076,
    classification=0.25,
    box=0.125,
    positives=3.0,
    gradient_norm=1.0,
    loss_normalizer=90.0,
    learning_rate=0.01,
)
WORKER = events.WorkerProcess(1, "10.0.0.2", 42)
EVALUATED = events.EvaluationDone(
    Evaluation("/c", 8, 1, metrics={"AP": 0.5, "AP50": 0.75, "AP75": 0.25}, images_evaluated=8)
)


def lines(*given: events.Event) -> list[str]:
    out = io.StringIO()
    console = Console("cells", out=out, interval=0)
    for event in given:
        console(event)
    printed = out.getvalue().splitlines()
    assert all(line.startswith("[cells] ") for line in printed)
    return [line.removeprefix("[cells] ") for line in printed]


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (events.WorkersPlaced((WORKER,)), "ranks: 1 on 10.0.0.2 (pid 42)"),
        (events.Resumed("/c", 8, 1), "continuing from /c"),
        (events.CheckpointStored("/c", 8), "checkpoint /c"),
        (events.TrainingWarning("a"), "warning: a"),
        (
            events.EvaluationStarted(8, 1, 2),
            "evaluating the checkpoint at 8 images (epoch 1); 2 more wait",
        ),
        (
            EVALUATED,
            "evaluation of the checkpoint at 8 images (epoch 1) on 8 images: AP 0.5000  AP50"
            " 0.7500  AP75 0.2500",
        ),
        (
            events.EvaluationFailed("an evaluation", "no disk", "it is retried once"),
            "warning: an evaluation failed (no disk); it is retried once",
        ),
        (events.StoppedEarly(8, 1, "AP fell"), "stopped early after epoch 1: AP fell"),
        (
            events.ProfileStored("/p", 3),
            "profile of up to 3 steps in /p: operations.txt, and trace.json.gz for ui.perfetto.dev",
        ),
        (
            events.WorkerHung(WORKER, 15.2, "hangs, at a.py:1 f"),
            "rank 1 on 10.0.0.2 (pid 42) made no progress for 15 s and is terminated: hangs, at"
            " a.py:1 f",
        ),
        (
            events.WorkerFailed(WORKER, "a bug", "/t", "restart 1 of 2"),
            "rank 1 on 10.0.0.2 (pid 42) failed: a bug; restart 1 of 2; its traceback is in /t",
        ),
        (
            events.GroupStartFailed("a worker that started", "a bug", "", "no restart is left"),
            "a worker that started failed: a bug; no restart is left",
        ),
        (
            events.WaitingForNodes(75, "2 workers of 1 CPUs"),
            "waiting for 2 workers of 1 CPUs since 0:01:15: the cluster has no room for them",
        ),
        (
            events.GroupResized(1, 2, checkpointed=True),
            "1 workers become 2, from the checkpoint just taken",
        ),
        (
            events.WeightsLoaded(
                "/m.pkl",
                "detectron2",
                290,
                reinitialised=("class_head.output.weight",),
                unused=("a", "b", "c", "d"),
                notes=("a note",),
            ),
            "290 tensors loaded from /m.pkl (detectron2); initialised anew because the classes"
            " differ: class_head.output.weight; not used: a, b, c and 1 more; a note",
        ),
    ],
)
def test_an_event_is_one_line(event: events.Event, line: str) -> None:
    assert lines(event) == [line]


def test_pictures_have_no_line() -> None:
    assert lines(events.BatchSeen(0, (64, 96), ()), STARTED) == lines(STARTED)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ranks": 2}, "training on 2 workers, 1 threads each, 8 images a step, float32;"),
        (
            {"parts": 2},
            "training on 1 workers, 1 threads each, 8 images a step in 2 parts (the same as with"
            " all 2 workers), float32;",
        ),
        (
            {"batch": 4},
            "4 images a step (scaled down from 8 with all 2 workers, and the learning rate with"
            " it), float32;",
        ),
    ],
)
def test_a_smaller_group_says_what_batch_it_has(changes: dict[str, int], words: str) -> None:
    (line,) = lines(replace(STARTED, **changes))
    assert words in line


def test_the_progress_line_says_where_the_time_goes() -> None:
    line = lines(STARTED, STEPS)[-1]
    # 50 images remain at 10 a second.
    for text in (
        "10.0 img/s",
        "ETA 0:00:05",
        "class 0.2500",
        "box 0.1250",
        "AP -",
        "time: data 12% step 80% rest 8%",
    ):
        assert text in line, line


def test_the_progress_line_has_the_last_ap() -> None:
    assert "AP 0.500" in lines(STARTED, EVALUATED, STEPS)[-1]


def test_a_score_that_does_not_exist_is_a_dash() -> None:
    none = {"AP": None, "AP50": None, "AP75": 0.25}
    evaluated = replace(EVALUATED.evaluation, metrics=none)
    said = lines(events.EvaluationDone(evaluated), STEPS)
    assert said[0].endswith("on 8 images: AP -  AP50 -  AP75 0.2500") and "  AP -  time" in said[1]


def test_a_terminal_shows_one_progress_line_that_updates() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    console = Console("cells", out=out)
    for event in (STARTED, STEPS, STEPS, events.CheckpointStored("/c", 50)):
        console(event)
    assert out.getvalue().count("\n") == 2
    assert out.getvalue().endswith("\r\x1b[K[cells] checkpoint /c\n")


def test_the_console_handles_every_event() -> None:
    """No class of the union is forgotten: dispatch by class finds a method for each."""
    dispatch = vars(Console)["_show"].dispatcher.dispatch
    for kind in get_args(events.Event):
        assert dispatch(kind) is not dispatch(object), kind


def test_a_restart_forgets_the_ranks_of_the_group_before() -> None:
    def timing(rank: int, data_seconds: float) -> events.RankTiming:
        worker = events.WorkerProcess(rank, f"10.0.0.{rank}", 42)
        return events.RankTiming(worker, 8, 10.0, data_seconds, 10.0 - data_seconds, 0.2)

    printed = lines(
        replace(STARTED, ranks=2), timing(0, 0.0), replace(STARTED, ranks=1), timing(0, 5.0)
    )
    (stall,) = [line for line in printed if "data stall" in line]
    assert stall.startswith("data stall: rank 0 on 10.0.0.0 waited 5.0 of 10.0 s")
