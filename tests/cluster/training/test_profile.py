"""A real profile of a few small steps."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cluster.errors import PlainError
from cluster.runs.events import Event, ProfileStored, TrainingWarning
from cluster.runs.training_config import PROFILE_AFTER
from cluster.storage import files
from cluster.training.profile import ProfilePublisher
from cluster.training.timing import Timing

CPU = torch.device("cpu")


def make_steps(timing: Timing, count: int) -> None:
    network = torch.nn.Linear(4, 4)
    for _ in range(count):
        with timing.step(network):
            network(torch.zeros(2, 4)).sum().backward()


@pytest.mark.parametrize(("made", "recorded"), [(PROFILE_AFTER + 6, 3), (PROFILE_AFTER + 2, 2)])
def test_a_profile_has_the_steps_asked_for_or_those_there_were(
    tmp_path: Path, made: int, recorded: int
) -> None:
    told: list[Event] = []
    profile = ProfilePublisher(str(tmp_path), steps=3, images_seen=lambda: 48, tell=told.append)
    timing = Timing(CPU, profile_steps=3, on_profile=profile)
    make_steps(timing, made)
    timing.close()
    profile.wait()
    uri = f"{tmp_path}/profile/images-000000000048"
    assert told == [ProfileStored(uri, 3)]
    trace = json.loads(gzip.decompress(Path(uri, "trace.json.gz").read_bytes()))
    names = [event["name"] for event in trace["traceEvents"] if event.get("cat") == "cpu_op"]
    assert names.count("aten::linear") == recorded
    assert "aten::linear" in Path(uri, "operations.txt").read_text()


def test_a_profile_that_storage_refuses_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(local: str, uri: str) -> None:
        raise PlainError("the storage is away")

    monkeypatch.setattr(files, "upload_folder", away)
    told: list[Event] = []
    profiler: Any = SimpleNamespace(
        export_chrome_trace=lambda path: None, key_averages=torch.autograd.profiler_util.EventList
    )
    profile = ProfilePublisher("s3://bucket/run", steps=3, images_seen=lambda: 48, tell=told.append)
    profile(profiler)
    profile.wait()
    assert told == [
        TrainingWarning("the profile is not in storage, training continues: the storage is away")
    ]


def test_a_run_too_short_for_a_profile_has_none(tmp_path: Path) -> None:
    told: list[Event] = []
    profile = ProfilePublisher(str(tmp_path), steps=3, images_seen=lambda: 48, tell=told.append)
    timing = Timing(CPU, profile_steps=3, on_profile=profile)
    make_steps(timing, PROFILE_AFTER - 2)
    timing.close()
    profile.wait()
    assert told == [] and list(tmp_path.iterdir()) == []
