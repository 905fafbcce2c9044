"""Who is named slow or starved: events made by hand, times chosen so that the comparison can be
checked by eye.
"""

from __future__ import annotations

import pytest

from cluster.runs.events import RankTiming, WorkerProcess
from cluster.training import stragglers
from cluster.training.stragglers import Stragglers


def interval(
    images: int, *, forward: list[float], data: list[float] | None = None, seconds: float = 10.0
) -> list[RankTiming]:
    waits = data or [0.0] * len(forward)
    return [
        RankTiming(
            worker=WorkerProcess(rank, f"10.0.0.{rank}", 100 + rank),
            images_seen=images,
            seconds=seconds,
            data_seconds=waits[rank],
            step_seconds=seconds - waits[rank],
            forward_seconds=forward[rank],
        )
        for rank in range(len(forward))
    ]


def said(watch: Stragglers, *intervals: list[RankTiming]) -> list[str]:
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
def test_a_rank_that_is_slow_for_one_interval_is_not_named(intervals: list[list[float]]) -> None:
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
    first = interval(8, forward=[0.2, 0.9], data=[0.0, 5.0])
    second, third = (interval(images, forward=[0.2, 0.9]) for images in (16, 24))
    # Rank 1's report of the first interval never arrives.
    assert said(watch, [first[0]], [second[1], second[0]]) == []
    assert len(said(watch, [third[0], third[1]])) == 1
    # What came before is forgotten, else this would complete an interval with a data stall.
    assert said(watch, [first[1]]) == []


def test_the_same_ranks_are_not_named_at_every_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(stragglers.time, "monotonic", lambda: now[0])
    watch, starved = Stragglers(1), interval(8, forward=[0.2], data=[5.0])
    assert len(said(watch, starved, starved, starved)) == 1
    now[0] = stragglers.REPEAT_S
    assert len(said(watch, starved)) == 1
