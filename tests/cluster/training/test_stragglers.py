"""Who is named slow or starved: events made by hand, times chosen so that the comparison can be
checked by eye.
"""

from __future__ import annotations

import io
from typing import Any

import pytest

from cluster.tracking.training_run import track
from cluster.training import stragglers
from cluster.training.console import Progress
from cluster.training.stragglers import Stragglers

START = {
    "kind": "start", "images_total": 100, "images_seen": 0, "epoch": 0, "threads": 1, "batch": 8, "parts": 1, "workers": 2, "batch_size": 8,
    "precision": "float32",
}  # fmt: skip


def interval(
    images: int, *, forward: list[float], data: list[float] | None = None, seconds: float = 10.0
) -> list[dict[str, Any]]:
    waits = data or [0.0] * len(forward)
    return [
        {
            "kind": "timing", "rank": rank, "node": f"10.0.0.{rank}", "images_seen": images, "seconds": seconds,
            "data_seconds": waits[rank], "step_seconds": seconds - waits[rank], "forward_seconds": forward[rank], "system": {},
        }
        for rank in range(len(forward))
    ]  # fmt: skip


def said(watch: Stragglers, *intervals: list[dict[str, Any]]) -> list[str]:
    return [line for events in intervals for event in events for line in watch(event)]


def test_a_slow_rank_is_named_with_its_node_after_two_intervals() -> None:
    watch, forward = Stragglers(4), [0.2, 0.2, 0.5, 0.25]
    assert said(watch, interval(8, forward=forward)) == []
    # The lower median of the four is 0.2; 0.5 is 2.5 times that, 0.25 only 1.25.
    (line,) = said(watch, interval(16, forward=forward))
    assert (
        line
        == "straggler: rank 2 on 10.0.0.2 takes 0.50 s for a forward pass, the median is 0.20 s;"
        " every step waits for it"
    )


def test_of_two_ranks_the_slower_is_named() -> None:
    watch = Stragglers(2)
    (line,) = said(watch, interval(8, forward=[0.5, 0.3]), interval(16, forward=[0.5, 0.3]))
    assert "rank 0 on 10.0.0.0 takes 0.50 s" in line


@pytest.mark.parametrize(
    "intervals",
    [
        [[0.2, 0.2, 0.9], [0.2, 0.2, 0.2], [0.2, 0.2, 0.9]],  # never two in a row
        [[0.9, 0.2, 0.2], [0.2, 0.9, 0.2], [0.2, 0.2, 0.9]],  # never the same
        [[0.2, 0.2, 0.3], [0.2, 0.2, 0.3]],  # 1.5 times is not more than 1.5 times
        [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]],  # a network that was not seen
    ],
)
def test_what_passes_is_not_named(intervals: list[list[float]]) -> None:
    assert (
        said(
            Stragglers(3),
            *(interval(8 * i, forward=forward) for i, forward in enumerate(intervals)),
        )
        == []
    )


def test_a_data_stall_names_rank_node_and_seconds() -> None:
    (line,) = said(Stragglers(2), interval(8, forward=[0.2, 0.2], data=[1.0, 4.0]))
    assert line.startswith(
        "data stall: rank 1 on 10.0.0.1 waited 4.0 of 10.0 s for its data; more"
        " training.decode_threads"
    )
    (line,) = said(Stragglers(3), interval(8, forward=[0.2] * 3, data=[3.0, 4.0, 0.0]))
    assert "rank 1 on 10.0.0.1 waited 4.0 of 10.0 s for its data (and 1 more)" in line


def test_short_waits_are_no_stall() -> None:
    # A fifth of the interval, and 0.9 s of a second.
    assert said(Stragglers(1), interval(8, forward=[0.2], data=[2.0])) == []
    assert said(Stragglers(1), interval(8, forward=[0.2], data=[0.9], seconds=1.0)) == []


