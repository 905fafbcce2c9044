"""A process whose work stands still ends itself, after it has said where it stands."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from cluster.training.watchdog import EXIT_CODE, Watchdog

WORK = """
    import sys, time
    sys.path.insert(0, "tests")
    from cluster.training.watchdog import Watchdog
    watchdog = Watchdog({limit}, lambda kind, **values: print(kind, round(values["seconds"], 1), values["place"], flush=True))
    for _ in range({steps}):
        time.sleep(0.1)
        watchdog.progressed()
    watchdog.{end}
"""


def run(limit: float, steps: int, end: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(WORK.format(limit=limit, steps=steps, end=end))],
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(("steps", "least"), [(1, 1.0), (0, 4.0)])
def test_a_standstill_ends_the_process_and_its_place_is_told(steps: int, least: float) -> None:
    """Before its first step it has four times as long."""
    done = run(1.0, steps, "stopped.wait(60)")
    assert done.returncode == EXIT_CODE
    kind, seconds, place = done.stdout.strip().split(" ", 2)
    assert kind == "hang" and float(seconds) >= least
    assert place.startswith("hangs, at ") and place.endswith("wait")
    # All threads, for whoever reads the worker's log.
    assert "most recent call first" in done.stderr and "in watch" in done.stderr


@pytest.mark.parametrize(
    ("limit", "steps", "end"), [(2.0, 30, "stop()"), (0, 1, "stopped.wait(1)")]
)
def test_progress_and_no_limit_end_nothing(limit: float, steps: int, end: str) -> None:
    # 30 steps of 0.1 s are longer than the limit, but none of them is.
    done = run(limit, steps, end)
    assert (done.returncode, done.stdout) == (0, "")


def test_a_limit_of_zero_starts_no_thread() -> None:
    before = threading.active_count()
    Watchdog(0, lambda kind, **values: None)
    assert threading.active_count() == before


RANK = """
    import sys
    import torch
    import torch.distributed as dist
    from cluster.training.watchdog import Watchdog
    rank = int(sys.argv[1])
    dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
    if rank:
        input()  # until rank 0 has told what it waits for
    Watchdog(2.0, lambda kind, **values: print(values["place"], flush=True))
    dist.all_reduce(torch.ones(1))
"""


def test_a_wait_for_other_ranks_is_told_from_a_hang(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(RANK)]
    pipes = {
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.DEVNULL,
        "text": True,
    }
    with subprocess.Popen([*command, "1", f"{tmp_path}/store"], **pipes) as other:
        with subprocess.Popen([*command, "0", f"{tmp_path}/store"], **pipes) as rank:
            place = rank.stdout.readline()
        assert rank.returncode == EXIT_CODE
        other.kill()
    assert place.startswith("waits for other ranks, at ") and "all_reduce" in place
