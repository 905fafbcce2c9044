"""Where a rank's time goes, by a clock of the test's own; a real profile of a few small steps."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from cluster.errors import PlainError
from cluster.runs.training_config import EXECUTION, PROFILE_AFTER, TrainingConfig
from cluster.training import timing
from cluster.training.profile import publish_profile
from cluster.training.system_metrics import system_metrics
from cluster.training.timing import Timing, shares

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
    assert taken == {
        "seconds": 19.0,
        "data_seconds": 4.0,
        "step_seconds": 12.0,
        "forward_seconds": 2.0,
    }
    assert shares(taken) == {
        "data_share": pytest.approx(4 / 19),
        "step_share": pytest.approx(12 / 19),
        "rest_share": pytest.approx(3 / 19),
    }


def test_intervals_begin_where_the_last_one_ended(clock: Clock) -> None:
    spent, network = Timing(CPU), Network(clock, 1)
    for _ in spent.batches(iter("ab")):
        with spent.step(network):
            network(torch.zeros(1))
        first = spent.take()
        clock.takes(1)
    assert first == {
        "seconds": 2.0,
        "data_seconds": 0.0,
        "step_seconds": 1.0,
        "forward_seconds": 1.0,
    }
    assert spent.take() == {
        "seconds": 1.0,
        "data_seconds": 0.0,
        "step_seconds": 0.0,
        "forward_seconds": 0.0,
    }


def test_nothing_stays_on_the_network(clock: Clock) -> None:
    """Copies of it are evaluated, and a step may fail."""
    spent, network = Timing(CPU), Network(clock, 1)
    with pytest.raises(ArithmeticError), spent.step(network):
        raise ArithmeticError
    assert not network._forward_hooks and not network._forward_pre_hooks
    assert spent.steps == 0


def test_system_metrics_have_mlflows_names() -> None:
    found = system_metrics(CPU, node=True)
    assert set(found) == {
        "cpu_utilization_percentage",
        "system_memory_usage_megabytes",
        "system_memory_usage_percentage",
    }
    assert 0 < found["system_memory_usage_percentage"] < 100
    assert system_metrics(CPU, node=False) == {}


def test_the_memory_of_a_gpu_is_its_ranks_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3_000_000, 4_000_000))

    def without_library(device: torch.device) -> int:
        raise ModuleNotFoundError("pynvml")

    monkeypatch.setattr(torch.cuda, "utilization", without_library)
    expected = {"gpu_1_memory_usage_megabytes": 1.0, "gpu_1_memory_usage_percentage": 25.0}
    assert system_metrics(torch.device("cuda", 1), node=False) == expected
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: 97)
    assert system_metrics(torch.device("cuda", 1), node=False) == {
        **expected,
        "gpu_1_utilization_percentage": 97.0,
    }


def steps(spent: Timing, count: int) -> None:
    network = torch.nn.Linear(4, 4)
    for _ in range(count):
        with spent.step(network):
            network(torch.zeros(2, 4)).sum().backward()


@pytest.mark.parametrize(("made", "recorded"), [(PROFILE_AFTER + 6, 3), (PROFILE_AFTER + 2, 2)])
def test_a_profile_holds_the_steps_asked_for_or_those_there_were(
    tmp_path: Path, made: int, recorded: int
) -> None:
    told: list[tuple[str, dict[str, Any]]] = []
    threads = []

    def publish(profiler: Any) -> None:
        threads.append(
            publish_profile(
                profiler,
                str(tmp_path),
                48,
                steps=3,
                tell=lambda kind, **values: told.append((kind, values)),
            )
        )

    spent = Timing(CPU, profile_steps=3, on_profile=publish)
    steps(spent, made)
    spent.close()
    (thread,) = threads
    thread.join()
    uri = f"{tmp_path}/profile/images-000000000048"
    assert told == [("profile", {"uri": uri, "steps": 3})]
    trace = json.loads(gzip.decompress(Path(uri, "trace.json.gz").read_bytes()))
    names = [event["name"] for event in trace["traceEvents"] if event.get("cat") == "cpu_op"]
    assert names.count("aten::linear") == recorded
    assert "aten::linear" in Path(uri, "operations.txt").read_text()


def test_a_profile_that_storage_does_not_take_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(local: str, uri: str) -> None:
        raise PlainError("the storage is away")

    monkeypatch.setattr(timing.storage, "upload_folder", away)
    told: list[tuple[str, dict[str, Any]]] = []
    profiler = SimpleNamespace(
        export_chrome_trace=lambda path: None, key_averages=torch.autograd.profiler_util.EventList
    )
    publish_profile(
        profiler,
        "s3://bucket/run",
        48,
        steps=3,
        tell=lambda kind, **values: told.append((kind, values)),
    ).join()
    assert told == [
        (
            "warning",
            {"text": "the profile is not in storage, training goes on: the storage is away"},
        )
    ]


def test_a_run_too_short_for_a_profile_has_none() -> None:
    published: list[SimpleNamespace] = []
    spent = Timing(CPU, profile_steps=3, on_profile=published.append)
    steps(spent, PROFILE_AFTER - 2)
    spent.close()
    assert published == []


def test_watching_is_no_part_of_what_a_run_is() -> None:
    assert "profile_steps" in EXECUTION
    with pytest.raises(ValidationError, match="profile_steps"):
        TrainingConfig(profile_steps=-1)
