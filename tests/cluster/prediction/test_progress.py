from __future__ import annotations

import io

from cluster.prediction.part import PartReport
from cluster.prediction.progress import AGAIN_S, LOG_S, QUIET_S, Progress


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_rate_counts_from_the_first_worker_and_the_rest_is_estimated_from_it() -> None:
    clock = Clock()
    progress = Progress(stream=io.StringIO(), clock=clock)
    progress.reused = 100
    clock.now = 20.0
    progress.look(None, 0)
    assert progress.line(None, 0) == (
        "100 of ? images: 0 ok, 0 failed, 100 of before; 0.0 images/s, ? left, 0 workers"
    )
    progress.look(None, 2)
    progress.add(PartReport(0, 30, 2, 3.0))
    progress.add(PartReport(1, 6, 2, 5.0))
    clock.now = 30.0
    # 40 images in 10 s; 14,540 - 140 images at 4 images/s are 3,600 s.
    assert progress.line(14_540, 2) == (
        "140 of 14540 images: 36 ok, 4 failed, 100 of before; 4.0 images/s, 1:00:00 left, 2 workers"
    )
    drawing = Progress("overlays", io.StringIO(), clock=clock)
    assert (
        drawing.line(5, 2) == "0 of 5 overlays: 0 ok, 0 failed; 0.0 overlays/s, ? left, 2 workers"
    )
    timing = progress.timing(workers=2)
    # Two parts took 3 s and 5 s.
    assert (timing.seconds, timing.images, timing.images_before) == (30.0, 40, 100)
    assert (timing.images_per_s, timing.seconds_a_part, timing.parts) == (4.0, 4.0, 2)


def test_a_log_gets_a_line_now_and_then_and_a_terminal_one_line_in_its_place() -> None:
    for stream, lines in ((io.StringIO(), 2), (Terminal(), 0)):
        clock = Clock()
        progress = Progress(stream=stream, clock=clock)
        for second in range(int(2 * LOG_S) + 1):
            clock.now = float(second)
            progress.add(PartReport(second, 1, 0, 1.0))
            progress.look(100, 1)
        assert stream.getvalue().count("\n") == lines
        progress.end()
        assert stream.getvalue().count("\r") == (0 if lines else 2 * LOG_S)
        assert stream.getvalue().endswith("\n")


def test_workers_that_do_not_come_are_named_now_and_then() -> None:
    clock, stream = Clock(), io.StringIO()
    progress = Progress(stream=stream, clock=clock)
    for second in range(int(QUIET_S + AGAIN_S) + 1):
        clock.now = float(second)
        progress.wait(2, "1 CPUs on one node")
    said = "waiting for 2 workers since {}: each needs 1 CPUs on one node\n"
    assert stream.getvalue() == said.format("0:00:15") + said.format("0:01:15")
    progress.wait(0, "1 CPUs on one node")
    progress.wait(1, "1 CPUs on one node")
    assert stream.getvalue().count("\n") == 2
