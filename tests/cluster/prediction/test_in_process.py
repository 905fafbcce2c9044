"""Parts on threads of this process: each is done once, and what ends the work lets parts finish."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import PlainError
from cluster.prediction import in_process, pool
from cluster.prediction.image_list import open_images
from cluster.prediction.in_process import run_parts
from cluster.prediction.part import PartJob, PartReport
from cluster.prediction.plan import OtherPrediction
from cluster.prediction.pool import Crew, Workers
from cluster.prediction.predict import predict
from tests.support.predicting import Feed, InProcess, Reds, rows_of, write_package, write_pictures

JOB = PartJob("/out", 0, "claim", "", 1)


def workers_that(act: Callable[[int], None], number: int = 2) -> tuple[Workers, list[Any]]:
    """And the list of all that were made."""
    made: list[Any] = []

    class Made:
        def __init__(self, package: Any, threads: int, device: str):
            assert (package, threads, device) == ({"a": b"weights"}, 1, "cpu")
            made.append(self)

        def predict(self, job: PartJob) -> PartReport:
            act(job.number)
            return PartReport(job.number, 9, 1, 0.5)

    return Workers(1, number, 0.75, 0, {"a": b"weights"}, kind=Made), made


def numbers(workers: Workers, count: int, done: tuple[int, ...] = (), **options: Any) -> list[int]:
    reports = run_parts(workers, Feed(count), JOB, done=lambda n, images: n in done, **options)
    return sorted(report.number for report in reports)


def test_each_part_that_is_missing_is_done_once_by_all_threads() -> None:
    both, seen = threading.Barrier(2), list[Crew]()
    # Two parts are in work at a time: each waits for the other one.
    workers, made = workers_that(lambda number: both.wait(60) and None)
    assert numbers(workers, 6, done=(1, 4), look=seen.append) == [0, 2, 3, 5]
    assert len(made) == 2 and max(crew.loaded for crew in seen) == 2


def test_what_ends_the_work_lets_parts_in_work_finish() -> None:
    begun, finished = threading.Event(), list[int]()

    def act(number: int) -> None:
        if number == 0:
            begun.wait(60)
            raise PlainError("the bucket does not answer")
        begun.set()
        finished.append(number)

    with pytest.raises(PlainError, match="the bucket does not answer"):
        numbers(workers_that(act)[0], 2)
    assert finished == [1]

    def stop(crew: Crew) -> None:
        raise PlainError("another driver works here")

    with pytest.raises(PlainError, match="another driver"):
        numbers(workers_that(lambda number: None)[0], 2, look=stop)


def test_a_part_that_does_not_fit_into_memory_is_named() -> None:
    def full(number: int) -> None:
        raise MemoryError

    with pytest.raises(PlainError, match="part 0 does not fit into memory; give --workers 1"):
        numbers(workers_that(full, number=1)[0], 1)


def test_more_than_a_few_images_and_what_was_cut_off_go_to_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image may have crashed its decoder, and with it this process."""
    package = str(write_package(tmp_path / "package"))
    write_pictures(tmp_path / "pictures", 20)
    images, here, there = open_images(f"{tmp_path}/pictures"), InProcess(), InProcess()
    monkeypatch.setattr(in_process, "run_parts", here)
    monkeypatch.setattr(pool, "run_parts", there)
    connected: list[bool] = []

    def run(name: str, **options: Any) -> str:
        done = predict(
            package,
            images,
            f"{tmp_path}/{name}",
            few_here=True,
            connect=lambda: connected.append(True),
            **options,
        )
        return done.output

    assert len(rows_of(run("few"))) == 20
    assert (here.parts, there.parts, connected) == ([0, 1], [], [])

    def die(number: int) -> None:
        if number == 1:
            raise RuntimeError("stands for a crash")

    here.before = die
    with pytest.raises(RuntimeError):
        run("crashed")
    here.parts.clear()
    assert len(rows_of(run("crashed"))) == 20
    assert (here.parts, there.parts, connected) == ([], [1], [True])

    monkeypatch.setattr(in_process, "FEW_IMAGES", 19)
    run("many")
    assert (here.parts, there.parts) == ([], [1, 0, 1])
    assert not in_process.is_few(images)
    with pytest.raises(OtherPrediction):
        run("many", max_pixels=5)
    assert isinstance(here.predictor, Reds) and 1 <= in_process.thread_count() <= 4
