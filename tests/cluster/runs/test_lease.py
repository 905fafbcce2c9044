"""One driver a run: a second one is refused with the first one's name, a dead one's run is free."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import UsageError
from cluster.runs import lease, run_folder
from cluster.runs.config import TrainConfig
from cluster.runs.lease import DRIVER, Lease, refuse_held, this_process
from cluster.storage import files
from cluster.training import launch, preflight


def ignore(reason: str) -> None:
    raise AssertionError(reason)


def left_by(run: str, **process: Any) -> None:
    """What a driver leaves that was killed after its third beat."""
    found = {
        "driver": "gpu-7 (pid 12)",
        "since": "2026-01-02 03:04:05 UTC",
        "process": {**this_process(), **process},
        "token": "its own",
        "beat": 3,
    }
    run_folder.write(run, DRIVER, found)


def other_process() -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)


def test_a_run_is_free_before_and_after_and_held_meanwhile(tmp_path: Path) -> None:
    run = str(tmp_path)
    refuse_held(run)
    with Lease(run, ignore):
        mine = run_folder.read(run, DRIVER)
        assert mine["driver"].endswith(f"(pid {os.getpid()})") and mine["process"] == this_process()
    assert run_folder.read(run, DRIVER) is None


def test_a_living_process_of_this_machine_is_named_at_once(tmp_path: Path) -> None:
    run, other = str(tmp_path), other_process()
    with other:
        left_by(run, pid=other.pid, started=lease.psutil.Process(other.pid).create_time())
        with pytest.raises(
            UsageError,
            match=(
                r"gpu-7 \(pid 12\) has trained it since 2026-01-02 03:04:05 UTC; wait for its end"
            ),
        ):
            Lease(run, ignore).__enter__()
        # Its number now belongs to another process.
        left_by(run, pid=other.pid, started=1.0)
        refuse_held(run)
        left_by(run, pid=other.pid, started=lease.psutil.Process(other.pid).create_time())
        other.kill()
        # Killed, and not yet taken note of by its parent: it is gone.
        while lease.psutil.Process(other.pid).status() != lease.psutil.STATUS_ZOMBIE:
            threading.Event().wait(0.01)
        refuse_held(run)


@pytest.mark.parametrize("end", ["beats", "silent", "leaves"])
def test_a_driver_elsewhere_is_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, end: str
) -> None:
    run, seconds = str(tmp_path), []

    def sleep(duration: float) -> None:
        """What the other driver does in the third second."""
        seconds.append(duration)
        if len(seconds) == 3 and end == "beats":
            run_folder.write(run, DRIVER, {**run_folder.read(run, DRIVER), "beat": 4})
        if len(seconds) == 3 and end == "leaves":
            lease.storage.delete_file(f"{run}/{DRIVER}")

    monkeypatch.setattr(lease.time, "sleep", sleep)
    monkeypatch.setattr(lease.time, "monotonic", lambda: float(sum(seconds)))
    left_by(run, host="elsewhere")
    if end == "beats":
        with pytest.raises(UsageError, match="gpu-7"):
            refuse_held(run)
    else:
        refuse_held(run)
    assert sum(seconds) == {"beats": 3, "leaves": 3, "silent": lease.SILENT_S}[end]
    assert "watching up to 30 s" in capsys.readouterr().err


def test_whose_file_is_overwritten_hears_of_it_and_leaves_the_other_ones_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "BEAT_S", 0.02)
    run, lost, told = str(tmp_path), threading.Event(), []

    def tell(reason: str) -> None:
        told.append(reason)
        lost.set()

    with Lease(run, tell):
        left_by(run, host="elsewhere")
        assert lost.wait(30)
    assert "gpu-7" in told[0] and "this driver ends" in told[0]
    assert run_folder.read(run, DRIVER)["token"] == "its own"


def test_the_file_changes_from_beat_to_beat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "BEAT_S", 0.01)
    run, beats = str(tmp_path), set()
    with Lease(run, ignore):
        while len(beats) < 3:
            beats.add(run_folder.read(run, DRIVER)["beat"])


def test_storage_that_is_away_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT_S", 0.01)
    failed = threading.Semaphore(0)
    with Lease(str(tmp_path), ignore) as held:

        def away(*_: object) -> None:
            failed.release()
            raise OSError("the storage is away")

        with monkeypatch.context() as patch:
            patch.setattr(lease.run_folder, "read", away)
            for _ in range(3):
                assert failed.acquire(timeout=30)
            assert held.thread.is_alive()


def test_the_configuration_is_that_of_the_driver_that_holds_the_run(tmp_path: Path) -> None:
    """Both have looked before one had the lease; the other one was the last to write what names the
    run.
    """
    given = {"data": {"train": "/t", "val": "/v"}, "storage": str(tmp_path), "name": "cells"}
    configs = [
        TrainConfig.model_validate({**given, "loss": {"gamma": gamma}}) for gamma in (2.0, 1.0)
    ]
    run = configs[0].run_uri
    checked = []
    for config in configs:
        identity = {"loss": {"gamma": config.loss.gamma}}
        checked.append(
            preflight.Checked(
                None,
                identity,
                False,
                run_folder.claim(run, config.model_dump(mode="json"), identity, begun=False),
            )
        )
    held = launch.held(configs[0], checked[0])
    claim = run_folder.read_claim(run)
    assert (
        claim.identity == checked[0].identity
        and claim.run_uuid == held.run_uuid != checked[1].run_uuid
        and not held.begun
    )
    # Once there is a checkpoint, one that comes late finds another's run.
    files.write_json(f"{run_folder.checkpoint_uri(run, 8)}/{run_folder.STATE_FILE}", {})
    assert launch.held(configs[0], checked[0]).begun
    with pytest.raises(UsageError, match="loss.gamma was 2.0, is 1.0"):
        launch.held(configs[1], checked[1])
