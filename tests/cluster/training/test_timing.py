"""Where a rank's time goes, by a clock of the test's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from cluster.training import timing
from cluster.training.timing import Interval, Timing

CPU = torch.device("cpu")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def takes(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    return clock


class Network(torch.nn.Module):
    def __init__(self, clock: Clock, seconds: float):
        super().__init__()
        self.clock, self.seconds = clock, seconds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.clock.takes(self.seconds)
        return x


def test_an_interval_is_data_steps_and_the_rest(clock: Clock) -> None:
    def arriving() -> Iterator[str]:
        for name in "abc":
            clock.takes(5 if name == "a" else 2)
            yield name

    spent, network, got = Timing(CPU), Network(clock, 1), []
    for batch in spent.batches(arriving()):
        got.append(batch)
        with spent.step(network):
            # Two parts of an accumulated batch, and as long again backward.
            network(torch.zeros(1))
            network(torch.zeros(1))
            clock.takes(2)
        if batch == "b":
            clock.takes(3)
    taken = spent.take()
    assert got == ["a", "b", "c"]
    # Counted from the first batch on: three steps of 4 s, two waits of 2 s, a checkpoint of 3 s.
    assert taken == Interval(seconds=19.0, data_seconds=4.0, step_seconds=12.0, forward_seconds=2.0)
    assert taken.data_share == pytest.approx(4 / 19)
    assert taken.step_share == pytest.approx(12 / 19)
    assert taken.rest_share == pytest.approx(3 / 19)


def test_intervals_begin_where_the_last_one_ended(clock: Clock) -> None:
    spent, network = Timing(CPU), Network(clock, 1)
    for _ in spent.batches(iter("ab")):
        with spent.step(network):
            network(torch.zeros(1))
        first = spent.take()
        clock.takes(1)
    assert first == Interval(2.0, 0.0, 1.0, 1.0)
    assert spent.take() == Interval(1.0, 0.0, 0.0, 0.0)


def test_hooks_are_removed_after_a_failed_step(clock: Clock) -> None:
    """Copies of it are evaluated, and a step may fail."""
    spent, network = Timing(CPU), Network(clock, 1)
    with pytest.raises(ArithmeticError), spent.step(network):
        raise ArithmeticError
    assert not network._forward_hooks and not network._forward_pre_hooks
    assert spent.steps == 0