def test_only_whole_intervals_are_compared() -> None:
    watch = Stragglers(2)
    first, second, third = (interval(images, forward=[0.2, 0.9]) for images in (8, 16, 24))
    # Rank 1's news of the first interval never comes.
    assert said(watch, [first[0]], [second[1], second[0]]) == []
    assert len(said(watch, [third[0], third[1]])) == 1
    assert watch.arrived == {}


def test_the_same_ranks_are_not_named_at_every_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(stragglers.time, "monotonic", lambda: now[0])
    watch, starved = Stragglers(1), interval(8, forward=[0.2], data=[5.0])
    assert len(said(watch, starved, starved, starved)) == 1
    now[0] = stragglers.REPEAT_S
    assert len(said(watch, starved)) == 1


def test_a_restart_forgets_the_ranks_that_were() -> None:
    out = io.StringIO()
    progress = Progress("cells", out=out)
    progress({**START, "ranks": 2})
    progress(interval(8, forward=[0.2, 0.2], data=[0.0, 5.0])[0])
    progress({**START, "ranks": 1})
    progress(interval(8, forward=[0.2], data=[5.0])[0])
    (stall,) = [line for line in out.getvalue().splitlines() if "data stall" in line]
    assert stall.startswith("[cells] data stall: rank 0 on 10.0.0.0 waited 5.0 of 10.0 s")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ranks": 2}, "training on 2 workers, 1 threads each, 8 images a step, float32;"),
        (
            {"ranks": 1, "parts": 2},
            (
                "training on 1 workers, 1 threads each, 8 images a step in 2 parts (kept as it is"
                " of 2 workers), float32;"
            ),
        ),
        (
            {"ranks": 1, "batch": 4},
            (
                "4 images a step (rescaled from the 8 of 2 workers, and the learning rate with it),"
                " float32;"
            ),
        ),
    ],
)
def test_a_smaller_group_says_what_became_of_the_batch(changes: dict[str, Any], words: str) -> None:
    out = io.StringIO()
    Progress("cells", out=out)({**START, **changes})
    assert words in out.getvalue()


STEP = {
    "kind": "step", "images_seen": 50, "epoch": 0.5, "images_per_second": 10.0, "classification": 0.25, "box": 0.125, "learning_rate": 0.01,
    "gradient_norm": 1.0, "positives": 3.0, "data_share": 0.124, "step_share": 0.8, "rest_share": 0.076,
}  # fmt: skip


def test_the_line_of_progress_says_where_the_time_goes() -> None:
    out = io.StringIO()
    progress = Progress("cells", out=out, interval=0)
    progress({**START, "ranks": 1})
    progress(STEP)
    line = out.getvalue().splitlines()[-1]
    # 50 images are left at 10 a second.
    for text in (
        "10.0 img/s",
        "ETA 0:00:05",
        "class 0.2500",
        "box 0.1250",
        "AP -",
        "time: data 12% step 80% rest 8%",
    ):
        assert text in line, line


class Recorder:
    def __init__(self) -> None:
        self.metrics: dict[str, tuple[float, int]] = {}
        self.tags: dict[str, str] = {}

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        self.metrics |= {name: (value, step) for name, value in values.items()}

    def set_tag(self, name: str, value: str) -> None:
        self.tags[name] = value


def test_mlflow_gets_the_time_split_the_nodes_and_the_profile() -> None:
    run = Recorder()
    track(run, STEP)
    track(run, {**interval(50, forward=[0.2])[0], "system": {"cpu_utilization_percentage": 99.0}})
    track(run, {"kind": "profile", "uri": "s3://b/profile/images-000000000024", "steps": 3})
    assert run.metrics["train/data_share"] == (0.124, 50)
    assert run.metrics["train/rest_share"] == (0.076, 50)
    assert run.metrics["system/10.0.0.0/cpu_utilization_percentage"] == (99.0, 50)
    assert run.tags == {"profile": "s3://b/profile/images-000000000024"}
